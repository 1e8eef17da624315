"""B3: how many bytes attention moves, counted by the kernel itself."""

from __future__ import annotations

import math
from typing import Any

import torch

from glasscluster.model.flash_attention import TILE, forward
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import lines


def program(gpu: Any, sizes: list[int], d: int) -> dict[int, dict[str, int]]:
    """Elements through slow memory for each N: tiled and textbook, by a meter inside the loops."""

    counted = {}
    for n in sizes:
        q, k, v = torch.randn(3, 1, 1, n, d, generator=torch.Generator().manual_seed(n))
        moved = [0, 0]
        with gpu.unrecorded():

            def hear(_what: str, nbytes: int, moved: list[int] = moved) -> None:
                moved[0] += nbytes

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
            "close": int(torch.allclose(out, plain, atol=1e-5)),
        }
    return counted


@lesson
def flash_attention_io(lab: Lab, n: int = 2048, d: int = 64) -> None:
    """The kernel that trains the GPT runs with a meter on its loads and stores, beside the textbook version."""

    sizes = [n // 8, n // 4, n // 2, n]
    run = lab.run("attention", lab.text("attention_metered"), program, sizes, d, gpus=1)
    counted = run.results[0]
    ratio = counted[n]["textbook"] / counted[n]["flash"]
    lab.ask("number", ratio, "×", n=n, d=d, TILE=TILE)
    for size in sizes:
        lab.row(
            "tiled",
            2 * size * d + 2 * math.ceil(size / TILE) * size * d + size,
            counted[size]["flash"],
            "F7",
            unit="elements",
            size=size,
        )
        lab.row(
            "textbook",
            4 * size**2 + 4 * size * d,
            counted[size]["textbook"],
            "F7",
            unit="elements",
            size=size,
        )
    lab.row(
        "sizes_both_give_same_output",
        len(sizes),
        sum(c["close"] for c in counted.values()),
        "to 1e-5",
        unit="sizes",
    )
    lab.figure(
        "elements_through_slow_memory",
        lambda lang: lines(
            {
                names[lang][i]: (sizes, [counted[s][k] for s in sizes])
                for i, k in enumerate(("textbook", "flash"))
            },
            lab.word("sequence_length", lang),
            lab.word("elements_moved", lang),
            log_x=True,
            log_y=True,
        ),
    )
    lab.tell(
        "textbook_moves_elements_tiled",
        n=n,
        textbook=counted[n]["textbook"],
        flash=counted[n]["flash"],
        ratio=ratio,
    )
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.own_number(ratio=ratio, n=n, d=d)
