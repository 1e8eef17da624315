"""FlashAttention in torch, torch's own kernel and the textbook on a CPU: python -m benchmarks.attention

Goals at length 4096, forward: 1.3 times the time of `scaled_dot_product_attention`; less than a fifth of the
textbook's time and memory. Times are CPU seconds of one thread, which other processes on the machine disturb
least, the variants taking turns; `wall_2_threads` is what a clock on the wall says of two threads. `products`
is what no exact attention does without: the two products, tile by tile, with no softmax between them. Memory
is what a process of its own grows by above its inputs, at its peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.flash.tiles import SCORES_PER_THREAD, STRIP, TILE
from glasscluster.model.layers.attention import unfused_attention

LENGTH, HEADS, HEAD_SIZE = 4096, 4, 64
REPEATS = 11
VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor, bool], Tensor]] = {
    "flash": flash_attention,
    "torch": lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
    "textbook": unfused_attention,
}


def inputs() -> list[Tensor]:
    """q, k, v and the output's gradient, float32."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, HEADS, LENGTH, HEAD_SIZE, generator=generator) for _ in range(4)]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def once(name: str, causal: bool, tensors: list[Tensor], clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    q, k, v, d_out = tensors
    begun = clock()
    out = VARIANTS[name](q, k, v, causal)
    middle = clock()
    torch.autograd.grad(out, (q, k, v), d_out)
    return middle - begun, clock() - middle


def products(causal: bool, tensors: list[Tensor], clock: Callable[[], float]) -> float:
    """Seconds of S = Q K^T and S V alone, in the flash kernel's tiles, strips and workspace."""
    q, k, v = (x[0].detach() for x in tensors[:3])
    strip = TILE * STRIP
    together = SCORES_PER_THREAD * torch.get_num_threads() // (TILE * strip)  # heads in one product
    space, begun = torch.empty(together * TILE * strip), clock()
    for heads in (slice(a, a + together) for a in range(0, HEADS, together)):
        keys, out = k[heads].mT.contiguous(), torch.zeros_like(q[heads])
        for row in range(0, LENGTH, TILE):
            end = row + TILE if causal else LENGTH
            for a in range(0, end, strip):
                b = min(a + strip, end)
                scores = space[: len(keys) * TILE * (b - a)].view(len(keys), TILE, b - a)
                torch.bmm(q[heads, row : row + TILE], keys[:, :, a:b], out=scores)
                out[:, row : row + TILE].baddbmm_(scores, v[heads, a:b])
    return clock() - begun


def times(causal: bool, threads: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Fastest run of each variant, in seconds.

    Ratios to another variant: the fastest over the fastest, and the median of neighbouring runs.
    """
    torch.set_num_threads(threads)
    tensors = inputs()
    runs, alone = [], []
    for _ in range(REPEATS + 1):
        runs.append({name: once(name, causal, tensors, clock) for name in VARIANTS})
        alone.append(products(causal, tensors, clock))
    runs, least = runs[1:], min(alone[1:])
    found: dict[str, dict[str, float]] = {}
    for i, way in enumerate(("forward", "backward")):
        fastest = {name: min(r[name][i] for r in runs) for name in VARIANTS}
        found[way] = {f"{name}_ms": round(seconds * 1e3, 1) for name, seconds in fastest.items()}
        for other in ("torch", "textbook"):
            found[way][f"flash/{other}"] = round(fastest["flash"] / fastest[other], 2)
            found[way][f"flash/{other}, median"] = round(median(r["flash"][i] / r[other][i] for r in runs), 2)
    found["forward"]["products/textbook"] = round(least * 1e3 / found["forward"]["textbook_ms"], 2)
    return found


def peak() -> int:
    """Most bytes this process ever held. Linux: `getrusage` would begin with what the parent held."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def grown(name: str, causal: bool) -> int:
    """Bytes by which this process's peak grows in a forward pass. Run in a process of its own."""
    q, k, v, _ = (x.detach() for x in inputs())
    small = [x[:, :, :8] for x in (q, k, v)]
    VARIANTS[name](*small, causal)  # libraries load their code and threads' buffers
    before = peak()
    VARIANTS[name](q, k, v, causal)
    return peak() - before


def memory(causal: bool) -> dict[str, float]:
    """MiB of each variant, forward, and ours as a share of the textbook's."""
    call = [sys.executable, "-m", "benchmarks.attention", "peak", str(int(causal))]
    found = {}
    for name in VARIANTS:
        done = subprocess.run([*call, name], capture_output=True, text=True, check=True)
        found[name] = int(done.stdout)
    mib: dict[str, float] = {f"{name}_MiB": round(nbytes / 2**20, 1) for name, nbytes in found.items()}
    return mib | {"flash/textbook": round(found["flash"] / found["textbook"], 3)}


def measure() -> dict[str, Any]:
    """Both masks: CPU time of one thread, wall time of two, memory."""
    goals = {"flash/torch": 1.3, "flash/textbook": 0.2}
    found: dict[str, Any] = {"shape": [1, HEADS, LENGTH, HEAD_SIZE], "goals forward": goals}
    for causal in (False, True):
        found["causal" if causal else "all pairs"] = {
            "cpu_1_thread": times(causal, 1, time.process_time),
            "wall_2_threads": times(causal, 2, time.perf_counter),
            "memory_forward": memory(causal),
        }
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(grown(sys.argv[3], bool(int(sys.argv[2]))))
    else:
        print(json.dumps(measure(), indent=1))
