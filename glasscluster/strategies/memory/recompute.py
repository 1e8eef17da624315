"""Activation recomputation: let activations go after forward, compute them again when backward needs them.

Follows Chen et al., "Training deep nets with sublinear memory cost" (1604.06174), and Korthikanti et al.
(2205.05198, section 5). Symbols: n layers, k layers a segment, C bytes of a layer's input, A bytes of
everything a layer keeps.

    none        keep                 n A
    selective   drop the attention core (Q K^T, softmax, its dropout, the sum over V), keep Q, K, V
    full        keep each segment's input; backward of a segment first runs its forward again

        x ──[ layer 0 · layer 1 ]── x' ──[ layer 2 · layer 3 ]── y        k = 2: x and x' stay, n/k C
             backward: run again, keep k A for a moment, use it, let it go

torch.utils.checkpoint without re-entry does the bookkeeping (the re-entrant kind runs a backward inside a
backward, and every gradient hook twice). What runs again is recorded as the phase "recompute". It stops at
the last tensor that was kept: without dropout that spares a segment its last matrix and, with tensor
parallelism, its last all-reduce. But: segments are equal; a last one may be shorter. No offloading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import sqrt
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.flash import costs, parts
from glasscluster.model.parallel import KeepAll
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.layout.segments import ends, last_spared, segments

CHECKPOINT = "checkpoint"  # what the memory ledger calls a tensor that is kept to start from


class Recompute(KeepAll):
    """What both kinds share: run a function without keeping its inside, and say so when it runs again."""

    def __init__(self, gpu: GPU, every: int = 1) -> None:
        self.gpu, self.every = gpu, every
        self.held = 0  # most bytes of checkpoints that were alive when a recomputation began
        with gpu.unrecorded():
            # torch.utils.checkpoint wants it: once, and not inside a recording
            import torch._dynamo  # noqa: F401

    def run(self, function: Callable[..., Tensor], *kept: Tensor) -> Tensor:
        """function(*kept), of which only `kept` stays for backward."""
        for x in kept:
            self.gpu.memory.register(x, "activations", CHECKPOINT)
        # dropout hashes where an element stands, so there is no generator state to put back
        return checkpoint(
            function,
            *kept,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), self.again()),
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        """Around what is computed again."""
        self.held = max(self.held, self.gpu.memory.named(CHECKPOINT))
        self.active = True
        try:
            with self.gpu.region("recompute"):
                yield
        finally:
            self.active = False


class Selective(Recompute):
    """Only the attention core: a quadratic part of the memory for a small part of the work."""

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q, K and V stay."""
        return self.run(attention, q, k, v)


class Full(Recompute):
    """Whole segments of `every` layers."""

    def layers(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Each segment's input stays."""
        for start in range(0, len(blocks), self.every):
            x = self.run(partial(self.segment, blocks[start : start + self.every], draw=draw), x)
        return x

    def segment(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """A few layers, as they are."""
        return KeepAll.layers(self, blocks, x, draw)


KINDS: dict[str, Callable[[GPU, int], KeepAll]] = {
    "none": lambda _gpu, _every: KeepAll(),
    "selective": Selective,
    "full": Full,
}


# ---- theory ------------------------------------------------------------------------------------------------


def predict_peak(layers: int, every: int, checkpoint_bytes: float, layer_bytes: float) -> float:
    """Eq 29: ceil(n/k) C + k A."""
    return len(segments(layers, every)) * checkpoint_bytes + every * layer_bytes


def best_every(layers: int, checkpoint_bytes: float, layer_bytes: float) -> float:
    """Eq 29: k = sqrt(n C / A), which is sqrt(n) only where a layer's input is all it keeps."""
    return sqrt(layers * checkpoint_bytes / layer_bytes)


def predict_checkpoints(
    kind: str,
    model: ModelConfig,
    layers: int,
    every: int,
    sequences: int,
    tp: int,
    width: int,
    pieces: int = 1,
    cp: int = 1,
) -> int:
    """Bytes kept to start from, of a stage and micro-batch: w·sbh a segment, or Q, K and V a layer (3w·sbh/t
    with a key head a query).

    `pieces`: ranks that a segment's input is cut over (cp, and t with sequence parallelism). With fewer key
    heads than t, K and V of a whole head beside what they were gathered from.
    """
    tokens = sequences * model.seq
    columns = (model.query_width + 2 * model.key_width) // tp
    if model.kv_latent:
        columns = 3 * model.heads * model.score_dim // tp
    elif model.transforms_qk:
        columns = model.query_width // tp + 2 * max(model.key_width // tp, model.head_dim)
    elif tp > model.key_heads:
        columns = (model.query_width // tp if model.qkv == "separate" else columns) + 2 * model.head_dim
    full = width * tokens * model.hidden // pieces * len(segments(layers, every))
    return {"none": 0, "selective": width * tokens // cp * columns * layers, "full": full}[kind]


def predict_flops(
    kind: str,
    model: ModelConfig,
    layers: int | Sequence[int],
    every: int,
    sequences: int,
    *,
    pairs: int | None = None,
    spares: Sequence[bool] | None = None,
    routers: int = 1,
    latents: int = 1,
    assignments: int = 0,
) -> int:
    """FLOPs that run again on the ranks of one replica together, of a stage and micro-batch.

    layers: which ones the stage has; a number: the first ones. pairs: query-key pairs of all heads, ranks and these
    layers, of a sequence (None: those of flash attention's tiles, without context parallelism); spares: of each
    segment, its last matrix is not run again; routers, latents: ranks that do the same router, or the same way
    down to latents; assignments: of all the layers' tokens to experts.
    """
    b, s, h, a, u = sequences, model.seq, model.hidden, model.heads, model.gates
    layers = range(layers) if isinstance(layers, int) else layers
    scores = 2 * b * s * s * a * model.score_dim * len(layers)
    if pairs is None:
        windows = (model.window_of(layer) for layer in layers)
        masks = (parts.whole(s, model.causal, model.prefix, window) for window in windows)
        pairs = a * sum(map(costs.pairs, masks))
    flash = 4 * b * pairs * model.score_dim
    core = flash if model.attention == "flash" else 2 * scores
    if kind != "full":
        # the sum over V is not run again: what it keeps are its inputs, and there recomputation stops
        return (flash if model.attention == "flash" else scores) if kind == "selective" else 0
    attention = len(layers) * 2 * b * s * (model.head_products + latents * model.down * h) + core
    dense = 2 * b * s * (u + 1) * h * sum(map(model.dense_width, layers))
    experts = 2 * b * s * h * model.experts * routers * sum(map(model.routed, layers))
    experts += 2 * assignments * (u + 1) * h * model.expert_width
    last = ends(layers, every)
    if spares is None:
        spares = [last_spared(model, layer) for layer in last]
    stopped = [model.dense_width(layer) for layer, spared in zip(last, spares, strict=True) if spared]
    return attention + dense + experts - 2 * b * s * h * sum(stopped)
