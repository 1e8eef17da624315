"""Attention's FLOPs, bytes and memory against length, counted: python -m benchmarks.attention_costs

One head of 64, float32, nothing masked, forward and backward, recorded dry (the `meta` device); beside Eq 7
of 2205.14135 and 2307.08691. The figures are the table and the picture of docs/attention.md.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch

from glasscluster.model.kernels.flash.tiles import TILE
from glasscluster.model.layers.attention import ATTENTION
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.sim.run import Cluster

LENGTHS, D = (512, 1024, 2048, 4096, 8192, 16384), 64


def program(gpu: Any, kind: str, n: int, backward: bool) -> None:
    """One attention; q, k and v are made before the step that is recorded begins."""
    q, k, v = (torch.empty(1, 1, n, D, device=gpu.device, requires_grad=backward) for _ in range(3))
    out = ATTENTION[kind](q, k, v, False)
    if backward:
        torch.autograd.grad(out, (q, k, v), torch.empty_like(out))


def counted(kind: str, n: int) -> dict[str, int]:
    """FLOPs and slow-memory bytes of each way, and the most bytes alive at once in both.

    Inputs and gradients are alive, too.
    """
    found = {}
    for way in (False, True):
        run = Cluster("classroom", 1, "dry", memory_bytes=None).run(program, kind, n, way)
        rows = run.graph.kind == COMPUTE
        flops, nbytes = int(run.graph.flops[rows].sum()), int(run.graph.bytes[rows].sum())
        found[way] = (flops, nbytes, run.peak_memory()[0][0])
    (flops, nbytes, _), (both_flops, both_bytes, peak) = found[False], found[True]
    return {
        "flops": flops,
        "bytes": nbytes,
        "backward_flops": both_flops - flops,
        "backward_bytes": both_bytes - nbytes,
        "peak": peak,
    }


def f7(kind: str, n: int, d: int = D, tile: int = TILE) -> int:
    """Elements that forward moves, by formula."""
    return 4 * n * n + 4 * n * d if kind == "unfused" else 2 * n * d + 2 * math.ceil(n / tile) * n * d + n


def measure() -> list[dict[str, Any]]:
    """A row for each length."""
    return [{"n": n, "flash": counted("flash", n), "unfused": counted("unfused", n)} for n in LENGTHS]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown. FLOPs in units of n² d, bytes in MB (10^6)."""
    names = ["N", "FLOPs / N²d, forward", "backward", "MB moved forward: textbook (Eq 7)", "flash (Eq 7)"]
    names += ["backward: textbook", "flash", "peak MB: textbook", "flash"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        n, kinds = row["n"], ("unfused", "flash")
        units = ([row[x][f] / (n * n * D) for x in kinds] for f in ("flops", "backward_flops"))
        cells = [f"textbook {textbook:.2f}, flash {flash:.2f}" for textbook, flash in units]
        cells += [f"{row[x]['bytes'] / 1e6:.2f} ({4 * f7(x, n) / 1e6:.2f})" for x in kinds]
        cells += [f"{row[x][f] / 1e6:.2f}" for f in ("backward_bytes", "peak") for x in kinds]
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]]) -> Any:
    """Bytes moved forward and peak memory against length, both logarithmic."""
    from glasscluster.visualize.figures.plots import lines

    names = {"unfused": "textbook", "flash": "flash"}
    lengths, series = [r["n"] for r in rows], {}
    for what, column in {"bytes moved, forward": "bytes", "peak memory": "peak"}.items():
        for x, name in names.items():
            series[f"{name}: {what}"] = lengths, [r[x][column] for r in rows]
    last = rows[-1]
    held, moved = (last["unfused"][what] / last["flash"][what] for what in ("peak", "bytes"))
    less = f"flash moves {moved:.1f} times fewer bytes and holds {held:.0f} times fewer"
    answer = f"{last['n']:,} tokens: {less}"
    figure = lines(series, "length N (tokens)", "bytes", log_x=True, log_y=True)
    figure.update_yaxes(exponentformat="SI", dtick=1)
    return figure.update_layout(title={"text": answer, "x": 0.02, "y": 0.97}, margin_t=48)


if __name__ == "__main__":
    found = measure()
    print(table(found))
    if sys.argv[1:]:
        from glasscluster.visualize.figures.thumbnail import figure_svg

        Path(sys.argv[1]).write_text(figure_svg(picture(found), "Bytes moved and held against length"))
