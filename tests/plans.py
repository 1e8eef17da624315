"""One generator of plans for the whole suite: every option value and every feasible pair of values occurs."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from glasscluster.model.config import ModelConfig
from glasscluster.strategies.pipeline.schedules import FOLDED, LOOPED, SCHEDULES
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
    "schedule": SCHEDULES,
    "virtual_stages": (1, 2, 3),
    "uneven": (False, True),
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
    "rate": (
        (0, "none", 0, 0, 0.0),
        (2, "none", 0, 0, 0.0),
        (1, "cosine", 4, 0, 0.1),
        (0, "wsd", 3, 2, 0.0),
    ),  # RATE's fields
    "bad_steps": ("take", "skip", "return"),
    "z_loss": (0.0, 0.1),
    "residual_init": ("scaled", "plain"),
    "layers": (4, 5, 6),
    "tied": (True, False),
    "attention": ("flash", "unfused"),
    "dropout": (0.0, 0.2),
    "norm": ("layernorm", "rmsnorm", "scalenorm"),
    "norm_position": ("pre", "post", "sandwich"),
    "qk_norm": (False, True),
    "bias": (True, False),
    "position": ("learned", "sinusoidal", "relative", "alibi", "rope", "none"),
    "objective": ("causal", "masked"),
    "prefix": (0, 3),
    "patches": (0, 2),
    "rope": (
        ("half", "none"),
        ("interleaved", "interpolation"),
        ("half", "ntk"),
        ("interleaved", "yarn"),
    ),  # layout and scaling
    "latents": ((0, 0), (12, 0), (12, 10)),  # of keys and values, of queries
    "recompute": ("none", "selective", "full"),
    "recompute_every": (1, 2, 3),
    "vocab": (40, 42, 64),
    "precision": ("fp64", "fp32", "bf16", "fp16"),
    "grad_dtype": ("same", "fp32"),
    "master_weights": ("auto", "none"),
}
Choice = dict[str, Any]


HEADS = 4
CANDIDATES = 40  # for each plan of the covering list


def fits(*sizes: int) -> bool:
    """In the test cluster."""
    return math.prod(sizes) <= MAX_GPUS


def chunked(schedule: str, v: int) -> bool:
    """Stages a rank: two where the schedule is folded, any number in a loop, else one."""
    return v == 2 if schedule in FOLDED else v == 1 or schedule in LOOPED


def context_fits(tp: int, cp: int, context: str, ulysses: int, kv: int, attention: str) -> bool:
    """Heads can be shared out, and a ring has flash attention."""
    cut = cp if context == "ulysses" else ulysses or 1
    if (context == "ulysses" and ulysses not in (0, cp)) or cp % cut:
        return False
    return not (HEADS // tp % cut or max(1, kv // tp) % cut or (cp > cut and attention != "flash"))


RULES: tuple[tuple[str, Callable[..., bool]], ...] = (
    ("tp_overlap sequence_parallel", lambda overlap, cut: cut or not overlap),
    (
        "shard zero dp cp tp pp",
        lambda shard, zero, *dims: (
            fits(*dims) and (not shard or (zero > 0 and dims[0] * dims[1] % shard == 0))
        ),
    ),
    (
        "ep experts precision dp cp tp pp",
        # a router's choice jumps: where two experts are nearly equal, two right runs in 16 bits send a token
        # to different ones
        lambda ep, experts, precision, *dims: (
            fits(*dims)
            and (not experts or precision in ("fp64", "fp32"))
            and (ep == 1 or (experts > 0 and dims[0] * dims[1] % ep == 0))
        ),
    ),
    (
        "dp pp tp cp context ulysses kv_heads attention",
        lambda dp, pp, tp, cp, *more: fits(dp, tp, pp, cp) and context_fits(tp, cp, *more),
    ),
    (
        "latents kv_heads qk_norm",
        lambda latents, kv, qk_norm: latents == (0, 0) or (kv == HEADS and not qk_norm),
    ),
    (
        "schedule virtual_stages pp layers uneven",
        lambda schedule, v, pp, layers, uneven: chunked(schedule, v) and pp * v + uneven <= layers,
    ),
    ("precision master_weights", lambda precision, masters: precision != "fp16" or masters != "none"),
    ("objective prefix", lambda objective, prefix: objective == "causal" or not prefix),
    (
        "objective patches cp ulysses",
        lambda objective, patches, cp, cut: not patches or (objective == "causal" and cp == 1 and not cut),
    ),
    ("position rope", lambda position, rope: position == "rope" or rope[1] == "none"),
    # whether a norm is too large is such a choice too
    ("precision bad_steps", lambda precision, bad: bad == "take" or precision in ("fp64", "fp32")),
    # its slope jumps at zero, where two right runs in 16 bits part, as at a router's choice
    (
        "precision activation",
        lambda precision, activation: activation != "relu" or precision in ("fp64", "fp32"),
    ),
)
BOUND = tuple(dict.fromkeys(" ".join(names for names, _ in RULES).split()))  # options that rules speak of


NAMES = tuple(tuple(names.split()) for names, _ in RULES)
OPEN = object()  # in the place of a value: not chosen yet


def feasible(choice: Choice) -> bool:
    """Whether no rule forbids what is chosen: what is not chosen may still become what it must."""
    return all(_allows(i, tuple(choice.get(n, OPEN) for n in names)) for i, names in enumerate(NAMES))


@cache
def _allows(rule: int, chosen: tuple[Any, ...]) -> bool:
    values = ((c,) if c is not OPEN else OPTIONS[n] for n, c in zip(NAMES[rule], chosen, strict=True))
    return any(RULES[rule][1](*v) for v in itertools.product(*values))


def completed(choice: Choice, draw: random.Random) -> Choice | None:
    """The choice with everything else drawn, each option among what its rules leave; None at a dead end."""
    out = dict(choice)
    missing = [n for n in OPTIONS if n not in out]
    draw.shuffle(missing)
    for name in missing:
        values = (
            OPTIONS[name] if name not in BOUND else [v for v in OPTIONS[name] if feasible(out | {name: v})]
        )
        if not values:
            return None
        out[name] = draw.choice(values)
    return out


MODEL_OPTIONS = (
    *(
        "layers",
        "tied",
        "attention",
        "vocab",
        "dropout",
        "kv_heads",
        "qkv",
        "activation",
        "experts",
        "top_k",
        "capacity_factor",
    ),
    *("shared_ffn", "norm", "norm_position", "qk_norm", "bias", "position", "z_loss", "residual_init"),
    *("objective", "prefix", "patches"),
)
RATE = ("warmup", "decay", "decay_until", "decay_steps", "lr_floor")
BAD_STEPS: dict[
    str, dict[str, Any]
] = {  # of three steps, any may be the first whose norm is no smaller than the one before
    "take": {},
    "skip": {"skip_norm": 0.97, "skip_window": 1},
    "return": {"skip_norm": 0.97, "skip_window": 1, "rollback": 1, "snapshot_every": 2},
}
SHAPE: dict[str, Any] = {
    "hidden": 16,
    "heads": HEADS,
    "seq": 8,
    "rope_factor": 2.0,
    "relative_buckets": 6,
    "relative_distance": 6,
    "patch_size": 4,
}


def build(choice: Choice, precision: str | None = None) -> tuple[Plan, ModelConfig]:
    """The plan and the small model of a choice, in its own precision unless another is given."""
    c = dict(choice) | ({"precision": precision} if precision else {})
    pairs = zip(
        ("rope_layout", "rope_scaling", "kv_latent", "q_latent"),
        (*c.pop("rope"), *c.pop("latents")),
        strict=True,
    )
    model = make_model("tiny", **SHAPE, **dict(pairs), **{k: c.pop(k) for k in MODEL_OPTIONS})
    c |= dict(zip(RATE, c.pop("rate"), strict=True)) | BAD_STEPS[c.pop("bad_steps")]
    m, stages = c.pop("micro_batches"), c["pp"] * c["virtual_stages"]
    if c.pop("uneven"):  # the first stage has one more than the others, the last what is left
        each = (model.layers - 1) // stages
        c["layers_per_stage"] = (
            (each + 1, *[each] * (stages - 2), model.layers - 1 - each * (stages - 1))
            if stages > 1
            else (model.layers,)
        )
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


def cost(choice: Choice) -> int:
    """What a run of the choice computes: layers of one micro-batch, over all ranks."""
    return math.prod(choice[n] for n in ("dp", "tp", "cp", "layers", "micro_batches"))


class Pairs:
    """Which pairs of option values a list of choices has, as counts in a square matrix of option values."""

    def __init__(self) -> None:
        self.number = {
            (n, v): i for i, (n, v) in enumerate((n, v) for n, values in OPTIONS.items() for v in values)
        }
        self.wanted = np.zeros((len(self.number), len(self.number)), dtype=bool)
        for x, y in all_pairs():
            self.wanted[self.number[x], self.number[y]] = self.wanted[self.number[y], self.number[x]] = True
        self.counts = np.zeros(self.wanted.shape, dtype=int)

    def missing(self) -> np.ndarray:
        """Pairs that no choice has yet."""
        return self.wanted & (self.counts == 0)

    def at(self, choice: Choice) -> Any:
        """Where a choice's pairs stand."""
        numbers = [self.number[x] for x in choice.items()]
        return np.ix_(numbers, numbers)

    def free(self, choice: Choice) -> bool:
        """Whether a listed choice could go, and nothing would be missing."""
        at = self.at(choice)
        return not (self.wanted[at] & (self.counts[at] == 1)).any()


