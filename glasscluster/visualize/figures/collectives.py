"""Results of a sweep of collectives: bus bandwidth and time against size, and time against the number of
GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

from glasscluster.visualize.figures.picture import Picture
from glasscluster.visualize.figures.plots import lines
from glasscluster.visualize.figures.timeline import size_text
from glasscluster.visualize.words import word

Rows = Sequence[dict[str, Any]]  # algorithm, gpus, size_bytes, time_s, bus_bandwidth_bytes_per_s
MOST_TICKS = 7


def _series(rows: Rows, x: str, y: str, factor: float) -> dict[str, tuple[list[float], list[float]]]:
    """Return, for each algorithm, x (rising) and y; an x that occurs in several rows appears once."""
    curves = {
        row["algorithm"]: {r[x]: r[y] * factor for r in rows if r["algorithm"] == row["algorithm"]}
        for row in rows
    }
    return {name: (sorted(points), [points[v] for v in sorted(points)]) for name, points in curves.items()}


def _axes(figure: Picture, sizes: list[int], values: Sequence[float]) -> None:
    """Label the size axis with at most a few of the sizes, and the other axis at powers of ten where its
    values differ by much.
    """
    shown = sizes[:: -(-len(sizes) // MOST_TICKS)]
    figure.update_xaxes(type="log", tickvals=shown, ticktext=[_binary(s) for s in shown])
    if max(values) > 300 * min(values):
        figure.update_yaxes(dtick=1)


def _binary(nbytes: int) -> str:
    """Write a multiple of a binary unit in it (16384 is 16 KiB), other sizes in decimal units."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size and nbytes % size == 0:
            return f"{nbytes // size} {unit}"
    return size_text(nbytes)


def half_size(sizes: Sequence[float], bandwidths: Sequence[float]) -> float:
    """Return n½ (Hockney 1994), the size at which half the largest bandwidth is reached. Between two measured
    sizes 1/bandwidth is taken to be linear in 1/size.
    """
    goal = max(bandwidths) / 2
    for (a, low), (b, high) in zip(
        zip(sizes, bandwidths, strict=True), zip(sizes[1:], bandwidths[1:], strict=True), strict=False
    ):
        if low <= goal <= high and high > low > 0:
            share = (1 / low - 1 / goal) / (1 / low - 1 / high)
            return 1 / (1 / a + (1 / b - 1 / a) * share)
    return float(sizes[0])


def bandwidth_figure(rows: Rows, lang: str = "en") -> Picture:
    """Draw bus bandwidth (as nccl-tests define it) against size. Sizes at which latency and not bandwidth
    decides the best algorithm's time are shaded.
    """
    series = _series(rows, "size_bytes", "bus_bandwidth_bytes_per_s", 1e-9)
    figure = lines(series, word("buffer_size", lang), word("bus_bandwidth", lang), log_x=True, log_y=True)
    sizes = sorted({r["size_bytes"] for r in rows})
    best = [
        max(y for xs, ys in series.values() for x, y in zip(xs, ys, strict=True) if x == size)
        for size in sizes
    ]
    knee = half_size(sizes, best)
    for low, high, fill, key in (
        (sizes[0], knee, "#fbe9dd", "latency_region"),
        (knee, sizes[-1], "#e3f1ea", "bandwidth_region"),
    ):
        if high > low:
            figure.add_vrect(x0=low, x1=high, fillcolor=fill, opacity=1, layer="below", line_width=0)
            figure.add_annotation(
                **_note(word(key, lang)), x=_log((low * high) ** 0.5), y=1.0, yref="paper", yanchor="bottom"
            )
    figure.update_layout(margin_t=52)
    _axes(figure, sizes, [y for _, ys in series.values() for y in ys])
    return figure


def winners(rows: Rows) -> list[tuple[str, int, int]]:
    """Return (algorithm, first size, last size) for each interval in which one algorithm is fastest."""
    ranges: list[tuple[str, int, int]] = []
    for size in sorted({r["size_bytes"] for r in rows}):
        best = min((r for r in rows if r["size_bytes"] == size), key=lambda r: r["time_s"])["algorithm"]
        if ranges and ranges[-1][0] == best:
            ranges[-1] = (best, ranges[-1][1], size)
        else:
            ranges.append((best, size, size))
    return ranges


def crossover_figure(rows: Rows, lang: str = "en") -> Picture:
    """Draw time against size, with a vertical line wherever another algorithm becomes the fastest."""
    series = _series(rows, "size_bytes", "time_s", 1e6)
    figure = lines(series, word("buffer_size", lang), word("time_us", lang), log_x=True, log_y=True)
    fastest = winners(rows)
    if len(series) > 1:
        for number, (name, first, last) in enumerate(fastest):
            if number:
                edge = (fastest[number - 1][2] * first) ** 0.5
                figure.add_vline(x=edge, line={"color": "#1f2933", "width": 2, "dash": "dot"})
            lift = 4 + 20 * (number % 2) * (len(fastest) > 2)  # so that neighbouring labels do not overlap
            figure.add_annotation(
                **_note(name),
                x=_log((first * last) ** 0.5),
                y=1.0,
                yref="paper",
                yanchor="bottom",
                yshift=lift,
            )
        figure.update_layout(margin_t=72)
    _axes(figure, sorted({r["size_bytes"] for r in rows}), [y for _, ys in series.values() for y in ys])
    return figure


def scaling_figure(rows: Rows, lang: str = "en") -> Picture:
    """Draw the time for one size against the number of GPUs."""
    return lines(
        _series(rows, "gpus", "time_s", 1e6),
        word("gpus_n", lang),
        word("time_us", lang),
        log_x=True,
        log_y=True,
    )


def _note(text: str) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 14}, "xanchor": "center"}


def _log(x: float) -> float:
    """Return log10 of a value, because plotly places annotations on a logarithmic axis by exponent."""
    return log10(x)
