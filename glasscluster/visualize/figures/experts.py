"""The load of experts: how many rows each computes, how many were dropped, and a line at its capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasscluster.visualize.figures.layout import LEGEND, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import word

LOOKS = {"rows_kept": ("#0072B2", "", "#ffffff"), "rows_dropped": ("#ffffff", "x", "#D55E00")}
HEAD = 62


@dataclass(frozen=True)
class Load:
    """How many rows the router sent to each expert, and how many of them it computed. `places` is the
    capacity of an expert over all sequences together; None means that it has no limit.
    """

    title: str
    wanted: Sequence[int]
    kept: Sequence[int]
    places: int | None = None


def expert_load_figure(loads: Sequence[Load], lang: str = "en", heading: str = "") -> Picture:
    """Draw one panel for each load, all on one scale: a bar of computed rows and, hatched on top of it,
    dropped rows, with lines at the mean and at the capacity.
    """

    figure, top = Picture(), HEAD if heading else HEAD - 34
    most = max(max([*load.wanted, load.places or 0]) for load in loads)
    any_dropped = any(list(load.wanted) != list(load.kept) for load in loads)
    for i, load in enumerate(loads):
        number = "" if i == 0 else str(i + 1)
        x = [i / len(loads) + (0.012 if i else 0), (i + 1) / len(loads) - 0.012]
        values = {
            "rows_kept": load.kept,
            "rows_dropped": [w - k for w, k in zip(load.wanted, load.kept, strict=True)],
        }
        for key, (fill, hatch, ink) in LOOKS.items():
            if key == "rows_kept" or any_dropped:
                figure.add_trace(_bar(key, values[key], fill, hatch, ink, number, lang, load, first=i == 0))
        figure.update_layout(
            {
                f"xaxis{number}": {
                    "domain": x,
                    "anchor": f"y{number}",
                    "title": {"text": word("expert", lang)},
                    "tickvals": list(range(len(load.wanted))),
                    **QUIET_AXIS,
                },
                f"yaxis{number}": {
                    "anchor": f"x{number}",
                    "range": [0, most * 1.14],
                    "title": {"text": word("rows_axis", lang) if i == 0 else ""},
                    "showticklabels": i == 0,
                    **QUIET_AXIS,
                },
            }
        )
        mean = sum(load.wanted) / len(load.wanted)
        _line(figure, mean, "dot", number)
        if load.places is not None:
            _line(figure, load.places, "solid", number, word("places_line", lang, rows=f"{load.places:,}"))
        where = {"x": x[0], "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(
            **where,
            text=f"<b>{load.title}</b>   {word('mean_load', lang, rows=f'{mean:,.4g}')}",
            showarrow=False,
        )
    figure.update_layout(
        **plain_layout(430, left=70, right=16, top=top, bottom=100, size=15), barmode="stack", bargap=0.25
    )
    figure.update_layout(legend={**LEGEND, "traceorder": "normal"})
    if heading:
        figure.update_layout(
            title={
                "text": heading,
                "x": 0,
                "xref": "paper",
                "y": 1,
                "yref": "container",
                "pad": {"t": 20},
                "font": {"size": 18},
            }
        )
    return figure


def _bar(
    key: str,
    values: Sequence[int],
    fill: str,
    hatch: str,
    ink: str,
    number: str,
    lang: str,
    load: Load,
    *,
    first: bool,
) -> Any:
    return trace(
        "bar",
        name=word(key, lang),
        legendgroup=key,
        showlegend=first,
        x=list(range(len(values))),
        y=[v or None for v in values],
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        marker={
            "color": fill,
            "pattern": {"shape": hatch, "fgcolor": ink, "bgcolor": fill, "size": 7, "solidity": 0.35},
            "line": {"color": "#D55E00" if hatch else "#ffffff", "width": 1},
        },
        customdata=[f"{load.title} · {word('expert', lang)} {e}: {v:,}" for e, v in enumerate(values)],
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def _line(figure: Any, y: float, dash: str, number: str, text: str = "") -> None:
    """Draw a line across a panel with a label, so that it can be read without its colour."""
    axes = {"xref": f"x{number} domain", "yref": f"y{number}"}
    figure.add_shape(
        type="line", x0=0, x1=1, y0=y, y1=y, line={"color": "#000000", "dash": dash, "width": 2.5}, **axes
    )
    if text:
        figure.add_annotation(
            **axes, x=1, y=y, text=text, showarrow=False, xanchor="right", yanchor="bottom", font={"size": 15}
        )