def climbed(choice: Choice, missing: np.ndarray, pairs: Pairs, draw: random.Random) -> Choice:
    """The choice with one option after the other set to what has most missing pairs with the rest, as long as
    that helps.
    """
    while True:
        before = dict(choice)
        for name in draw.sample(list(OPTIONS), len(OPTIONS)):
            rest = [pairs.number[x] for x in choice.items() if x[0] != name]
            able = [c for v in OPTIONS[name] if feasible(c := choice | {name: v})]
            choice = max(
                able, key=lambda c: (missing[pairs.number[name, c[name]], rest].sum(), -cost(c), c == choice)
            )
        if choice == before:
            return choice


def covering(seed: int = 0, candidates: int = CANDIDATES) -> list[Choice]:
    """A short list of cheap choices that covers every pair: greedily, the best of some candidates each time;
    then what can go goes.
    """
    draw, pairs, chosen = random.Random(seed), Pairs(), []
    names = list(pairs.number)
    while (missing := pairs.missing()).any():
        x, y = draw.choice(np.argwhere(missing).tolist())
        made = [
            c
            for c in (completed(dict((names[x], names[y])), draw) for _ in range(candidates))
            if c is not None
        ]
        best = max(
            (climbed(c, missing, pairs, draw) for c in made),
            key=lambda c: (missing[pairs.at(c)].sum(), -cost(c)),
        )
        pairs.counts[pairs.at(best)] += 1
        chosen.append({n: best[n] for n in OPTIONS})
    for choice in sorted(chosen, key=cost, reverse=True):
        if pairs.free(choice):
            pairs.counts[pairs.at(choice)] -= 1
            chosen.remove(choice)
    return [cheaper(choice, pairs) for choice in chosen]


