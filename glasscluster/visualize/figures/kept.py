"""What a layer keeps for backward, as a waterfall (tensor by tensor, each bar begins where the one above
ended) or as a stack for each parallel layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glasscluster.visualize.figures.layout import QUIET_AXIS, plain_layout
from glasscluster.visualize.figures.memory import byte_unit
from glasscluster.visualize.figures.palette import KEPT, SERIES
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import word


def waterfall(
    rows: Sequence[tuple[str, str, float, bool]], x: str, total: str, kinds: tuple[str, str]
) -> Picture:
    """Draw a waterfall. Each row is (name, term of the formula, size, whether it grows with s²); the last bar
    is the sum. `kinds` names the two colours.
    """

    ends = [0.0]
    for _, _, size, _ in rows:
        ends.append(ends[-1] + size)
    figure = Picture()
    for quadratic, hatch in ((False, ""), (True, "/")):
        chosen = [i for i, row in enumerate(rows) if row[3] is quadratic]
        figure.add_trace(
            trace(
                "bar",
                name=kinds[quadratic],
                orientation="h",
                y=[f"{rows[i][0]}  ({rows[i][1]})" for i in chosen],
                base=[float(f"{ends[i]:.7g}") for i in chosen],
                x=[float(f"{rows[i][2]:.7g}") for i in chosen],
                text=[f"{rows[i][2]:.3g}" for i in chosen],
                textposition="outside",
                cliponaxis=False,
                marker={
                    "color": SERIES[quadratic],
                    "pattern": {"shape": hatch, "fgcolor": "#ffffff", "size": 7, "solidity": 0.2},
                },
                hovertemplate="%{y}: %{x:.4g}<extra></extra>",
            )
        )
    figure.add_trace(
        trace(
            "bar",
            name=total,
            orientation="h",
            y=[total],
            x=[float(f"{ends[-1]:.7g}")],
            text=[f"{ends[-1]:.3g}"],
            textposition="inside",
            insidetextanchor="end",
            textfont={"color": "#ffffff", "size": 16},
            marker={"color": "#404040"},
            showlegend=False,
            hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        )
    )
    order = [f"{name}  ({term})" for name, term, _, _ in rows] + [total]
    figure.update_layout(
        **plain_layout(120 + 30 * len(order), left=10, right=40, top=20, bottom=90, size=14),
        barmode="overlay",
        bargap=0.2,
    )
    figure.update_xaxes(title={"text": x}, **QUIET_AXIS)
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], automargin=True)
    return figure


def by_layout(
    layouts: Mapping[str, tuple[Mapping[str, int], int | None]], lang: str = "en", title: str = ""
) -> Picture:
    """Draw one stack for each layout from the counted bytes of each kind of tensor (palette.KEPT), and a mark
    at the formula's sum where there is a formula.
    """

    totals = [sum(parts.values()) for parts, _ in layouts.values()]
    divisor, unit = byte_unit(max(totals))
    names, figure = list(layouts), Picture()
    for part, look in KEPT.items():
        name = word(f"part_{part}", lang)
        figure.add_trace(
            trace(
                "bar",
                name=name,
                x=names,
                y=[float(f"{parts.get(part, 0) / divisor:.6g}") for parts, _ in layouts.values()],
                marker={
                    "color": look.fill,
                    "pattern": {"shape": look.hatch, "fgcolor": look.ink, "size": 7, "solidity": 0.25},
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertemplate=f"%{{x}}<br>{name}: %{{y:.4g}} {unit}<extra></extra>",
            )
        )
    marks = [(name, theory / divisor) for name, (_, theory) in layouts.items() if theory is not None]
    figure.add_trace(
        trace(
            "scatter",
            name=word("by_formula", lang),
            x=[name for name, _ in marks],
            y=[float(f"{value:.6g}") for _, value in marks],
            mode="markers",
            marker={"symbol": "line-ew", "size": 60, "line": {"width": 4, "color": "#000000"}},
            hovertemplate=f"%{{x}}<br>{word('by_formula', lang)}: %{{y:.4g}} {unit}<extra></extra>",
        )
    )
    figure.update_layout(
        **plain_layout(460, left=80, right=20, top=50 if title else 24, bottom=120, size=15),
        barmode="stack",
        bargap=0.32,
    )
    figure.update_layout(title={"text": title, "x": 0, "xref": "paper", "font": {"size": 18}})
    figure.update_layout(legend_traceorder="normal", yaxis_range=[0, max(totals) / divisor * 1.14])
    figure.update_layout(
        annotations=[
            {
                "x": i,
                "y": t / divisor,
                "text": f"<b>{t / divisor:.3g} {unit}</b>",
                "showarrow": False,
                "yanchor": "bottom",
                "yshift": 5,
            }
            for i, t in enumerate(totals)
        ]
    )
    figure.update_yaxes(title={"text": word("kept_axis", lang, unit=unit)}, **QUIET_AXIS)
    figure.update_xaxes(type="category", tickfont={"size": 15})
    return figure
