"""All ranks' readings of a step as one: what somebody at the screen of a training run would watch.

Who counts what is decided here anew, from the plan alone (Eq 38: √Σ‖g‖² over shards, what several ranks have
alike once), and not from the marks that the trainer's own norm goes by: the two can disagree, and
`norm_ratio` says whether they do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.probes import EMBEDDING, Reading, probed
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.result import RankResult


@dataclass(frozen=True)
class Vitals:
    """One step. By layer: -1 is the embedding, the number of layers the head."""

    loss: float
    rank_losses: tuple[float, ...]  # mean over its own tokens, of each data rank
    gradient_norm: float  # of the mean gradient, before clipping
    norm_ratio: float  # the norm that clipping used, over the true one
    layer_norms: dict[int, float]
    own_norms: tuple[float, ...]  # of each data rank's own gradient, before it was reduced
    zero_fraction: float  # of the blocks' gradient elements that are exactly 0
    update_ratio: dict[int, float]  # ‖moved‖ / ‖weights‖; empty in a step that was skipped
    rate: float
    activation_rms: dict[int, float]
    attention_logit: float  # largest |q·k|/√d
    logit: float  # largest |logit|
    log_z: float  # mean over tokens
    loss_scale: float
    skipped: bool
    replicas_equal: bool  # in every bit, after the step
    repeated_fraction: float  # of the step's sequences that were in an earlier one


@dataclass(frozen=True)
class Seat:
    """Where a rank sits (docs/contract.md: tp fastest, pp slowest)."""

    tp: int
    data: int
    stage: int

    @classmethod
    def of(cls, rank: int, plan: Plan) -> Seat:
        """The seat of a rank, from its number."""
        return cls(rank % plan.tp, rank // plan.tp % plan.data_ranks, rank // (plan.data_ranks * plan.tp))

    def counts(self, cut: str, plan: Plan) -> bool:
        """Whether what this rank owns of a parameter is nobody else's before it."""
        if cut == "whole" and self.tp:
            return False
        if cut == "experts" and plan.ep > 1:
            return plan.zero > 0 or self.data < plan.ep
        return self.data < plan.shards if plan.zero else self.data == 0


def layer_of(name: str, layers: int) -> int:
    """The number of the layer that a parameter belongs to; the head counts as one more."""
    part, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if part == "layers" else EMBEDDING if part == "embedding" else layers


def vitals(job: Job, results: Sequence[RankResult]) -> list[Vitals]:
    """What the probes say of each step of a run with `Job(observers=(Probes,))`."""
    seen: set[int] = set()
    steps = []
    for step, readings in enumerate(probed(list(results))):
        skipped = results[0].skipped[step] if results[0].skipped else False
        steps.append(_step(job, readings, seen, skipped))
    return steps


def _step(job: Job, readings: list[Reading], seen: set[int], skipped: bool) -> Vitals:
    plan, layers = job.plan, job.model.layers
    seated = [(Seat.of(rank, plan), reading) for rank, reading in enumerate(readings)]
    unit = readings[0].unit
    squares: dict[int, float] = defaultdict(float)
    weights: dict[int, float] = defaultdict(float)
    moved: dict[int, float] = defaultdict(float)
    for seat, reading in seated:
        for (name, cut), value in reading.gradients.items():
            if seat.counts(cut, plan):
                layer = layer_of(name, layers)
                squares[layer] += value
                if name in reading.moved:
                    weights[layer] += reading.weights[name]
                    moved[layer] += reading.moved[name]
    true = sum(squares.values())
    rows = [h for seat, r in seated if seat.tp == 0 and seat.stage == 0 for h in r.rows]
    again = sum(h in seen for h in rows) / len(rows)
    seen.update(rows)
    return Vitals(
        loss=_over(sum(r.loss for r in _one_of_each(seated)), sum(r.tokens for r in _one_of_each(seated))),
        rank_losses=tuple(_over(r.loss, r.tokens) for r in _one_of_each(seated)),
        gradient_norm=math.sqrt(true) / unit,
        norm_ratio=_over(math.sqrt(readings[0].used), math.sqrt(true)),
        layer_norms={k: math.sqrt(v) / unit for k, v in sorted(squares.items())},
        own_norms=_own(seated, plan, unit),
        zero_fraction=_over(sum(r.zeros[0] for r in readings), sum(r.zeros[1] for r in readings)),
        update_ratio={k: _over(math.sqrt(moved[k]), math.sqrt(v)) for k, v in sorted(weights.items())},
        rate=readings[0].rate,
        activation_rms=_rms(readings),
        attention_logit=max(x for r in readings for x in r.scores.values()),
        logit=max(r.logit for r in readings),
        log_z=_log_z([r for r in readings if r.log_z], plan.tp),
        loss_scale=readings[0].scale,
        skipped=skipped,
        replicas_equal=_equal(seated, plan),
        repeated_fraction=again,
    )


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan


def _one_of_each(seated: Iterable[tuple[Seat, Reading]]) -> list[Reading]:
    """For each data rank the reading of one tensor rank, on the stage that has the loss."""
    return [r for seat, r in seated if seat.tp == 0 and r.tokens]


def _own(seated: Sequence[tuple[Seat, Reading]], plan: Plan, unit: float) -> tuple[float, ...]:
    """What tensor ranks have whole counts as often as they have it: fit to compare data ranks with each
    other.
    """
    own = [0.0] * plan.data_ranks
    for seat, reading in seated:
        own[seat.data] += reading.own
    return tuple(math.sqrt(x) * plan.data_ranks / unit for x in own)


def _rms(readings: Sequence[Reading]) -> dict[int, float]:
    total: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for reading in readings:
        for layer, (squares, elements) in reading.outputs.items():
            total[layer][0] += squares
            total[layer][1] += elements
    return {k: math.sqrt(s / n) for k, (s, n) in sorted(total.items())}


def _log_z(last: Sequence[Reading], tp: int) -> float:
    """The mean log Z over the ranks that have the head.

    The tensor ranks of one data rank follow each other in `last`, and each has columns of the same tokens'
    logits.
    """
    values = []
    for i in range(0, len(last), tp):
        parts = [torch.cat([z.flatten() for z in r.log_z]) for r in last[i : i + tp]]
        values.append(torch.stack(parts).logsumexp(0))
    return float(torch.cat(values).mean())


def _equal(seated: Sequence[tuple[Seat, Reading]], plan: Plan) -> bool:
    """Data ranks that hold the same have the same bits, and tensor ranks what they have whole."""
    replicas: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for seat, reading in seated:
        shard = seat.data % plan.shards if plan.zero == 3 else 0
        replicas[0, seat.stage, seat.tp, shard].add(reading.replica)
        replicas[1, seat.stage, seat.data].add(reading.whole)
    return all(len(bits) == 1 for bits in replicas.values())
