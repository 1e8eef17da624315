"""One generator of plans for the whole suite: every option value and every feasible pair of values occurs."""

from __future__ import annotations

import itertools
import random
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from glasscluster.model.config import ModelConfig
from glasscluster.strategies.plan import Plan, make_model, make_plan

MAX_GPUS = 8
OPTIONS: dict[str, tuple[Any, ...]] = {
    "dp": (1, 2, 3, 4),
    "tp": (1, 2, 4),
    "sequence_parallel": (False, True),
    "pp": (1, 2, 3, 4),
    "zero": (0, 1, 2, 3),
    "schedule": ("gpipe", "1f1b"),
    "micro_batch": (1, 2),
    "micro_batches": (1, 2, 3, 5),
    "bucket": (900, 20_000, 25 * 1024**2),
    "first_bucket": (300, 1024**2),
    "accumulate": ("sharded", "whole"),
    "reshard": (True, False),
    "shard": (0, 1, 2),
    "offload": ("none", "optimizer"),
    "overlap": (True, False),
    "prefetch": (0, 1, 3),
    "optimizer": ("adamw", "sgd"),
    "clip": (0.0, 0.01, 1.0),
    "layers": (4, 5),
    "tied": (True, False),
    "attention": ("flash", "unfused"),
    "dropout": (0.0, 0.2),
    "recompute": ("none", "selective", "full"),
    "recompute_every": (1, 2, 3),
    "vocab": (40, 64),
    "precision": ("fp64", "fp32", "bf16", "fp16"),
    "grad_dtype": ("same", "fp32"),
    "master_weights": ("auto", "none"),
}
Choice = dict[str, Any]


def feasible(choice: Choice) -> bool:
    """Fits in the test cluster, as far as it is chosen; ZeRO shards over a divisor of dp, if at all; fp16 has master weights."""
    shard = choice.get("shard", 0)
    fits = choice.get("dp", 1) * choice.get("tp", 1) * choice.get("pp", 1) <= MAX_GPUS
    masters = choice.get("precision") != "fp16" or choice.get("master_weights") != "none"
    return fits and masters and (not shard or (choice.get("dp", shard) % shard == 0 and choice.get("zero", 1) > 0))


def build(choice: Choice, precision: str | None = None) -> tuple[Plan, ModelConfig]:
    """The plan and the small model of a choice, in its own precision unless another is given."""
    c = dict(choice) | ({"precision": precision} if precision else {})
    model = make_model("tiny", hidden=16, heads=4, seq=8, **{k: c.pop(k) for k in ("layers", "tied", "attention", "vocab", "dropout")})
    m = c.pop("micro_batches")
    plan = make_plan(global_batch=c["dp"] * c["micro_batch"] * m, lr=1e-2, **c)
    plan.check(model)
    return plan, model


def pairs_of(choice: Choice) -> set[tuple[Any, ...]]:
    """All pairs of (option, value) in a choice."""
    return set(itertools.combinations(sorted(choice.items(), key=lambda kv: kv[0]), 2))


def all_pairs() -> set[tuple[Any, ...]]:
    """Every feasible pair of option values."""
    found = set()
    for (a, values), (b, others) in itertools.combinations(sorted(OPTIONS.items()), 2):
        found |= {((a, x), (b, y)) for x in values for y in others if feasible({a: x, b: y})}
    return found


@lru_cache(maxsize=4)
def covering(seed: int = 0) -> tuple[tuple[tuple[str, Any], ...], ...]:
    """A short list of choices that covers every pair: greedily, the best of some random candidates each time."""
    draw, missing, chosen = random.Random(seed), all_pairs(), []
    while missing:
        target = dict(draw.choice(sorted(missing, key=repr)))
        candidates: list[Choice] = []
        while not candidates:
            tried = [{k: draw.choice(v) for k, v in OPTIONS.items()} | target for _ in range(40)]
            candidates = [c for c in tried if feasible(c)]
        best = max(candidates, key=lambda c: len(pairs_of(c) & missing))
        missing -= pairs_of(best)
        chosen.append(tuple(best.items()))
    return tuple(chosen)


def stratified(seed: int = 0) -> list[Choice]:
    """The covering list as choices."""
    return [dict(c) for c in covering(seed)]


choices = st.fixed_dictionaries({k: st.sampled_from(v) for k, v in OPTIONS.items()}).filter(feasible)


def name(choice: Choice) -> str:
    """A short test id."""
    return "-".join(f"{k}{v}" for k, v in choice.items() if k in ("dp", "tp", "pp", "zero", "schedule", "micro_batches"))
