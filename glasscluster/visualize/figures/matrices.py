"""A block's matrices as tensor parallelism shards them: which rank has which shard, and where sums over ranks
are needed.

    x ──f──► [ Q K V ] ─► attention ─► [ out ] ──g──► + ──f──► [ up ] ─► GELU ─► [ down ] ──g──► +

Drawn from the parameters of a stage: every rectangle is a weight with its own shape (as in x A: its height is
the input, its width the output). To find its shards, its Shard is applied to the numbers 1, 2, 3, ... along
the sharded dimension. A matrix cut by columns (out) begins a region, one cut by rows (in) ends it with a sum.
Nothing here knows what a block contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Shard, Unsharded
from glasscluster.visualize.figures.layout import INK, plain_layout
from glasscluster.visualize.figures.palette import SERIES, contrast
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import word

COLOURS = (*SERIES, "#5f6368", "#8c2d62")  # one for each rank; the rank's number is written on it
WHOLE, SUM = (
    "#d9d9d9",
    "#a84300",
)  # grey for what all ranks have; f and g in a collective's orange, dark enough to read
ROW = 360  # height of a block in pixels
GAP, WORDS = (
    0.42,
    1.85,
)  # in units of the hidden size: the gap between matrices of a region, and the room for f or g with its text


@dataclass(frozen=True)
class Piece:
    """Consecutive columns or rows [start, stop) of a matrix, in its block number `block`, held by `rank` (-1:
    by all ranks).
    """

    rank: int
    block: int
    start: int
    stop: int


def pieces(shape: tuple[int, ...], shard: Shard | None, ranks: int) -> list[Piece]:
    """Return which rank has which rows or columns of a parameter. Its Shard is applied to the numbers 1, 2,
    3, ... along the sharded dimension; 0 is padding.
    """
    if shard is None or ranks == 1:
        return [Piece(-1, 0, 0, shape[0])]
    n = shape[shard.dim]
    ends = torch.tensor(shard.blocks or (n,)).cumsum(0)
    ruler = torch.arange(1, n + 1).view([n if d == shard.dim else 1 for d in range(len(shape))])
    cuts = []
    for rank in range(ranks):
        mine = shard.take(ruler, rank, ranks).flatten()
        mine = mine[mine > 0] - 1
        block = torch.searchsorted(ends, mine, right=True)
        for run in mine.tensor_split(
            (((mine.diff() != 1) | (block.diff() != 0)).nonzero().flatten() + 1).tolist()
        ):
            if len(run):
                cuts.append(
                    Piece(
                        rank, int(torch.searchsorted(ends, run[0], right=True)), int(run[0]), int(run[-1]) + 1
                    )
                )
    return cuts


class _Ranks(Unsharded):
    """Takes the place of tensor parallelism when only shapes are needed."""

    def __init__(self, size: int) -> None:
        self.size = size


def stage_of(model: ModelConfig, ranks: int) -> GPTStage:
    """Make a stage of one layer on the meta device: parameters with shapes and without data."""
    return GPTStage(model, [0], False, False, _Ranks(ranks), device=torch.device("meta"))


@dataclass(frozen=True)
class _Matrix:
    """A weight: its name, its full shape [out, in], and how it is sharded (None: not at all)."""

    name: str
    out: int
    into: int
    shard: Shard | None


def matrices(stage: GPTStage, ranks: int) -> list[_Matrix]:
    """Return the two-dimensional weights of a stage's first block, with their full shapes."""
    weights = []
    for name, (parameter, shard) in stage.full_names().items():
        if name.startswith("layers.") and name.endswith("_weight") and parameter.ndim == 2:
            whole = list(parameter.shape)
            if shard is not None:
                whole[shard.dim] = sum(shard.blocks) if shard.blocks else whole[shard.dim] * ranks
            weights.append(_Matrix(name.split(".")[-1].removesuffix("_weight"), whole[0], whole[1], shard))
    return weights


def matrices_figure(
    blocks: Mapping[str, ModelConfig],
    ranks: int,
    lang: str = "en",
    sequence_parallel: bool = False,
    title: str = "",
) -> Picture:
    """Draw one row for each model: the matrices of a block side by side, each shard in its rank's colour,
    with f and g where a tensor-parallel region begins and ends.
    """

    figure = Picture()
    seen: set[int] = set()
    rows = [list(_placed(matrices(stage_of(model, ranks), ranks), model.hidden)) for model in blocks.values()]
    ends = [
        (x + m.out / model.hidden, m.into / model.hidden)
        for row, model in zip(rows, blocks.values(), strict=True)
        for x, m in row
    ]
    wide, tall = (max(e) for e in zip(*ends, strict=True))
    for number, ((name, model), drawn) in enumerate(zip(blocks.items(), rows, strict=True), start=1):
        axis = "" if number == 1 else str(number)
        for rank in range(-1, ranks):
            rects = [r for r in _rectangles(drawn, ranks, model.hidden) if r["rank"] == rank]
            if rects:
                figure.add_trace(_bars(rank, rects, axis, lang, rank not in seen))
                seen.add(rank)
        figure.add_annotation(
            text=f"<b>{name}</b>",
            x=0,
            y=1.0,
            xref="paper",
            yref=f"y{axis} domain",
            xanchor="left",
            yanchor="top",
            showarrow=False,
            font={"size": 17},
        )
        for note in _notes(drawn, model, ranks, lang, sequence_parallel):
            figure.add_annotation(**note, xref=f"x{axis}", yref=f"y{axis}", showarrow=False)
        top, share, quiet = (
            1 - (number - 1) / len(blocks),
            1 / len(blocks),
            {"visible": False, "fixedrange": True},
        )
        across = {**quiet, "anchor": f"y{axis}", "range": [0, wide + WORDS]}
        down = {
            **quiet,
            "anchor": f"x{axis}",
            "domain": [top - 0.96 * share, top],
            "range": [-tall / 2 - 0.8, tall / 2 + 0.2],
        }
        figure.update_layout({f"xaxis{axis}": across, f"yaxis{axis}": down})
    figure.update_layout(
        **plain_layout(
            ROW * len(blocks) + 70, left=30, right=30, top=46 if title else 16, bottom=58, size=15
        ),
        barmode="overlay",
    )
    figure.update_layout(title={"text": title, "x": 0, "xref": "paper", "font": {"size": 18}})
    figure.update_layout(uniformtext={"minsize": 11, "mode": "hide"}, legend_traceorder="normal")
    return figure


