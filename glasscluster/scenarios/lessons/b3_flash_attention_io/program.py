"""B3: how many bytes attention moves, counted by the kernel itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glasscluster.model.kernels.flash.algorithm import forward
from glasscluster.model.kernels.flash.tiles import STRIP, TILE
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import lines


class Largest(TorchDispatchMode):
    """Hears how many elements the largest tensor has that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at what it made."""
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, (tuple, list)) else [made]
        self.elements = max(self.elements, *(x.numel() for x in tensors if isinstance(x, torch.Tensor)), 0)
        return made


def program(gpu: Any, sizes: list[int], d: int) -> dict[int, dict[str, int]]:
    """Count the elements through slow memory for each N, tiled and textbook, with a meter inside the
    loops.
    """

    counted = {}
    for n in sizes:
        q, k, v = torch.randn(3, 1, 1, n, d, generator=torch.Generator().manual_seed(n))
        moved, sizes_made = [0, 0], Largest()
        with gpu.unrecorded():

            def hear(_what: str, nbytes: int, moved: list[int] = moved) -> None:
                moved[0] += nbytes

            with sizes_made:
                out, _ = forward(q, k, v, False, meter=hear)

            def touch(*tensors: Any, moved: list[int] = moved) -> None:
                moved[1] += sum(t.numel() * t.element_size() for t in tensors)

            scores = q @ k.mT * d**-0.5
            touch(q, k, scores)
            weights = scores.softmax(-1)
            touch(scores, weights)
            plain = weights @ v
            touch(weights, v, plain)
        counted[n] = {
            "flash": moved[0] // 4,
            "textbook": moved[1] // 4,
            "largest": sizes_made.elements,
            "close": int(torch.allclose(out, plain, atol=1e-5)),
        }
    return counted


@lesson
def flash_attention_io(lab: Lab, n: int = 2048, d: int = 64) -> None:
    """The kernel that trains the GPT runs with a meter on its loads and stores, beside the textbook
    version.
    """

    sizes = [n // 8, n // 4, n // 2, n]
    run = lab.run("attention", lab.text("attention_metered"), program, sizes, d, gpus=1)
    counted = run.results[0]
    ratio = counted[n]["textbook"] / counted[n]["flash"]
    lab.ask("ratio", ratio, n=n, d=d, TILE=TILE)
    for size in sizes:
        of_n, tiles = counted[size], math.ceil(size / TILE)
        tiled = 2 * size * d + 2 * tiles * size * d + size
        lab.row("tiled", tiled, of_n["flash"], "Eq 7", unit="elements", size=size)
        textbook = 4 * size**2 + 4 * size * d
        lab.row("textbook", textbook, of_n["textbook"], "Eq 7", unit="elements", size=size)
        # scores of a tile of queries against a strip of keys, or Q itself
        most = max(min(TILE, size) * min(STRIP * TILE, size), size * d)
        lab.row("largest_tensor", most, of_n["largest"], "Eq 7: no N²", unit="elements", size=size)
    same = sum(c["close"] for c in counted.values())
    lab.row("same_output", len(sizes), same, "to 1e-5", unit="sizes")

    def elements(lang: str) -> Any:
        kinds = ("textbook", "flash")
        series = {lab.word(kind, lang): (sizes, [counted[s][kind] for s in sizes]) for kind in kinds}
        axes = (lab.word("sequence_length", lang), lab.word("elements_moved", lang))
        return lines(series, *axes, log_x=True, log_y=True)

    lab.figure("elements", elements)
    lab.tell(
        "textbook_and_tiled",
        n=n,
        textbook=counted[n]["textbook"],
        flash=counted[n]["flash"],
        ratio=ratio,
    )
    half = n // 2
    grown = {kind: counted[n][kind] / counted[half][kind] for kind in ("flash", "textbook")}
    lab.tell("still_quadratic", half=half, n=n, grown=grown["flash"], grown_textbook=grown["textbook"])
    held: dict[str, Any] = {"largest": counted[n]["largest"], "scores": n**2}
    lab.tell("largest_tensor", **held)
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.card(grown=grown["flash"], limit=2 * TILE / d, **held)
    lab.own_number(ratio=ratio, n=n, d=d)
