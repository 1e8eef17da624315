"""Activation recomputation: free activations after forward, and compute them again when backward needs them.

Follows Chen et al., "Training deep nets with sublinear memory cost" (1604.06174), and Korthikanti et al.
(2205.05198, section 5). Symbols: n layers, k layers a segment, C bytes of a layer's input, A bytes of
everything a layer keeps.

    none        keep everything, n A
    selective   drop the attention core (Q K^T, softmax, its dropout, the sum over V), keep Q, K, V;
                and where it is asked for the MLP or the experts, of which the input is kept, or what norms,
                experts' activations and the way up from latents gave (discard.py)
    full        keep each segment's input; backward of a segment first runs its forward again
    each nth    full, for each nth layer alone; the others keep everything

        x ──[ layer 0 · layer 1 ]── x' ──[ layer 2 · layer 3 ]── y        k = 2: x and x' stay, n/k C
             backward of a segment: run its forward again, hold k A until its backward is over

torch.utils.checkpoint with use_reentrant=False does the bookkeeping (the re-entrant variant runs a backward
inside a backward, and with it every gradient hook twice). What runs again is recorded as phase "recompute".
It ends when the last tensor that backward needs has been computed; without dropout this spares a segment its
last matrix product and, with tensor parallelism, its last all-reduce.

But: all segments have the same number of layers, but for a shorter last one; activations are not offloaded.
torchtitan counts each nth layer on a rank, here it is counted in the model, so that no layout changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.flash import costs
from glasscluster.model.kernels.flash.parts import whole
from glasscluster.model.parallel import KeepAll
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.layout.segments import dense_again, ends, last_spared, segments
from glasscluster.strategies.memory.discard import Discarded, norms_discarded, predict_latents, tensors

CHECKPOINT = "checkpoint"  # what the memory ledger calls a tensor that is kept to start from
# Where an output is discarded: of which the input is counted as a checkpoint. Experts' rows are as many as the
# data says, so that nobody can say how many are kept at once.
STARTS = ("norm", "latent_up")


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
        layer = self.gpu.recorder.layer  # what runs again belongs to the layer that ran it first
        # dropout hashes the position of an element, so there is no generator state to restore
        return checkpoint(
            function,
            *kept,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: self.contexts(layer),
        )

    def contexts(self, layer: int) -> tuple[Any, Any]:
        """The contexts of running a function of `layer` in forward, and of running it again."""
        return nullcontext(), self.again(layer)

    def hold(self, nbytes: int) -> None:
        """Hear how many bytes of checkpoints are alive when a recomputation begins."""
        self.held = max(self.held, nbytes)

    @contextmanager
    def again(self, layer: int) -> Iterator[None]:
        """The context in which the forward runs again: it is recorded as phase "recompute" of a layer."""
        self.gpu.memory.note(CHECKPOINT, self.hold)
        self.active = True
        try:
            with self.gpu.region("recompute", layer=layer):
                yield
        finally:
            self.active = False


class Selective(Recompute):
    """Recompute parts of each layer: by default the attention core alone.

    The core's memory grows with s² and its FLOPs are a small share. `parts` (dialects.py) may have more.
    """

    def __init__(self, gpu: GPU, every: int = 1, parts: Sequence[str] = ("core",)) -> None:
        super().__init__(gpu, every)
        self.parts = parts

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Run attention and save only Q, K and V for backward."""
        return self.run(attention, q, k, v) if "core" in self.parts else attention(q, k, v)

    def branch(self, part: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """What runs the MLP or the experts, and saves only their input for backward."""
        return partial(self.run, function) if part in self.parts else function

    def discards(self, part: str) -> bool:
        """Whether what a part gives is made again; where nothing will go backward there is no need."""
        return part in self.parts and torch.is_grad_enabled()

    def behind(
        self, part: str, make: Callable[[Any], Any], use: Callable[[Any], Tensor], given: Any
    ) -> Tensor:
        """Compute use(make(given)), and save nothing of what `make` gives for backward."""
        if not self.discards(part):
            return super().behind(part, make, use, given)
        again = partial(self.again, self.gpu.recorder.layer)  # it belongs to the layer that ran it first
        discarded = Discarded(make, given, again, self.gpu.memory.call)
        result = discarded.used(use)
        for x in tensors(given) if part in STARTS and discarded.waiting else ():
            self.gpu.memory.register(x, "activations", CHECKPOINT)
        return result


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


class EachNth(Recompute):
    """Recompute each nth layer of the model, each by itself; the others keep everything.

    Follows torchtitan (`selective_ac_option = "n"`): of layers 1, 2, ... those whose number n divides.
    """

    def __init__(self, gpu: GPU, nth: int) -> None:
        super().__init__(gpu)
        self.nth = nth

    def layers(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Run all blocks, and save of each nth only its input for backward."""
        for block in blocks:
            chosen = (block.index + 1) % self.nth == 0
            x = self.run(partial(block, draw=draw), x) if chosen else block(x, draw)
        return x


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
    layers: int | Sequence[int],
    every: int,
    sequences: int,
    tp: int,
    width: int,
    pieces: int = 1,
    cp: int = 1,
    parts: Sequence[str] = ("core",),
    sequence_parallel: bool = False,
) -> int:
    """Bytes of checkpoints that a rank saves for a stage and micro-batch.

    Full recomputation saves w·sbh for each segment. Selective recomputation saves Q, K and V for each layer:
    3w·sbh/t where every query head has a key head of its own. Where t is larger than the number of key heads,
    K and V of a whole head are saved beside the columns that they were gathered from.

    Args:
        kind: "none", "selective" or "full".
        model: sizes of the model.
        layers: layers of the stage by number; or how many, then they are the first ones.
        every: layers of a segment.
        sequences: b, sequences of a micro-batch.
        tp: t.
        width: w, bytes of an element.
        pieces: ranks that a segment's input is cut over: cp, times t with sequence parallelism.
        cp: context-parallel ranks.
        parts: what selective recomputation drops; of the MLP, the experts, the shared expert and each norm it
            keeps the input, w·sbh. Where the norm runs again, the input of what is behind it is dropped, too.
        sequence_parallel: whether tokens are gathered over t before a layer's matrices.
    """
    tokens, layers = sequences * model.seq, range(layers) if isinstance(layers, int) else layers
    columns = (model.query_width + 2 * model.key_width) // tp
    if model.kv_latent:
        columns = model.heads * (2 * model.score_dim + model.value_dim(cp)) // tp
    elif model.transforms_qk:
        columns = model.query_width // tp + 2 * max(model.key_width // tp, model.head_dim)
    elif tp > model.key_heads:
        columns = (model.query_width // tp if model.qkv == "separate" else columns) + 2 * model.head_dim
    full = width * tokens * model.hidden // pieces * len(segments(len(layers), every))
    core = width * tokens // cp * columns if "core" in parts else 0
    if "latent_up" in parts:  # Q, K and V are made again, also where attention's core is
        core = predict_latents(model, sequences, width, cp)
    inputs = len(dense_again(model, layers, parts))
    if "norm" in parts:
        inputs = norms_discarded(model, sequence_parallel) * len(layers)
    selective = core * len(layers) + width * tokens * model.hidden // pieces * inputs
    return {"none": 0, "selective": selective, "full": full}[kind]


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
    parts: Sequence[str] = ("core",),
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
        parts: what selective recomputation drops. The last matrix of an MLP is then spared unless `spares`
            says otherwise.
        cp: context-parallel ranks.
    """
    b, s, h, u = sequences, model.seq, model.hidden, model.gates
    layers = range(layers) if isinstance(layers, int) else layers
    core = core_flops(model, b, layers, pairs, cp)
    if kind == "none":
        return 0
    if kind == "selective":
        # the product with V is not repeated: backward needs only its inputs, and recomputation ends with them
        scores = 2 * b * s * s * model.heads * model.score_dim * len(layers)
        attention = (core if model.attention == "flash" else scores) if "core" in parts else 0
        if "latent_up" in parts:
            attention += len(layers) * 2 * b * s * (model.head_products - h * model.query_width)
        branches, last = dense_again(model, layers, parts), list(layers)
        routed = [layer for layer in branches if model.routed(layer) and "moe" in parts]
    else:
        attention = len(layers) * 2 * b * s * (model.head_products + latents * model.down * h) + core
        branches, last = list(layers), ends(layers, every)
        routed = list(filter(model.routed, layers))
    dense = 2 * b * s * (u + 1) * h * sum(map(model.dense_width, branches))
    experts = 2 * b * s * h * model.experts * routers * len(routed)
    experts += 2 * assignments * (u + 1) * h * model.expert_width
    if spares is None:
        spares = [kind == "selective" or last_spared(model, layer) for layer in last]
    spared = [layer for layer, stops in zip(last, spares, strict=True) if stops and layer in branches]
    return attention + dense + experts - 2 * b * s * h * sum(map(model.dense_width, spared))


def core_flops(
    model: ModelConfig, sequences: int, layers: Sequence[int], pairs: int | None = None, cp: int = 1
) -> int:
    """FLOPs of attention's two products in some layers, forward, over all ranks of one replica.

    Args:
        model: sizes of the model.
        sequences: b, sequences of a micro-batch.
        layers: which ones, by number.
        pairs: query-key pairs of a sequence that flash attention computes, over all heads and these layers;
            None: those of its tiles.
        cp: context-parallel ranks.
    """
    b, s, a = sequences, model.seq, model.heads
    both = model.score_dim + model.value_dim(cp)  # columns of the products with K and with V
    if model.attention != "flash":
        return 2 * b * s * s * a * both * len(layers)
    if pairs is None:
        masks = (whole(s, model.causal, model.prefix, model.window_of(layer)) for layer in layers)
        pairs = a * sum(map(costs.pairs, masks))
    return 2 * b * pairs * both