def cheaper(choice: Choice, pairs: Pairs) -> Choice:
    """A listed choice with a size made smaller wherever no pair is lost."""
    for name in ("layers", "micro_batches", "dp", "cp", "tp"):
        for value in sorted(v for v in OPTIONS[name] if v < choice[name]):
            smaller = choice | {name: value}
            if not feasible(smaller):
                continue
            lost, won = pairs.at(choice), pairs.at(smaller)
            pairs.counts[lost] -= 1
            pairs.counts[won] += 1
            if not pairs.missing().any():
                choice = smaller
                break
            pairs.counts[won] -= 1
            pairs.counts[lost] += 1
    return choice


LIST = (
    Path(__file__).parent / "data" / "plans.json"
)  # `python tests/plans.py` finds it anew; a test says when it must be


@cache
def listed() -> tuple[tuple[tuple[str, Any], ...], ...]:
    """The covering list, as it was found."""
    values = {(n, json.dumps(v)): v for n, all_ in OPTIONS.items() for v in all_}  # JSON has no tuples
    return tuple(
        tuple((n, values[n, json.dumps(v)]) for n, v in choice.items())
        for choice in json.loads(LIST.read_text())
    )


def stratified() -> list[Choice]:
    """The covering list as choices."""
    return [dict(c) for c in listed()]


def every(nth: int, of: Callable[[Choice], bool] = lambda choice: True) -> list[Any]:
    """The covering list as parameters of a test, of which `make test` has every nth and `make soak` the
    others.
    """
    chosen = [c for c in stratified() if of(c)]
    return [
        pytest.param(c, id=name(c), marks=() if i % nth == 0 else pytest.mark.soak)
        for i, c in enumerate(chosen)
    ]


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Any plan of the test cluster: one option after the other, among what the rules leave."""
    out: Choice = {}
    for name in draw(st.permutations(BOUND)):
        out[name] = draw(
            st.sampled_from([v for v in OPTIONS[name] if feasible(out | {name: v})] or OPTIONS[name])
        )
    out |= {n: draw(st.sampled_from(values)) for n, values in OPTIONS.items() if n not in BOUND}
    assume(feasible(out))
    return out


def name(choice: Choice) -> str:
    """A short test id."""
    return "-".join(
        f"{k}{choice[k]}"
        for k in ("dp", "tp", "pp", "cp", "ep", "zero", "schedule", "virtual_stages", "micro_batches")
    )


if __name__ == "__main__":
    LIST.write_text("[\n" + ",\n".join(json.dumps(c) for c in covering()) + "\n]\n")
    print(f"{len(json.loads(LIST.read_text()))} plans: {LIST}")
