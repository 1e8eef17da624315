"""The chapters of a page: each run's figures, its rows, and what the page needs to replay it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from glasscluster.base.breakdown import PAPERS, PAPERS_DEFINITIONS, entry_of
from glasscluster.base.quantities import written_time
from glasscluster.base.rows import tally
from glasscluster.base.text import Said
from glasscluster.sim.recording.packed import pack_graph
from glasscluster.sim.time.idle import possible_entries
from glasscluster.visualize.figures import ledger, network
from glasscluster.visualize.figures.breakdown import critical_figure, idle_figure, split_figure
from glasscluster.visualize.figures.compare import comparison_figure, contender
from glasscluster.visualize.figures.equivalence import equivalence_figure
from glasscluster.visualize.figures.memory import (
    StateBook,
    capacity_of,
    memory_bars,
    memory_by_strategy,
    memory_over_time,
)
from glasscluster.visualize.figures.picture import Picture
from glasscluster.visualize.figures.side_by_side import side_by_side_figure
from glasscluster.visualize.figures.stepper import stepper_figure
from glasscluster.visualize.figures.timeline import (
    DRAWN_SINGLY,
    bar_count,
    time_unit,
    timeline_axes,
    timeline_figure,
)
from glasscluster.visualize.figures.topology import load_figure
from glasscluster.visualize.page.pack import pack_timeline
from glasscluster.visualize.page.report import Chapter, Report

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from glasscluster.sim.time.timeline import Timeline

MEMORY_CURVES = 4  # ranks whose memory over time is drawn: the fullest first


# ---- figures -----------------------------------------------------------------------------------------------
def plain(figure: Picture | Figure) -> dict[str, Any]:
    """The `data` and `layout` that plotly.js draws, as JSON; a number that JSON has not becomes null.

    Args:
        figure: a picture, or a plotly.graph_objects.Figure of a scenario's own.
    """
    text = json.dumps(figure, default=_listed) if isinstance(figure, dict) else figure.to_json(engine="json")
    content = json.loads(text, parse_constant=lambda _: None)
    return {"data": content["data"], "layout": content["layout"]}


def _listed(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a figure cannot hold {value!r}")


def _changed(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in other.items() if base.get(k) != v}


def bilingual(make: Any) -> dict[str, Any] | None:
    """A figure in English and, as `zh`, only what is different in Chinese."""
    english = make("en")
    if english is None:
        return None
    base, other = plain(english), plain(make("zh"))
    patch = {
        "data": [_changed(a, b) for a, b in zip(base["data"], other["data"], strict=True)],
        "layout": _changed(base["layout"], other["layout"]),
    }
    return {**base, "zh": patch}


def page_figures(report: Report) -> dict[str, Any]:
    """Every figure of the page by its id."""
    made: dict[str, Callable[[str], Any]] = {}
    for number, chapter in enumerate(report.chapters):
        made |= dict(_chapter_figures(number, chapter))
    compared = [c for c in report.chapters if c.compared]
    if len(compared) > 1:
        runs = [
            contender({"en": c.title.en, "zh": c.title.zh}, c.first, c.run.peak_memory()) for c in compared
        ]
        made["compare"] = lambda lang: comparison_figure(runs, lang)
        if sum(bar_count(c.first) for c in compared) <= DRAWN_SINGLY:
            made["sides"] = lambda lang: side_by_side_figure(
                [(c.title.in_(lang), c.first) for c in compared], lang
            )
    books = [(c, state_book(c)) for c in report.chapters if c.compared]
    if any(book for _, book in books):
        made["states"] = lambda lang: memory_by_strategy(
            [replace(b, name=c.title.in_(lang)) for c, b in books if b], lang
        )
    made["rows"] = lambda lang: ledger.ledger_figure(report.all_checks(), lang)
    for number, (_, make) in enumerate(report.figures):
        made[f"own-{number}"] = make
    figures = {key: bilingual(make) for key, make in made.items()}
    return {k: v for k, v in figures.items() if v is not None}


def _chapter_figures(number: int, chapter: Chapter) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """The figures of one run."""
    for place, t in enumerate(chapter.timelines.values()):
        here = f"{number}-{place}"
        yield f"tl-{here}", partial(timeline_axes if bar_count(t) > DRAWN_SINGLY else timeline_figure, t)
        yield f"split-{here}", partial(split_figure, t)
        yield f"idle-{here}", partial(idle_figure, t)
        yield f"path-{here}", partial(critical_figure, t)
    peaks, graph = chapter.run.peak_memory(), chapter.run.graph
    if any(total for total, _ in peaks):
        yield f"mem-{number}", partial(memory_bars, peaks, capacity=capacity_of(chapter.first))
        for rank in _curves(peaks):
            yield f"curve-{number}-{rank}", partial(memory_over_time, chapter.first, rank)
    yield f"net-{number}", partial(network.sent_figure, graph)
    yield f"matrix-{number}", partial(network.traffic_figure, graph)
    for name, make in chapter.network.items():
        yield f"net-{name}-{number}", make
    if graph.fold is None:  # roles have no links of their own, and do not hold what the others send
        yield f"load-{number}", partial(load_figure, chapter.first)
        yield f"ring-{number}", partial(stepper_figure, graph)
    if chapter.equivalence:
        yield f"same-{number}", partial(equivalence_figure, chapter.equivalence)


def state_book(chapter: Chapter) -> StateBook | None:
    """Model states per GPU, counted and by the formula, from rows that say so; None without such."""
    by_key = {r.key: r for r in chapter.checks}
    rows = {k: by_key[f"{k}_held"] for k in ("parameters", "gradients", "optimizer") if f"{k}_held" in by_key}
    if len(rows) != 3:
        return None
    ranks, peaks = chapter.run.graph.ranks, chapter.run.peak_memory()
    more = {k: sum(split[k] for _, split in peaks) / ranks for k in ("activations", "buffers")}
    counted = {k: (r.counted or 0) / ranks for k, r in rows.items()}
    predicted = {k: (r.predicted or 0) / ranks for k, r in rows.items()}
    return StateBook("", counted, predicted, more)


def _curves(peaks: list[tuple[int, dict[str, int]]]) -> list[int]:
    """The fullest ranks, one for each distinct peak."""
    order = sorted(range(len(peaks)), key=lambda r: (-peaks[r][0], r))
    distinct: dict[int, int] = {}
    for rank in order:
        distinct.setdefault(peaks[rank][0], rank)
    return list(distinct.values())[:MEMORY_CURVES]


# ---- what the template shows -------------------------------------------------------------------------------
def _summary(timeline: Timeline, model_flops: float, causal_flops: float | None) -> list[tuple[str, str]]:
    """Word key and value of the line under a timeline."""
    said = timeline.summary(model_flops, causal_flops)
    rows = [
        ("table_step", written_time(said["makespan_s"])),
        ("table_exposed", written_time(said["exposed_comm_s"])),
    ]
    rows += [(f"table_{key}", f"{said[key]:.1%}") for key in PAPERS if said[key] is not None]
    if model_flops:
        rows.append(("table_mfu", f"{said['mfu']:.2%}"))
        rows += [("table_mfu_causal", f"{said['mfu_causal']:.2%}")] if causal_flops is not None else []
        rows.append(("table_hfu", f"{said['hfu']:.2%}"))
    return rows


def _words(timeline: Timeline) -> list[Said]:
    """The definitions of all that can stand in the breakdown of this run; of the papers' bubble, if it is a
    pipeline.
    """
    said = [entry_of(key).definition for key in possible_entries(timeline.graph)]
    return [*said, *(PAPERS_DEFINITIONS.values() if timeline.graph.pipelined else ())]


def chapter_contents(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the template shows of each run: words, rows, and the ids of its figures by tab."""
    for number, chapter in enumerate(report.chapters):
        info = chapter.run.graph.info
        flops = float(info.get("model_flops", 0.0)), info.get("causal_flops")
        own = [f"net-{name}-{number}" for name in chapter.network if name != "kept"]
        known = [f"net-{number}", f"matrix-{number}", *own, f"load-{number}", f"ring-{number}"]
        of_memory = (f"mem-{number}", f"net-kept-{number}")
        yield {
            "key": chapter.key,
            "order_fixed": bool(chapter.run.graph.info.get("order_fixed")),
            "title": chapter.title,
            "note": chapter.note,
            "timelines": [
                {
                    "hardware": name,
                    "figure": f"tl-{number}-{place}",
                    "more": [(key, f"{key}-{number}-{place}") for key in ("split", "idle", "path")],
                    "summary": _summary(t, *flops),
                    "words": _words(t),
                }
                for place, (name, t) in enumerate(chapter.timelines.items())
            ],
            "memory": [k for k in figures if k in of_memory or k.startswith(f"curve-{number}-")],
            "network": [k for k in known if k in figures],
            "equivalence": f"same-{number}" if f"same-{number}" in figures else None,
            "ledger": ledger.lines(chapter.checks),
            "same": [r for r in ledger.lines(chapter.checks) if r["unit"] == "relative"],
            "counts": tally(chapter.checks).said,
        }


# ---- what the page's engine replays ------------------------------------------------------------------------
def packed_graph(chapter: Chapter) -> dict[str, Any]:
    """The chapter's recording, for the page's engine. A rendezvous replay has more edges."""
    return pack_graph(chapter.run.graph, bool(chapter.first.replay_options.get("rendezvous")))


def views(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the page needs to replay each timeline: graph, hardware and unit, and whether on a canvas."""
    for number, chapter in enumerate(report.chapters):
        for place, timeline in enumerate(chapter.timelines.values()):
            factor, unit = time_unit(timeline.makespan)
            about = {"graph": number, "hardware": pack_timeline(timeline), "factor": factor, "unit": unit}
            yield f"tl-{number}-{place}", {**about, "canvas": bar_count(timeline) > DRAWN_SINGLY}
