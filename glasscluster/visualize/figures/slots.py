"""Figures of serving: which request has which slot when, and how much of the reserved cache holds tokens.

    slot 0  ▐0 prefill▌0 decode ········▐5▌5 ·····   one row a slot, one block of rows a way of batching,
    slot 1  ▐1▌1 ···░░░░░░░░░░░░░░░░░░░░░▐6▌6 ···    one time axis for all; ░ has ended and holds its slot

Spans and curves come from the replayed recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from glasscluster.visualize.figures.layout import INK, QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERVING
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.figures.timeline import time_unit
from glasscluster.visualize.words import word

ROW, GAP = 30, 0.6  # height of a slot in pixels; empty rows between two ways of batching


class Span(NamedTuple):
    """What a request does in a slot, from start to end in seconds. `kind` is prefill, decode, again (prefill
    after it was preempted) or held (the request has ended but keeps the slot).
    """

    slot: int
    request: int
    kind: str
    start: float
    end: float


class Held(NamedTuple):
    """The cache after the step that ended at some time: how many bytes are reserved, and how many hold
    tokens.
    """

    end: float
    reserved: float
    filled: float


def slots_figure(ways: Mapping[str, Sequence[Span]], hardware: str, lang: str = "en") -> Picture:
    """Draw a block of rows for each way of batching, below each other on one time axis."""

    factor, unit = time_unit(max(s.end for spans in ways.values() for s in spans))
    figure, ticks, names, top = Picture(), list[float](), list[str](), 0.0
    bars: dict[str, list[tuple[float, Span]]] = {kind: [] for kind in SERVING}
    for way, spans in ways.items():
        slots = 1 + max(s.slot for s in spans)
        for slot in range(slots):
            ticks.append(top + slot)
            names.append(f"{word('slot', lang)} {slot}")
        for span in spans:
            bars[span.kind].append((top + span.slot, span))
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=top - 0.5,
            yanchor="bottom",
            text=f"<b>{way}</b>",
            showarrow=False,
            font={"size": 15, "color": INK},
        )
        top += slots + GAP
    for kind, placed in bars.items():
        if placed:
            figure.add_trace(_bars(kind, placed, factor, unit, lang))
    title = f"{word('virtual_time', lang)} ({unit}) · {hardware}"
    figure.update_layout(
        **plain_layout(90 + ROW * (top + GAP) + 70, left=20, right=20, top=24, bottom=104, size=15),
        barmode="overlay",
    )
    figure.update_layout(uniformtext={"minsize": 11, "mode": "hide"}, legend_traceorder="normal")
    figure.update_xaxes(title={"text": title}, rangemode="tozero", **QUIET_AXIS)
    figure.update_yaxes(
        tickvals=ticks,
        ticktext=names,
        range=[top - GAP - 0.4, -1.3],
        automargin=True,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    return figure


def _bars(kind: str, placed: Sequence[tuple[float, Span]], factor: float, unit: str, lang: str) -> Any:
    look, name = SERVING[kind], word(f"serving_{kind}", lang)
    return trace(
        "bar",
        name=name,
        orientation="h",
        base=[float(f"{s.start * factor:.6g}") for _, s in placed],
        x=[float(f"{(s.end - s.start) * factor:.6g}") for _, s in placed],
        y=[row for row, _ in placed],
        width=0.84,
        text=[str(s.request) if kind != "held" else "" for _, s in placed],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="inside",
        textfont={"size": 14, "color": look.text},
        customdata=[f"{word('request', lang)} {s.request}, {name}" for _, s in placed],
        hovertemplate=f"%{{customdata}}<br>%{{x:.4g}} {unit}<extra></extra>",
        marker={
            "color": look.fill,
            "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.2},
            "line": {"color": "#ffffff", "width": 1},
        },
    )


def cache_figure(ways: Mapping[str, Sequence[Held]], hardware: str, lang: str = "en") -> Picture:
    """Draw the cache over time for each way of batching, side by side on the same axes: what holds tokens,
    and above it what is only reserved.
    """

    factor, unit = time_unit(max(h.end for curve in ways.values() for h in curve))
    figure = panels(
        1,
        len(ways),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[f"<b>{way}</b>" for way in ways],
    )
    for column, curve in enumerate(ways.values(), start=1):
        times = [0.0] + [float(f"{h.end * factor:.6g}") for h in curve]
        for kind, heights in (
            ("tokens", [h.filled for h in curve]),
            ("empty", [h.reserved - h.filled for h in curve]),
        ):
            look = SERVING[kind]
            figure.add_trace(
                trace(
                    "scatter",
                    name=word(f"cache_{kind}", lang),
                    legendgroup=kind,
                    showlegend=column == 1,
                    x=times,
                    y=[v / 1e3 for v in (*heights, heights[-1])],
                    stackgroup="cache",
                    line={"shape": "hv", "width": 1, "color": look.ink},
                    fillcolor=look.fill,
                    fillpattern={
                        "shape": look.hatch,
                        "fgcolor": look.ink,
                        "bgcolor": look.fill,
                        "size": 7,
                        "solidity": 0.2,
                    },
                    hovertemplate=f"{word(f'cache_{kind}', lang)}<br>%{{x:.4g}} {unit}: %{{y:.4g}} "
                    f"kB<extra></extra>",
                ),
                1,
                column,
            )
    figure.update_xaxes(
        title={"text": f"{word('virtual_time', lang)} ({unit}) · {hardware}"},
        rangemode="tozero",
        matches="x",
        **QUIET_AXIS,
    )
    figure.update_yaxes(rangemode="tozero", **QUIET_AXIS)
    figure.update_yaxes(title={"text": "kB"}, col=1)
    figure.update_layout(**plain_layout(380, left=76, right=20, top=36, bottom=104, size=15))
    return figure
