"""Whether a parallel training equals the one on a single device: both losses, and the differences of
gradients and weights at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.picture import Picture, panels, trace
from glasscluster.visualize.words import word

NOTHING = 1e-18  # a difference of exactly zero is drawn here, because a logarithmic axis has no zero
TOLERANCE = 1e-10


def equivalence_figure(compared: Mapping[str, Any], lang: str = "en") -> Picture:
    """Draw the losses on the left, and on the right the differences at each step, of all tensors together or
    of one. `compared` is what strategies.judge.check.compare returns.
    """

    steps = list(range(1, len(compared["losses"]) + 1))
    titles = [word("loss_float64", lang), word("difference_from_one", lang)]
    figure = panels(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    losses = [
        (word("one_device", lang), compared["reference_losses"], 7, 0),
        (word("this_run", lang), compared["losses"], 2, 9),
    ]
    for number, (label, values, width, mark) in enumerate(losses):
        line = {"color": SERIES[1 - number], "width": width}
        mode = "lines+markers" if mark else "lines"
        figure.add_trace(
            trace(
                "scatter", name=label, x=steps, y=list(values), mode=mode, line=line, marker={"size": mark}
            ),
            row=1,
            col=1,
        )
    by_step = compared["by_step"]
    tensors = sorted(by_step["grad"][0])
    for number, kind in enumerate(("grad", "weight")):
        figure.add_trace(
            trace(
                "scatter",
                name=word(f"largest_{kind}", lang),
                x=steps,
                y=_shown(by_step[kind], None),
                mode="lines+markers",
                line={"color": SERIES[2 + number], "dash": ("solid", "dash")[number], "width": 3},
                marker={"size": 10, "symbol": ("circle", "square")[number]},
                hovertemplate="%{y:.2e}<extra>%{fullData.name}</extra>",
            ),
            row=1,
            col=2,
        )
    limit = {"color": "#a32a00", "dash": "dot", "width": 2}
    ends = [0.5, len(steps) + 0.5]
    allowed = trace(
        "scatter",
        name=word("tolerance", lang),
        x=ends,
        y=[TOLERANCE] * 2,
        mode="lines",
        hoverinfo="skip",
        line=limit,
    )
    figure.add_trace(allowed, row=1, col=2)
    choices = [(word("all_tensors", lang), None), *((t, t) for t in tensors)]
    buttons = [
        {
            "label": label,
            "method": "restyle",
            "args": [{"y": [_shown(by_step["grad"], t), _shown(by_step["weight"], t)]}, [2, 3]],
        }
        for label, t in choices
    ]
    figure.update_xaxes(title_text=word("step_number", lang), tickvals=steps, range=ends, **QUIET_AXIS)
    figure.update_yaxes(**QUIET_AXIS)
    every = [*compared["losses"], *compared["reference_losses"]]
    room = 0.1 * (max(every) - min(every)) or 0.05 * abs(every[0]) or 1.0
    figure.update_yaxes(
        range=[float(f"{v:.6g}") for v in (min(every) - room, max(every) + room)], row=1, col=1
    )
    figure.update_yaxes(type="log", range=[-18.4, -9.2], dtick=2, exponentformat="power", row=1, col=2)
    menu = {
        "buttons": buttons,
        "x": 1,
        "xanchor": "right",
        "y": 1.12,
        "yanchor": "bottom",
        "direction": "down",
    }
    figure.update_layout(**plain_layout(400, left=64, top=92), updatemenus=[menu])
    return figure


def _shown(by_step: list[dict[str, float]], tensor: str | None) -> list[float]:
    """Return the largest difference at each step, or that of one tensor; exactly zero becomes 1e-18."""
    values = [
        max(step.values(), default=0.0) if tensor is None else step.get(tensor, 0.0) for step in by_step
    ]
    return [float(f"{max(v, NOTHING):.3e}") for v in values]
