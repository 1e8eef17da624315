"""Two figures of 16-bit training: how gradients are distributed over fp16's exponents, and how the loss scale
changes from step to step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.picture import Picture, trace

ZERO, NORMAL, LARGEST = (
    -25,
    -14,
    16,
)  # fp16 rounds 2^-25 and less to zero, has all its digits from 2^-14 on, and overflows at 2^16


def exponents(
    shares: Mapping[str, Mapping[int, float]], x: str, y: str, words: tuple[str, str, str]
) -> Picture:
    """Draw the share of gradients by exponent, one series for each loss scale. Shading marks where fp16
    underflows to zero, loses digits, or overflows.
    """

    figure = Picture()
    for number, (name, share) in enumerate(shares.items()):
        figure.add_trace(
            trace(
                "bar",
                name=name,
                x=list(share),
                y=[float(f"{100 * v:.5g}") for v in share.values()],
                marker={
                    "color": SERIES[number],
                    "pattern": {
                        "shape": ("", "/")[number % 2],
                        "fgcolor": "#ffffff",
                        "size": 7,
                        "solidity": 0.2,
                    },
                },
                hovertemplate=f"{name}<br>2^%{{x}}: %{{y:.3g}} %<extra></extra>",
            )
        )
    low = min(min(s) for s in shares.values()) - 1
    for a, b, colour, text in (
        (low, ZERO, "#d9d9d9", words[0]),
        (ZERO, NORMAL, "#f0f0f0", words[1]),
        (LARGEST, LARGEST + 6, "#d9d9d9", words[2]),
    ):
        figure.add_vrect(
            x0=a - 0.5,
            x1=b - 0.5,
            fillcolor=colour,
            line_width=0,
            layer="below",
            annotation={"text": text, "font": {"size": 14}},
        )
    figure.update_layout(
        **plain_layout(440, left=76, right=24, top=30, bottom=110, size=15), barmode="overlay", bargap=0.1
    )
    figure.update_traces(opacity=0.85)
    figure.update_xaxes(title={"text": x}, range=[low - 0.5, LARGEST + 5.5], dtick=5, **QUIET_AXIS)
    figure.update_yaxes(title={"text": y}, **QUIET_AXIS)
    return figure


def staircase(
    scales: Sequence[float], skipped: Sequence[bool], x: str, y: str, words: tuple[str, str, str]
) -> Picture:
    """Draw the loss scale at every step, and mark the skipped steps. `words` are the labels of the scale, of
    a step that was taken and of one that was skipped.
    """

    steps = list(range(len(scales)))
    figure = Picture(
        trace(
            "scatter",
            name=words[0],
            x=steps,
            y=list(scales),
            mode="lines",
            line={"shape": "hvh", "color": "#404040", "width": 2},
            hoverinfo="skip",
        )
    )
    for which, symbol, colour in ((False, "circle", SERIES[0]), (True, "x", SERIES[1])):
        chosen = [i for i in steps if skipped[i] is which]
        figure.add_trace(
            trace(
                "scatter",
                name=words[1 + which],
                x=chosen,
                y=[scales[i] for i in chosen],
                mode="markers",
                marker={"symbol": symbol, "color": colour, "size": 12},
                hovertemplate=f"{words[1 + which]} %{{x}}: %{{y:,}}<extra></extra>",
            )
        )
    figure.update_layout(**plain_layout(420, left=90, right=24, top=20, bottom=100, size=15))
    ticks = sorted(set(scales))
    figure.update_yaxes(
        title={"text": y}, type="log", tickvals=ticks, ticktext=[f"{t:,.0f}" for t in ticks], **QUIET_AXIS
    )
    figure.update_xaxes(title={"text": x}, **QUIET_AXIS)
    return figure
