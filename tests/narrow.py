"""16-bit training by torch's own recipe, in one process, and the gate that holds any plan against float64
beside it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.layers.dropout import Draw
from glasscluster.model.parallel import IGNORE, Shard
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.trainer import train_rank

GROWING = ScaleRule(initial=256.0, interval=1)  # another scale in every step, and no overflow
GATE = 3.0  # times as far off as torch's own recipe
SEEDS = 6
OTHER_BATCHES = 2  # beside the plan's own: one device may be right on one batch by luck
Tensors = dict[str, Tensor]


class Recipe:
    """A job in one process: torch.amp.GradScaler and a torch.optim on master copies. Nothing of ours but
    model and data.
    """

    def __init__(self, job: Job, parameters: torch.dtype, masters: torch.dtype, pieces: int = 1) -> None:
        """The batch goes through in so many equal `pieces`, whose gradients are added up as torch does, or in
        fp32.
        """
        self.job, self.pieces, plan, rule = job, pieces, job.plan, job.loss_scale
        self.updates = 0
        self.model = GPTStage(job.model, seed=job.seed, dtype=DTYPES[plan.precision]).to(parameters)
        named = self.model.full_names()
        self.named, self.shards = {n: p for n, (p, _) in named.items()}, {n: s for n, (_, s) in named.items()}
        self.masters = {n: p.detach().to(masters, copy=True).requires_grad_() for n, p in self.named.items()}
        if plan.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.masters.values(), lr=plan.lr)
        else:
            self.optimizer = torch.optim.AdamW(
                self.masters.values(), lr=plan.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01
            )
        self.scaler = torch.amp.GradScaler(
            "cpu",
            init_scale=rule.initial,
            growth_interval=rule.interval,
            growth_factor=rule.growth,
            backoff_factor=rule.backoff,
            enabled=parameters == torch.float16,
        )

    def backward(self, step: int, factor: float = 1.0, trial: bool = False) -> float:
        """The loss; each master has its gradient then, unscaled (times a factor before that). A trial is
        followed by no update.
        """
        tokens, targets = self.job.batch(step)
        wide = torch.promote_types(next(iter(self.masters.values())).dtype, torch.float32)
        size, total, sums = len(tokens) // self.pieces, 0.0, {}
        self.model.zero_grad()
        for i in range(0, len(tokens), size):
            draw = Draw(self.job.seed, step, tuple(range(i, i + size)))
            loss = self.model(tokens[i : i + size], targets[i : i + size], draw) / int(
                (targets != IGNORE).sum()
            )
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
            if self.job.plan.wide_gradients:
                sums = {
                    n: p.grad.to(wide) + sums.get(n, 0.0) for n, p in self.named.items() if p.grad is not None
                }
                self.model.zero_grad()
        for name, p in self.named.items():
            gradient = sums.get(name, p.grad)
            assert gradient is not None, name
            self.masters[name].grad = gradient.to(self.masters[name].dtype) * factor
        if not trial:
            self.scaler.unscale_(self.optimizer)
        elif self.scaler.is_enabled():
            for master in self.masters.values():
                master.grad = None if master.grad is None else master.grad / self.scaler.get_scale()
        return total

    def gradients(self) -> Tensors:
        """As `backward` left them: not clipped yet."""
        return {n: m.grad.clone() for n, m in self.masters.items() if m.grad is not None}

    def weights(self) -> Tensors:
        """The parameters now."""
        return {n: p.detach().clone() for n, p in self.named.items()}

    def update(self, gradients: Tensors | None = None) -> bool:
        """Clip, step, round, with other gradients where they are given; whether the step was skipped."""
        for name, gradient in (gradients or {}).items():
            self.masters[name].grad = gradient.to(self.masters[name].dtype)
        if self.job.plan.clip:
            torch.nn.utils.clip_grad_norm_(self.masters.values(), self.job.plan.clip)
        before = {n: m.detach().clone() for n, m in self.masters.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.plan.lr * self.job.plan.rate.factor(self.updates + 1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.begin(self.masters)
        skipped = all(torch.equal(before[n], m) for n, m in self.masters.items())
        self.updates += not skipped
        return skipped

    @torch.no_grad()
    def begin(self, weights: Tensors) -> None:
        """Parameters for the next `backward`; masters stay."""
        for name, p in self.named.items():
            p.copy_(weights[name])


def in_its_format(job: Job, pieces: int = 1) -> Recipe:
    """Parameters in the plan's format, masters as it has them."""
    dtype = DTYPES[job.plan.precision]
    return Recipe(job, dtype, torch.float32 if job.plan.has_master else dtype, pieces)


