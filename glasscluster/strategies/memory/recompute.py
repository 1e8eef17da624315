"""Activation recomputation: free activations after forward, and compute them again when backward needs them.

Follows Chen et al., "Training deep nets with sublinear memory cost" (1604.06174), and Korthikanti et al.
(2205.05198, section 5). Symbols: n layers, k layers a segment, C bytes of a layer's input, A bytes of
everything a layer keeps.

    none        keep everything, n A
    selective   drop the attention core (Q K^T, softmax, its dropout, the sum over V), keep Q, K, V
    full        keep each segment's input; backward of a segment first runs its forward again

        x ──[ layer 0 · layer 1 ]── x' ──[ layer 2 · layer 3 ]── y        k = 2: x and x' stay, n/k C
             backward of a segment: run its forward again, hold k A until its backward is over

torch.utils.checkpoint with use_reentrant=False does the bookkeeping (the re-entrant variant runs a backward
inside a backward, and with it every gradient hook twice). What runs again is recorded as phase "recompute".
It ends when the last tensor that backward needs has been computed; without dropout this spares a segment its
last matrix product and, with tensor parallelism, its last all-reduce.

But: all segments have the same number of layers, but for a shorter last one; activations are not offloaded.
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
    """What selective and full recomputation share: run a function without saving its intermediate tensors.

    `held` is the most bytes of checkpoints that were alive when a recomputation began.
    """

    def __init__(self, gpu: GPU, every: int = 1) -> None:
        self.gpu, self.every = gpu, every
        self.held = 0
        with gpu.unrecorded():
            # torch.utils.checkpoint imports it at its first use, which must not be inside a recording
            import torch._dynamo  # noqa: F401

    def run(self, function: Callable[..., Tensor], *kept: Tensor) -> Tensor:
        """Compute function(*kept), and save only `kept` for backward."""
        for x in kept:
            self.gpu.memory.register(x, "activations", CHECKPOINT)
        # dropout hashes the position of an element, so there is no generator state to restore
        return checkpoint(
            function,
            *kept,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), self.again()),
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        """The context in which the forward runs again: it is recorded as phase "recompute"."""
        self.held = max(self.held, self.gpu.memory.named(CHECKPOINT))
        self.active = True
        try:
            with self.gpu.region("recompute"):
                yield
        finally:
            self.active = False


class Selective(Recompute):
    """Recompute only the attention core, whose memory grows with s² and whose FLOPs are a small share."""

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Run attention and save only Q, K and V for backward."""
        return self.run(attention, q, k, v)


class Full(Recompute):
    """Recompute whole segments of `every` layers."""

    def layers(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Run all blocks, and save only each segment's input for backward."""
        for start in range(0, len(blocks), self.every):
            x = self.run(partial(self.segment, blocks[start : start + self.every], draw=draw), x)
        return x

    def segment(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Run the layers of one segment."""
        return KeepAll.layers(self, blocks, x, draw)


KINDS: dict[str, Callable[[GPU, int], KeepAll]] = {
    "none": lambda _gpu, _every: KeepAll(),
    "selective": Selective,
    "full": Full,
}


# ---- theory ------------------------------------------------------------------------------------------------


def predict_peak(layers: int, every: int, checkpoint_bytes: float, layer_bytes: float) -> float:
    """Eq 29: the peak bytes of activations, ceil(n/k) C + k A, with n `layers` and k `every`."""
    return len(segments(layers, every)) * checkpoint_bytes + every * layer_bytes


def best_every(layers: int, checkpoint_bytes: float, layer_bytes: float) -> float:
    """Eq 29: the k with the lowest peak, sqrt(n C / A). It is sqrt(n) only where A = C."""
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
    """Bytes of checkpoints that a rank saves for a stage and micro-batch.

    Full recomputation saves w·sbh for each segment. Selective recomputation saves Q, K and V for each layer:
    3w·sbh/t where every query head has a key head of its own. Where t is larger than the number of key heads,
    K and V of a whole head are saved beside the columns that they were gathered from.

    Args:
        kind: "none", "selective" or "full".
        model: sizes of the model.
        layers: layers of the stage.
        every: layers of a segment.
        sequences: b, sequences of a micro-batch.
        tp: t.
        width: w, bytes of an element.
        pieces: ranks that a segment's input is cut over: cp, times t with sequence parallelism.
        cp: context-parallel ranks.
    """
    tokens = sequences * model.seq
    columns = (model.query_width + 2 * model.key_width) // tp
    if model.kv_latent:
        columns = model.heads * (2 * model.score_dim + model.value_dim(cp)) // tp
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
    cp: int = 1,
) -> int:
    """FLOPs that recomputation repeats for a stage and micro-batch, over all ranks of one replica.

    Args:
        kind: "none", "selective" or "full".
        model: sizes of the model.
        layers: layers of the stage by number; or how many, then they are the first ones.
        every: layers of a segment.
        sequences: b, sequences of a micro-batch.
        pairs: query-key pairs of a sequence, over all heads, ranks and layers of the stage; None: those of
            flash attention's tiles, without context parallelism.
        spares: for each segment, whether its last matrix is not repeated; None: as the model has it.
        routers: ranks that all compute the same router.
        latents: ranks that all compute the same projection to latents.
        assignments: assignments of tokens to experts, over all layers.
        cp: context-parallel ranks.
    """
    b, s, h, a, u = sequences, model.seq, model.hidden, model.heads, model.gates
    layers = range(layers) if isinstance(layers, int) else layers
    both = model.score_dim + model.value_dim(cp)  # columns of the products with K and with V
    pairs_written = b * s * s * a * len(layers)
    if pairs is None:
        masks = (parts.whole(s, model.causal, model.prefix, model.window_of(layer)) for layer in layers)
        pairs = a * sum(map(costs.pairs, masks))
    flash = 2 * b * pairs * both
    core = flash if model.attention == "flash" else 2 * pairs_written * both
    if kind != "full":
        # the product with V is not repeated: backward needs only its inputs, and recomputation ends with them
        again = flash if model.attention == "flash" else 2 * pairs_written * model.score_dim
        return again if kind == "selective" else 0
    attention = len(layers) * 2 * b * s * (model.head_products + latents * model.down * h) + core
    dense = 2 * b * s * (u + 1) * h * sum(map(model.dense_width, layers))
    experts = 2 * b * s * h * model.experts * routers * sum(map(model.routed, layers))
    experts += 2 * assignments * (u + 1) * h * model.expert_width
    last = ends(layers, every)
    if spares is None:
        spares = [last_spared(model, layer) for layer in last]
    stopped = [model.dense_width(layer) for layer, spared in zip(last, spares, strict=True) if spared]
    return attention + dense + experts - 2 * b * s * h * sum(stopped)
