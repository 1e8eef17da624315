"""One generator of plans for the whole suite: every option value and every feasible pair of values occurs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from glasscluster.model.config import ModelConfig
from glasscluster.strategies.plan import Plan, make_model, make_plan

MAX_GPUS = 8
OPTIONS: dict[str, tuple[Any, ...]] = {
    "dp": (1, 2, 3, 4),
    "tp": (1, 2, 4),
    "sequence_parallel": (False, True),
    "tp_overlap": (False, True),
    "cp": (1, 2, 4),
    "context": ("ring", "striped", "zigzag", "ulysses"),
    "ulysses": (0, 2),
    "ep": (1, 2, 4),
    "experts": (0, 4),
    "top_k": (1, 2),
    "capacity_factor": (0.0, 1.0),
    "shared_ffn": (0, 16),
    "kv_heads": (1, 2, 4),
    "qkv": ("fused", "separate"),
    "activation": ("gelu", "gelu-tanh", "relu", "swiglu"),
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
    "vocab": (40, 42, 64),
}
Choice = dict[str, Any]


HEADS = 4
BOUND = "dp tp pp cp shard zero tp_overlap sequence_parallel context ulysses kv_heads attention ep experts".split()  # that rules speak of


def feasible(choice: Choice) -> bool:
    """Fits in the test cluster and breaks no rule of the Plan, as far as it is chosen: what is not may still become what it must."""
    return _feasible(tuple((n, choice[n]) for n in BOUND if n in choice))


@cache
def _feasible(chosen: tuple[tuple[str, Any], ...]) -> bool:
    c = dict(chosen)

    def some(rule: Callable[..., bool], *names: str) -> bool:
        return any(rule(*values) for values in itertools.product(*((c[n],) if n in c else OPTIONS[n] for n in names)))

    def fits(*sizes: int) -> bool:
        return math.prod(sizes) <= MAX_GPUS

    def context_fits(tp: int, cp: int, context: str, ulysses: int, kv: int, attention: str) -> bool:
        cut = cp if context == "ulysses" else ulysses or 1
        if (context == "ulysses" and ulysses not in (0, cp)) or cp % cut:
            return False
        return not (HEADS // tp % cut or max(1, kv // tp) % cut or (cp > cut and attention != "flash"))

    return (
        some(lambda overlap, cut: cut or not overlap, "tp_overlap", "sequence_parallel")
        and some(
            lambda shard, zero, dp, cp, tp, pp: fits(dp, tp, pp, cp) and (not shard or (zero > 0 and dp * cp % shard == 0)),
            "shard",
            "zero",
            "dp",
            "cp",
            "tp",
            "pp",
        )
        and some(
            lambda ep, experts, dp, cp, tp, pp: fits(dp, tp, pp, cp) and (ep == 1 or (experts > 0 and dp * cp % ep == 0)),
            "ep",
            "experts",
            "dp",
            "cp",
            "tp",
            "pp",
        )
        and some(
            lambda dp, pp, tp, cp, *more: fits(dp, tp, pp, cp) and context_fits(tp, cp, *more),
            "dp",
            "pp",
            "tp",
            "cp",
            "context",
            "ulysses",
            "kv_heads",
            "attention",
        )
    )


def completed(choice: Choice, draw: random.Random) -> Choice | None:
    """The choice with everything else drawn, each option among what its rules leave; None at a dead end."""
    out = dict(choice)
    missing = [n for n in OPTIONS if n not in out]
    draw.shuffle(missing)
    for name in missing:
        values = OPTIONS[name] if name not in BOUND else [v for v in OPTIONS[name] if feasible(out | {name: v})]
        if not values:
            return None
        out[name] = draw.choice(values)
    return out


MODEL_OPTIONS = "layers tied attention vocab dropout kv_heads qkv activation experts top_k capacity_factor shared_ffn".split()


def build(choice: Choice, precision: str = "fp64") -> tuple[Plan, ModelConfig]:
    """The plan and the small model of a choice."""
    c = dict(choice)
    model = make_model("tiny", hidden=16, heads=HEADS, seq=8, **{k: c.pop(k) for k in MODEL_OPTIONS})
    m = c.pop("micro_batches")
    plan = make_plan(precision=precision, global_batch=c["dp"] * c["micro_batch"] * m, lr=1e-2, **c)
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
        candidates = [c for c in (completed(target, draw) for _ in range(40)) if c is not None]
        best = max(candidates, key=lambda c: len(pairs_of(c) & missing))
        missing -= pairs_of(best)
        chosen.append(tuple(best.items()))
    return tuple(chosen)


def stratified(seed: int = 0) -> list[Choice]:
    """The covering list as choices."""
    return [dict(c) for c in covering(seed)]


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Any plan of the test cluster: one option after the other, among what the rules leave."""
    out: Choice = {}
    for name in draw(st.permutations(BOUND)):
        out[name] = draw(st.sampled_from([v for v in OPTIONS[name] if feasible(out | {name: v})] or OPTIONS[name]))
    out |= {n: draw(st.sampled_from(values)) for n, values in OPTIONS.items() if n not in BOUND}
    assume(feasible(out))
    return out


def name(choice: Choice) -> str:
    """A short test id."""
    return "-".join(f"{k}{choice[k]}" for k in ("dp", "tp", "pp", "cp", "ep", "zero", "schedule", "micro_batches"))
