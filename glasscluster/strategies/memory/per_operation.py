"""Recomputation operator by operator: a layer runs again, but for the operators whose results were saved.

Follows PyTorch's selective activation checkpointing (create_selective_checkpoint_contexts of
torch.utils.checkpoint) as torchtitan uses it (`selective_ac_option = "op"`). Its list is data: dialects.py.

    forward     x ──[ mm 1 · flash · mm 2 · mm 3 · gelu · mm 4 ]── y      saved: x, mm 1, flash, mm 3
    again            take    take    run    take   run    run             what is saved is taken, in its order

Two dispatch modes do it: one saves results in forward, the other gives them back in the same order.
But: our collectives are no operators of torch, so a layer would send all again: it must lie on one rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.memory.dialects import TORCHTITAN
from glasscluster.strategies.memory.recompute import CHECKPOINT, Recompute, core_flops


class _Mode(TorchDispatchMode):
    """What saving and taking share: which calls of a layer are saved."""

    def __init__(self, saved: list[Any]) -> None:
        super().__init__()
        self.saved, self.calls = saved, Counter[str]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def is_saved(self, func: Any) -> bool:
        """Whether the result of this call is saved: of a word's calls in the layer, each `n`th is not."""
        word, n = TORCHTITAN.get(func._schema.name, ("", 0))
        if not word:
            return False
        self.calls[word] += 1
        return n == 0 or self.calls[word] % n != 0


class _Saving(_Mode):
    """In forward: save results, and tell the memory ledger."""

    def __init__(self, saved: list[Any], register: Callable[[Tensor], Any]) -> None:
        super().__init__(saved)
        self.register = register

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.is_saved(func):
            results = out if isinstance(out, tuple) else (out,)
            for x in results:
                self.register(x)
            # without the graph, which would hold what it was made of, but with its count of changes in place
            with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
                kept = tuple(x.detach() for x in results)
            self.saved.append((kept if isinstance(out, tuple) else kept[0], [x._version for x in kept]))
        return out


class _Taking(_Mode):
    """When the layer runs again: give back what was saved, run everything else."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.is_saved(func):
            return func(*args, **(kwargs or {}))
        out, versions = self.saved.pop(0)
        now = [x._version for x in (out if isinstance(out, tuple) else (out,))]
        if now != versions:
            rule = f"what {func} gave was changed in place after it was saved, and would be changed again"
            raise InputError("recompute", "op", rule, ["full"])
        return out


class PerOperation(Recompute):
    """Recompute each layer but for the operators on torchtitan's list."""

    def layers(self, blocks: Sequence[Any], x: Tensor, draw: Any) -> Tensor:
        """Run all blocks, and save each one's input and the results on the list for backward."""
        for block in blocks:
            x = self.run(partial(block, draw=draw), x)
        return x

    def contexts(self, layer: int) -> tuple[Any, Any]:
        """Of forward and of running again."""
        saved: list[Any] = []
        register = partial(self.gpu.memory.register, category="activations", name=CHECKPOINT)

        @contextmanager
        def again():
            with ExitStack() as stack:
                stack.enter_context(self.again(layer))
                stack.enter_context(_Taking(saved))
                yield

        return _Saving(saved, register), again()


# ---- theory ------------------------------------------------------------------------------------------------


def products(model: ModelConfig) -> list[tuple[int, int]]:
    """Columns in and out of a dense layer's matrices, in the order in which they run."""
    h, q, k, f = model.hidden, model.query_width, model.key_width, model.width
    qkv = [(h, q + 2 * k)] if model.qkv == "fused" else [(h, q), (h, k), (h, k)]
    return [*qkv, (q, h), (h, model.gates * f), (f, h)]


def predict_saved(model: ModelConfig, sequences: int, width: int) -> int:
    """Bytes that a layer and micro-batch saves: its input, every other product, flash attention's results."""
    tokens = sequences * model.seq
    numbers = model.hidden + sum(out for _, out in products(model)[::2])
    flash = width * model.query_width + max(width, 4) * model.heads if model.attention == "flash" else 0
    return tokens * (width * numbers + flash)


def predict_again(model: ModelConfig, sequences: int, spares: bool) -> int:
    """FLOPs that run again of a layer and micro-batch: every second product, and attention that is not flash.

    `spares`: the last product is not repeated.
    """
    again = products(model)[1::2]
    total = 2 * sequences * model.seq * sum(a * b for a, b in (again[:-1] if spares else again))
    return total + (core_flops(model, sequences, [0]) if model.attention == "unfused" else 0)