@dataclass
class Told:
    """What the oracle did: per step its loss, scale, whether it skipped, its gradients, and its weights."""

    losses: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    gradients: list[Tensors] = field(default_factory=list)
    weights: list[Tensors] = field(default_factory=list)


def oracle(job: Job, bad: tuple[int, ...] = ()) -> Told:
    """The whole job by torch's recipe. Gradients overflow at the steps in `bad`."""
    told, recipe = Told(), in_its_format(job)
    for step in range(job.steps):
        told.losses.append(recipe.backward(step, float("inf") if step in bad else 1.0))
        told.scales.append(recipe.scaler.get_scale())
        told.gradients.append(recipe.gradients())
        told.skipped.append(recipe.update())
        told.weights.append(recipe.weights())
    return told


def ran(job: Job) -> list[RankResult]:
    """Every rank's results, with gradients and weights, on threads."""
    job = dataclasses.replace(job, capture=True)
    return (
        Cluster("classroom", job.plan.gpus, "threads", memory_bytes=None)
        .run(train_rank, job, record=False)
        .results
    )


# ---- the gate ----------------------------------------------------------------------------------------------
def put_together(
    pieces: list[Tensors], named: Tensors, shards: dict[str, Shard | None], plan: Plan
) -> Tensors:
    """Whole tensors in float64 from all ranks' pieces. Whoever holds the same piece holds the same bits; all
    is held by someone.
    """
    whole = {
        n: torch.full_like(p, torch.nan, dtype=torch.float64, requires_grad=False) for n, p in named.items()
    }
    for rank, tensors in enumerate(pieces):
        for name, tensor in tensors.items():
            shard, places = shards[name], torch.arange(1, whole[name].numel() + 1).view(whole[name].shape)
            mine = (
                places
                if shard is None
                else shard.take(places, rank % plan.tp, plan.tp, rank // plan.tp % plan.ep, plan.ep)
            )
            assert mine.shape == tensor.shape, f"{name}: {tuple(tensor.shape)} on rank {rank}"
            assert not bool(tensor[mine == 0].any()), f"{name}: padding is not zero on rank {rank}"
            mine, tensor = mine[mine > 0] - 1, tensor[mine > 0]
            assert bool(tensor.isfinite().all()), f"{name}: not finite on rank {rank}"
            known = whole[name].view(-1)[mine]
            assert bool((known.isnan() | (known == tensor)).all()), (
                f"{name}: rank {rank} has other bits than a rank before it"
            )
            whole[name].view(-1)[mine] = tensor.double()
    assert not [n for n, t in whole.items() if bool(t.isnan().any())], "no rank holds these"
    return whole


def step_by_step(job: Job, results: list[RankResult] | None = None) -> tuple[float, str]:
    """`check.compare`'s largest difference of a float64 run, each step judged from where the run itself began
    it, and where.

    Two right runs part where an expert sees few tokens: Adam turns a gradient's last bit into lr / eps = 1e6
    of it. So one device takes the run's weights before a step for its gradients, and the run's gradients for
    its update; from the seed's weights on.
    """
    plan, results = job.plan, results or ran(job)
    model, found = GPTStage(job.model, seed=job.seed, dtype=torch.float64), {}
    named = {n: p for n, (p, _) in model.full_names().items()}
    shards = {n: s for n, (_, s) in model.full_names().items()}
    state = {n: [torch.zeros_like(p) for _ in range(job.optimizer.moments)] for n, p in named.items()}
    updates, kept = 0, None
    for step in range(job.steps):
        if step % plan.snapshot_every == 0:
            kept = copy.deepcopy((model.state_dict(), state, updates))
        skipped, returned = results[0].skipped[step : step + 1] == [True], step in results[0].returned
        tokens, targets = job.batch(step)
        model.zero_grad()
        model(tokens, targets, Draw(job.seed, step, tuple(range(len(tokens))))).backward()
        right = {n: p.grad / int((targets != IGNORE).sum()) for n, p in named.items() if p.grad is not None}
        gradients = put_together([r.gradients[step] for r in results], named, shards, plan)
        floor = 1e-3 * max(float(g.abs().max()) for g in right.values())
        found |= {f"gradient of {n}, step {step}": difference(gradients[n], right[n], floor) for n in named}
        norm = math.hypot(*(float(g.norm()) for g in gradients.values()))
        factor = min(1.0, plan.clip / (norm + 1e-6)) if plan.clip else 1.0
        weights = put_together([r.weights[step] for r in results], named, shards, plan)
        if returned:
            then, state, updates = copy.deepcopy(kept)
            model.load_state_dict(then)
        updates += not skipped
        with torch.no_grad():
            for n, p in named.items():
                if not skipped:
                    job.optimizer.update(p, gradients[n] * factor, state[n], updates)
                found[f"weight {n}, step {step}"] = difference(weights[n], p, 1.0)
                p.copy_(weights[n])
    where = max(found, key=lambda k: found[k])
    return found[where], where


def distances(found: Tensors, truth: Tensors) -> dict[str, float]:
    """Euclidean distance from the truth over its norm: for every tensor, and for all of them together
    ("all").

    Three matrices for queries, keys and values are judged as the one that they are when fused: a key bias by
    itself has a gradient of zero, and a key matrix one that cancels over a sequence, of which context
    parallelism rounds the parts. So it is with the biases of norms of queries and keys. The weights of
    ScaleNorm, single numbers, are judged together: one of them is often right by luck.
    """
    off: dict[str, float] = {}
    size: dict[str, float] = {}
    for n, right in truth.items():
        together = re.sub(r"\.[qkv]_(weight|bias)$", r".qkv_\1", n)
        together = re.sub(r"\.[qk]_norm_(weight|bias)$", r".qk_norm_\1", together)
        together = "single numbers" if right.numel() == 1 else together
        right = right.detach().double()
        off[together] = math.hypot(float((found[n].detach().double() - right).norm()), off.get(together, 0.0))
        size[together] = math.hypot(float(right.norm()), size.get(together, 0.0))
    whole = math.hypot(*off.values()) / math.hypot(*size.values())
    return {n: far / max(size[n], 1e-30) for n, far in off.items()} | {"all": whole}


def beside(
    found: dict[str, float], own: list[dict[str, float]], floor: float
) -> dict[str, tuple[float, float]]:
    """Distances, and the largest of one process's own; a tensor's counts as at least the floor, all together
    stand alone.
    """
    return {n: (x, max(*(o[n] for o in own), 0.0 if n == "all" else floor, 1e-30)) for n, x in found.items()}


def furthest(job: Job, results: list[RankResult] | None = None) -> tuple[float, str]:
    """How many times as far from float64 as torch's recipe a 16-bit run is, where it is furthest: at most
    GATE is right.
    """
    return largest({n: x / own for n, (x, own) in measured(job, results).items()})


def largest(found: dict[str, float]) -> tuple[float, str]:
    """What is largest, and where; what is not a number is larger."""
    where = max(found, key=lambda k: found[k] if found[k] == found[k] else math.inf)
    return found[where], where


def lower(job: Job) -> Job:
    """The job with half the loss scale."""
    return dataclasses.replace(
        job, loss_scale=dataclasses.replace(job.loss_scale, initial=job.loss_scale.initial / 2)
    )


def in_range(job: Job) -> dict[str, tuple[float, float]]:
    """`measured`, with a loss scale so low that torch's recipe overflows nowhere.

    What overflows is skipped, and says nothing of precision; that runs skip the same steps is tested
    elsewhere (test_mixed_precision.py).
    """
    while job.plan.precision == "fp16" and any(oracle(job).skipped):
        job = lower(job)
    found = measured(job)
    while job.plan.precision == "fp16" and not all(
        math.isfinite(own) for _, own in found.values()
    ):  # on another batch, or in pieces
        job = lower(job)
        found = measured(job)
    return found


def judged(job: Job) -> tuple[float, str]:
    """`furthest`; where that passes GATE, once more over the seeds: the root mean square of the run's
    distances over torch's.

    A plan has hundreds of tensors and steps, and the largest of so many ratios of two chance numbers is
    sometimes past any gate. What the code does wrongly it does on every batch: an error of more than three
    times torch's is as large in the mean over weights and data.
    """
    off, where = largest({n: x / own for n, (x, own) in in_range(job).items()})
    if off <= GATE:
        return off, where
    sums: dict[str, list[float]] = {}
    for seed in range(job.seed + 1, job.seed + 1 + SEEDS):
        for n, pair in in_range(dataclasses.replace(job, seed=seed)).items():
            sums[n] = [a + b * b for a, b in zip(sums.get(n, (0.0, 0.0)), pair, strict=True)]
    off, again = largest({n: math.sqrt(x / own) for n, (x, own) in sums.items()})
    return off, f"{again} (over {SEEDS} seeds; first at {where})"


def measured(job: Job, results: list[RankResult] | None = None) -> dict[str, tuple[float, float]]:
    """How far from float64 a 16-bit run is, and how far torch's recipe: for losses, gradients and weights of
    every step.

    Every step is judged from where the run itself began it. (Two right runs part for good where a gradient is
    nearly zero: a rounding turns its sign, and Adam makes of that two whole learning rates.) From the run's
    weights before a step, float64 and torch compute loss and gradients; from the run's gradients, they update
    their own master weights. So by induction nothing is left out: step 0 begins at the seed's weights,
    rounded.

    Distances are relative Euclidean norms: of the whole gradient or model, and of every tensor. torch's is
    its largest: on the plan's batch and on two others at the same weights, each in one piece and in the
    plan's micro-batches. (On one batch a norm's 16 numbers may be nearly right by luck: of 3,250 plans judged
    by their own batch alone one stood at 3.13, over other seeds at 0.5 to 0.9.) One tensor of 16-bit
    gradients counts as at least one ulp off, of weights half an ulp, the rounding to the format itself. (A
    plan rounds more often than torch: partial sums over tp, sums over dp and over tokens.) A token's loss
    counts as half an ulp off, their mean as that over √tokens.
    """
    plan, results = job.plan, results or ran(job)
    exact = Recipe(job, torch.float64, torch.float64)
    own = [in_its_format(job, pieces) for pieces in (1, plan.dp * plan.micro_batches)]
    ulp, found = torch.finfo(DTYPES[plan.precision]).eps, {}
    tokens = int((job.batch(0)[1] != IGNORE).sum())  # that carry loss: as many in every step
    for step in range(job.steps):
        scale = own[0].scaler.get_scale()
        far = []
        for other in range(1, 1 + OTHER_BATCHES):
            exact.backward(step + 1000 * other, trial=True)
            truth = exact.gradients()
            for recipe in own:
                recipe.backward(step + 1000 * other, trial=True)
                far.append(distances(recipe.gradients(), truth))
        loss, theirs = exact.backward(step), [recipe.backward(step) for recipe in own]
        gradients, truth = (
            put_together([r.gradients[step] for r in results], exact.named, exact.shards, plan),
            exact.gradients(),
        )
        far += [distances(recipe.gradients(), truth) for recipe in own]
        for name, x in beside(distances(gradients, truth), far, ulp).items():
            found[f"gradient of {name}, step {step}"] = x
        for recipe in (exact, *own):
            assert not recipe.update(gradients)
        weights = put_together([r.weights[step] for r in results], exact.named, exact.shards, plan)
        for name, x in beside(
            distances(weights, exact.masters), [distances(own[0].named, exact.masters)], ulp / 2
        ).items():
            found[f"weight {name}, step {step}"] = x
        for recipe in (exact, *own):
            recipe.begin(weights)
        allowed = max(*(abs(x - loss) for x in theirs), ulp / 2 * loss / math.sqrt(tokens))
        for rank, result in enumerate(results):
            assert len(result.losses) == len(result.gradients) == len(result.weights) == job.steps
            found[f"loss on rank {rank}, step {step}"] = abs(float(result.losses[step]) - loss), allowed
            if plan.precision == "fp16":
                assert (result.loss_scales[step], result.skipped[step]) == (scale, False)
    return found