def _placed(weights: list[_Matrix], hidden: int) -> Iterator[tuple[float, _Matrix]]:
    """Yield each weight with its left edge, in units of the hidden size."""
    x = WORDS
    for matrix in weights:
        yield x, matrix
        x += matrix.out / hidden + (2 * WORDS if _ends(matrix) else GAP)


def _begins(matrix: _Matrix) -> bool:
    return matrix.shard is not None and matrix.shard.dim == 0


def _ends(matrix: _Matrix) -> bool:
    return matrix.shard is not None and matrix.shard.dim == 1


def _rectangles(drawn: list[tuple[float, _Matrix]], ranks: int, hidden: int) -> Iterator[dict[str, Any]]:
    """Compute the rectangle of every shard: left, bottom, width and height in units of the hidden size."""
    for x, m in drawn:
        height = m.into / hidden
        for p in pieces((m.out, m.into), m.shard, ranks):
            along, size = p.start / hidden, (p.stop - p.start) / hidden
            if _ends(m):  # row numbers, counted from the top
                box = {"x": x, "y": height / 2 - along - size, "width": m.out / hidden, "height": size}
            else:
                box = {"x": x + along, "y": -height / 2, "width": size, "height": height}
            shape = f"{m.into} × {p.stop - p.start}" if _begins(m) else f"{p.stop - p.start} × {m.out}"
            yield {**box, "rank": p.rank, "says": f"{m.name}: {shape}"}


def _bars(rank: int, rects: list[dict[str, Any]], axis: str, lang: str, legend: bool) -> Any:
    fill = WHOLE if rank < 0 else COLOURS[rank % len(COLOURS)]
    name = word("on_all_ranks", lang) if rank < 0 else f"{word('rank', lang)} {rank}"
    return trace(
        "bar",
        name=name,
        legendgroup=name,
        showlegend=legend,
        xaxis=f"x{axis}",
        yaxis=f"y{axis}",
        x=[float(f"{r['x'] + r['width'] / 2:.6g}") for r in rects],
        width=[float(f"{r['width']:.6g}") for r in rects],
        base=[float(f"{r['y']:.6g}") for r in rects],
        y=[float(f"{r['height']:.6g}") for r in rects],
        text=[str(rank) if rank >= 0 else "" for r in rects],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={
            "size": 15,
            "color": "#ffffff" if contrast("#ffffff", fill) > contrast("#000000", fill) else "#000000",
        },
        customdata=[r["says"] for r in rects],
        hovertemplate=f"{name}<br>%{{customdata}}<extra></extra>",
        marker={"color": fill, "line": {"color": "#ffffff", "width": 1.5}},
    )


def _notes(
    drawn: list[tuple[float, _Matrix]], model: ModelConfig, ranks: int, lang: str, cut: bool
) -> Iterator[dict[str, Any]]:
    """Write the names below the matrices, f and g between them, and which ranks share heads."""
    h = model.hidden
    for place, (x, m) in enumerate(drawn):
        names = (
            "QKV"
            if m.shard is not None and len(m.shard.blocks) == 3
            else [word("gate", lang), word("value", lang)]
        )
        blocks = m.shard.blocks if m.shard is not None and len(m.shard.blocks) > 1 else ()
        low, at = -m.into / (2 * h), x
        for name, n in zip(names, blocks, strict=False):
            yield {
                "x": at + n / (2 * h),
                "y": -low,
                "text": name,
                "yanchor": "bottom",
                "font": {"size": 14, "color": INK},
            }
            at += n / h
        kind = word("by_columns" if _begins(m) else "by_rows" if _ends(m) else "on_all_ranks", lang)
        what = f"<b>{m.name}</b> {m.into} × {m.out}<br>{kind}"
        if m.name in ("qkv", "k") and model.key_heads < ranks:
            note = word("shared_heads", lang, heads=model.key_heads, ranks=ranks // model.key_heads)
            yield {
                "x": x,
                "y": -low,
                "text": note,
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 22,
                "font": {"size": 14, "color": INK},
            }
        yield {
            "x": x + m.out / (2 * h),
            "y": low,
            "text": what,
            "yanchor": "top",
            "yshift": -4,
            "font": {"size": 14, "color": INK},
        }
        first = _begins(m) and (place == 0 or not _begins(drawn[place - 1][1]))
        if ranks > 1 and (first or _ends(m)):
            letter, way = (
                ("f", "f_scatters" if cut else "f_reduces")
                if first
                else ("g", "g_scatters" if cut else "g_reduces")
            )
            where = x - 0.06 if first else x + m.out / h + 0.06
            text = f"<b>{letter}</b><br>{word(way, lang)}"
            yield {
                "x": where,
                "y": 0,
                "text": text,
                "xanchor": "right" if first else "left",
                "font": {"size": 15, "color": SUM},
            }
