"""Twelve loss curves of one small training: a sound run, and eleven that have one fault each.

Six of the faults are cases of emergency_room.py. The others either change the curve and no probe of
diagnosis.py (labels that were not shifted, sorted text, a rate that is too low), or change nothing that a
curve could show (gradients that were not divided, dropout that stays on in evaluation). Each run also says
what it loses on held-out text on its way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from glasscluster.model.layers.dropout import Draw
from glasscluster.scenarios.emergency_room.diagnosis import Signs, diagnose
from glasscluster.scenarios.emergency_room.emergency_room import BY_NAME, Case, job_of
from glasscluster.scenarios.emergency_room.plant import Plant
from glasscluster.scenarios.emergency_room.plants import HELD_OUT, PLANTS
from glasscluster.scenarios.lab import Lab
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.vitals import Vitals, vitals
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.step import Batch
from glasscluster.strategies.trainer import Trainer

if TYPE_CHECKING:
    from glasscluster.strategies.step import Step

EVERY = 4  # steps between two looks at held-out text
MICRO_BATCHES = 2  # of a rank, where their number matters
SMALL: dict[str, Any] = {"layers": 1}  # twelve runs shall not take longer than a reader waits
SOUND = Case("sound", ("nothing: a sound run", "没有问题：正常的训练"), ("", ""))
CURVE_CASES = (
    SOUND,
    BY_NAME["rate-too-high"],
    Case(
        "rate-too-low",
        ("learning rate 1,000 times too low", "学习率低到千分之一"),
        ("the rate", "改回学习率"),
        {"lr": 1e-5},
    ),
    BY_NAME["no-warm-up"],
    BY_NAME["loss-scale-too-large"],
    BY_NAME["bad-batch"],
    BY_NAME["repeated-data"],
    BY_NAME["missing-all-reduce"],
    Case(
        "labels-not-shifted",
        ("labels not shifted: each token predicts itself", "标签没有右移：每个 token 预测自己"),
        ("the shift", "补上右移"),
        plant="labels_not_shifted",
    ),
    Case(
        "gradients-not-divided",
        ("gradients of micro-batches summed, not divided", "微批次的梯度只求和、没有除"),
        ("the division", "补上除法"),
        {"micro_batch": 2},
        plant="not_divided",
    ),
    Case(
        "sorted-text",
        ("text sorted by source: Chinese in the second half", "文本按来源排序：后半程全是中文"),
        ("a shuffle", "打乱"),
        plant="sorted_text",
    ),
    Case(
        "dropout-in-evaluation",
        ("dropout stays on in evaluation", "评测时没有关掉 dropout"),
        ("evaluation without dropout", "评测时关掉 dropout"),
        {"dropout": 0.1},
    ),
)


@dataclass
class Watch(Plant):
    """Looks at held-out text every few steps, with dropout on where the model has it, and counts how many
    targets are the token that is shown beside them.
    """

    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    own: list[float] = field(default_factory=list)  # share of a batch's targets, of each step

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Compare targets with inputs, after the plants before it."""
        same = [(x == y).float().mean() for x, y in zip(batch.inputs, batch.targets, strict=True)]
        self.own.append(float(sum(same)) / len(same))
        return batch

    def held_out(self, draw: int) -> float:
        """Mean loss of one held-out batch; where dropout is on, `draw` is what its masks come from."""
        job = self.trainer.job
        tokens, targets = job.batch(HELD_OUT)
        dropped = Draw(job.seed, draw, tuple(range(len(tokens)))) if job.model.dropout else None
        with torch.no_grad():
            return float(self.trainer.stages[0](tokens, targets, dropped)) / targets.numel()

    def step_ends(self, step: Step) -> None:
        """Look every few steps, and after the last one."""
        if step.number % EVERY == 0 or step.number == self.trainer.job.steps - 1:
            with self.trainer.gpu.unrecorded():
                self.losses.append(self.held_out(HELD_OUT + step.number))
                self.steps.append(step.number)


@dataclass(frozen=True)
class Curve:
    """What one run shows at the screen, and what its probes read.

    losses [steps]; held_out: (steps, losses); own_target: share of targets that are the token shown beside
    them; twice: how far two evaluations of one batch lie from each other.
    """

    case: Case
    losses: list[float]
    held_out: tuple[list[int], list[float]]
    signs: Signs
    vitals: list[Vitals]
    own_target: float
    twice: float

    @property
    def named(self) -> str:
        """The cause that the rules of diagnosis.py name from the probes."""
        return diagnose(self.signs)


def watched_rank(gpu: GPU, job: Job, plant: str) -> tuple[RankResult, Watch, float]:
    """Train a rank with a plant, looking at held-out text: the SPMD program.

    Returns its result, what was seen, and how far two evaluations of the same batch lie from each other.
    """
    watch = Watch()
    trainer = Trainer(gpu, replace(job, observers=(*job.observers, PLANTS[plant], lambda: watch)))
    result = trainer.run()
    with gpu.unrecorded():
        twice = abs(watch.held_out(1) - watch.held_out(2))
    seen = Watch(watch.losses, watch.steps, watch.own)  # without the trainer
    return result, seen, twice


def curve_job(case: Case, seed: int, steps: int) -> Job:
    """The training job of a case's curve."""
    return job_of(replace(case, base=case.base | SMALL), "broken", seed, steps)


def curve_of(case: Case, lab: Lab, steps: int, seed: int, *, title: Any = None) -> Curve:
    """Train a case broken, as its curve is to be read. With a title the run is recorded and shown in the
    report.
    """
    job = curve_job(case, seed, steps)
    program = (watched_rank, job, case.planted("broken"))
    if title is not None:
        ran = lab.run("patient", title, *program, gpus=job.plan.gpus, **job_info(job)).results
    else:
        ran = lab.cluster(job.plan.gpus).run(*program, record=False).results
    readings = vitals(job, [result for result, _, _ in ran])
    _, seen, twice = ran[0]
    return Curve(
        case,
        [v.loss for v in readings],
        (seen.steps, seen.losses),
        Signs.of(readings, job.model.vocab),
        readings,
        sum(seen.own) / len(seen.own),
        twice,
    )


def losses_of(case: Case, lab: Lab, steps: int, seed: int) -> list[float]:
    """Train a case without probes; its loss by step."""
    job = replace(curve_job(case, seed, steps), observers=())
    ran = lab.cluster(job.plan.gpus).run(watched_rank, job, case.planted("broken"), record=False).results
    return [float(loss) for loss in ran[0][0].losses]
