"""The loss emergency room: eleven ways to ruin a training run, the probes that distinguish them, and the cure
of each.

Every case is trained three times on real ranks: healthy, broken, and broken with its cure. All curves are of
runs that happened. The cause is named from the probes alone (diagnosis.py). `glass run emergency_room`;
`python docs/blowups.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glasscluster.base.text import Said
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.emergency_room.diagnosis import Signs, Text, diagnose
from glasscluster.scenarios.emergency_room.plants import planted_rank
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.probes import Probes
from glasscluster.strategies.judge.vitals import vitals
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.blowups import clinic_figure

if TYPE_CHECKING:
    from glasscluster.strategies.job import Job
    from glasscluster.strategies.judge.vitals import Vitals

STEPS = 40
FEW_STEPS = 24
MODEL: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "seq": 32, "vocab": 128, "qk_norm": True}
PLAN: dict[str, Any] = {"dp": 2, "global_batch": 8, "micro_batch": 4, "lr": 1e-2, "warmup": 10, "clip": 1.0}
FALLING = {"decay": "cosine", "lr_floor": 0.1}  # until the last step
BACK = 0.5  # a cure takes back at least this share of what was lost
STATES = ("healthy", "broken", "cured")


@dataclass(frozen=True)
class Case:
    """One cause: what breaks the run, and what cures it.

    `broken` holds options of plan and model, or `loss_scale`; `cured` holds those that are set on top of
    `broken`. A bug is cured by leaving its plant out.
    """

    name: str
    title: Text
    cure: Text
    broken: dict[str, Any] = field(default_factory=dict)
    cured: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: FALLING)
    plant: str = "healthy"
    stays: bool = False  # the plant stays in the cured run

    def options(self, state: str) -> dict[str, Any]:
        """The options of the run in a state: healthy, broken or cured."""
        return (
            self.base | (self.broken if state != "healthy" else {}) | (self.cured if state == "cured" else {})
        )

    def planted(self, state: str) -> str:
        """The name of the plant in the run of a state."""
        return self.plant if state == "broken" or (state == "cured" and self.stays) else "healthy"


def static(scale: float) -> dict[str, Any]:
    """Options for fp16 with a loss scale that never changes."""
    return {"precision": "fp16", "loss_scale": ScaleRule(scale, growth=1.0, backoff=1.0)}


def dynamic(scale: float) -> dict[str, Any]:
    """Options for a loss scale that adapts every few steps, so that a short run shows it."""
    return {"loss_scale": ScaleRule(scale, interval=4)}


HALF = FALLING | {"precision": "fp16"}
CASES = (
    Case(
        "rate-too-high",
        ("learning rate 100 times too high", "学习率高出 100 倍"),
        ("the rate", "改回学习率"),
        {"lr": 1.0},
        {"lr": 1e-2},
    ),
    Case(
        "no-warm-up",
        ("no warm-up", "没有 warm-up"),
        ("warm-up over 10 steps", "10 步 warm-up"),
        {"warmup": 0},
        {"warmup": 10},
    ),
    Case(
        "init-too-large",
        ("initial weights 50 times too large", "初始权重大 50 倍"),
        ("init-std 0.02", "init-std 0.02"),
        {"init_std": 1.0},
        {"init_std": 0.02},
    ),
    Case(
        "loss-scale-too-large",
        ("fp16: a fixed loss scale that overflows", "fp16：固定的损失缩放溢出"),
        ("dynamic loss scale", "动态损失缩放"),
        static(2.0**20),
        dynamic(2.0**20),
        base=HALF,
    ),
    Case(
        "loss-scale-too-small",
        ("fp16: gradients below the smallest number", "fp16：梯度小于最小可表示数"),
        ("dynamic loss scale", "动态损失缩放"),
        static(2.0**-14),
        {"loss_scale": None},
        base=HALF,
    ),
    Case(
        "noisy-shard",
        ("one rank's data is noise", "一个 rank 的数据是噪声"),
        ("that shard out", "去掉该分片"),
        plant="noise_on_one_rank",
    ),
    Case(
        "bad-batch",
        ("three batches of one token", "三个 batch 全是同一个 token"),
        ("skip, and return to a snapshot", "跳过，并回退到快照"),
        cured={"skip_norm": 2.5, "skip_window": 8, "rollback": 2, "snapshot_every": 4},
        base={"clip": 0.0},
        plant="one_bad_batch",
        stays=True,
    ),
    Case(
        "missing-all-reduce",
        ("one rank steps with its own gradient", "一个 rank 用自己的梯度更新"),
        ("the all-reduce", "补上 all-reduce"),
        plant="no_all_reduce_on_one_rank",
    ),
    Case(
        "norm-counted-twice",
        ("tensor ranks' norms are summed twice", "张量并行 rank 的范数被求和两次"),
        ("one sum", "只求和一次"),
        base={"dp": 1, "tp": 2, "optimizer": "sgd", "lr": 0.3, "clip": 0.2},
        plant="norm_counts_copies",
    ),
    Case(
        "repeated-data",
        ("the same two batches again and again", "反复使用同样的两个 batch"),
        ("the sampler", "修好采样器"),
        plant="same_batches",
    ),
    Case(
        "attention-logits",
        ("queries and keys have grown, no QK-norm", "Q、K 已变大，没有 QK-norm"),
        ("QK-norm", "QK-norm"),
        {"qk_norm": False},
        {"qk_norm": True},
        plant="grown_queries_and_keys",
        stays=True,
    ),
)
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True)
class Chart:
    """What one run showed: the vitals of every step, the signs computed from them, and the loss on held-out
    text (the worst rank's).
    """

    vitals: list[Vitals]
    signs: Signs
    loss: float

    @property
    def losses(self) -> list[float]:
        """Training loss by step."""
        return [v.loss for v in self.vitals]


def job_of(case: Case, state: str, seed: int, steps: int) -> Job:
    """The training job of a case in a state: healthy, broken or cured."""
    given = PLAN | MODEL | case.options(state)
    scale = given.pop("loss_scale", None) or ScaleRule()
    if given.get("decay", "none") != "none":
        given["decay_until"] = steps
    shape = {k: v for k, v in given.items() if k in ModelConfig.model_fields}
    plan = make_plan(**{k: v for k, v in given.items() if k not in shape})
    model = make_model("tiny", **shape)
    plan.check(model)
    return Job(plan, model, steps, seed=seed, observers=(Probes,), loss_scale=scale)


def examine(
    case: Case, state: str, lab: Lab, steps: int = STEPS, seed: int | None = None, *, title: Any = None
) -> Chart:
    """Train a case in a state, and read its probes. With a title the run is recorded and shown in the
    report.
    """
    job = job_of(case, state, lab.seed if seed is None else seed, steps)
    gpus, plant = job.plan.gpus, case.planted(state)
    if title is not None:
        ran = lab.run("patient", title, planted_rank, job, plant, gpus=gpus, **job_info(job)).results
    else:
        ran = lab.cluster(gpus).run(planted_rank, job, plant, record=False).results
    readings = vitals(job, [result for result, _ in ran])
    return Chart(readings, Signs.of(readings, job.model.vocab), max(loss for _, loss in ran))


@dataclass(frozen=True)
class Treated:
    """A case's three runs."""

    case: Case
    charts: dict[str, Chart]

    @property
    def diagnosis(self) -> str:
        """The cause that the rules name from the probes of the broken run."""
        return diagnose(self.charts["broken"].signs)

    @property
    def lost(self) -> float:
        """How much larger the held-out loss of the broken run is than that of the healthy one."""
        return self.charts["broken"].loss - self.charts["healthy"].loss

    @property
    def back(self) -> float:
        """The share of the lost loss that the cure takes back; 0 where nothing was lost."""
        return (self.charts["broken"].loss - self.charts["cured"].loss) / self.lost if self.lost > 0 else 0.0


def treat(case: Case, lab: Lab, steps: int = STEPS, seed: int | None = None) -> Treated:
    """Train a case healthy, broken and cured."""
    lab.say(f"{case.name}: {case.title[0]}")
    return Treated(case, {state: examine(case, state, lab, steps, seed) for state in STATES})


def rows(lab: Lab, treated: list[Treated]) -> None:
    """Add check rows to the lab: each cause is named, each cure takes the damage back, and no healthy run is
    given a cause.
    """
    named = {case.name: number for number, case in enumerate(CASES)}
    for patient in treated:
        name = patient.case.name
        key, titled = name.replace("-", "_"), patient.case.title[1]
        lab.check(
            f"{key}_cause",
            named[name],
            named.get(patient.diagnosis, -1),
            "diagnosis.py: rules on probes alone",
            name=Said(f"{name}: the cause that the probes name", f"{titled}：探针说出的原因编号"),
            unit="cause number",
        )
        lab.check(
            f"{key}_cure",
            1.0,
            min(patient.back, 1.0),
            "healthy, broken and cured run of the same seed",
            name=Said(
                f"{name}: share of the damage that its cure takes back", f"{titled}：对症办法挽回的损失比例"
            ),
            unit="",
            match="statistical",
            tolerance=1 - BACK,
        )
        well = diagnose(patient.charts["healthy"].signs)
        healthy = Said(f"{name}: causes named in the healthy run", f"{titled}：在正常运行中说出的原因数")
        lab.check(f"{key}_healthy", 0, int(well != "healthy"), "diagnosis.py", name=healthy, unit="causes")


@scenario("emergency_room")
def emergency_room(lab: Lab, steps: int = STEPS) -> None:
    """Eleven runs are ruined, each in one way. Probes on every rank tell which way it was, and a cure brings
    the loss back.
    """
    treated = [treat(case, lab, steps) for case in CASES]
    examine(CASES[0], "broken", lab, steps, title=("A patient's last step", "一个病人的最后一步"))
    if not lab.leader:
        return
    rows(lab, treated)
    curves = {t.case.title: {state: chart.losses for state, chart in t.charts.items()} for t in treated}
    lab.figure(
        ("Training loss: as it should be, broken, and cured", "训练损失：正常、损坏、治愈"),
        lambda lang: clinic_figure(curves, lang),
    )
    right = sum(t.diagnosis == t.case.name for t in treated)
    worst = max(treated, key=lambda t: t.lost)
    ill, well = worst.charts["broken"].loss, worst.charts["healthy"].loss
    lab.tell(
        (
            f"{right} of {len(treated)} causes are named from the probes alone.",
            f"仅凭探针就说出了 {len(treated)} 个原因中的 {right} 个。",
        ),
        view="tab=ledger",
    )
    lab.tell(
        (
            f"The largest damage: {worst.case.title[0]}, a held-out loss of {ill:.2f} instead of {well:.2f}.",
            f"损害最大的是“{worst.case.title[1]}”：留出集损失为 {ill:.2f}，正常为 {well:.2f}。",
        ),
        view="tab=story",
    )
    lab.conclude(
        (
            "A loss curve says that something broke; which thing it was stands in the probes.",
            "损失曲线只说明出了问题；是什么问题，要看探针。",
        )
    )
