"""The bug zoo: mistakes that real frameworks made, each planted here and caught by the gate that is named for
it. `glass run zoo`.

A bug is data: what goes wrong, who reported the like, the plan it shows on, and the gates that must fail when
it is planted: those and no others. What is planted is an observer of the same id (plants.py). A gate is a
difference from one device in the first step (GRADIENT, WEIGHT, LOSS; float64, 1e-10), or the name of a ledger
row. The honest run of the same plan passes them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from glasscluster.base.errors import InputError
from glasscluster.base.rows import FAILED, Row, tally
from glasscluster.base.text import Said
from glasscluster.model.parallel import IGNORE
from glasscluster.scenarios.jobs.trained import Trained
from glasscluster.scenarios.jobs.training import counted_rows, equivalence_rows
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.scenarios.zoo.plants import PLANTS
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import check
from glasscluster.strategies.judge.check import TOLERANCE
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.figures.plots import dots

if TYPE_CHECKING:
    from glasscluster.sim.run import Run
    from glasscluster.strategies.job import Job

GRADIENT, WEIGHT, LOSS = "gradient", "weight", "loss"
GATES = {GRADIENT: Said("gradient", "梯度"), WEIGHT: Said("weight", "权重"), LOSS: Said("loss", "损失")}
STEPS = 3


@dataclass(frozen=True)
class Upstream:
    """A report of the bug in another project. With `nearest` it is not this very bug, but the closest report
    known.
    """

    repository: str
    number: int
    title: str
    kind: str = "issues"
    nearest: bool = False

    @property
    def url(self) -> str:
        """The report's address on GitHub."""
        return f"https://github.com/{self.repository}/{self.kind}/{self.number}"

    def cited(self, lang: str = "en") -> str:
        """The report as a sentence cites it: repository and number."""
        near = (" (nearest)" if lang == "en" else "（最接近的）") if self.nearest else ""
        return f"{self.repository}#{self.number}{near}"


@dataclass(frozen=True)
class Bug:
    """A bug of the zoo; plants.py has its plant under the same id.

    `unequal` means that it only shows on sequences with different numbers of targets.
    """

    id: str
    title: tuple[str, str]
    wrong: tuple[str, str]
    reports: tuple[Upstream, ...]
    plan: dict[str, Any]
    gates: frozenset[str]
    model: dict[str, Any] = field(default_factory=dict)
    unequal: bool = False


# ---- how it is planted and judged --------------------------------------------------------------------------


def make_job(bug: Bug, seed: int = 0) -> Job:
    """The training job in float64 that shows the bug, keeping gradients and weights."""

    class Unequal(Job):
        """Drops the loss of a sequence's first targets: of none, one, two, ... of them, sequence by
        sequence.
        """

        def batch(self, step: int) -> Any:
            tokens, targets = super().batch(step)
            for row in range(len(targets)):
                targets[row, : row % 5] = IGNORE
            return tokens, targets

    model = make_model("tiny", **{"layers": 2, "hidden": 16, "heads": 4, "seq": 8, "vocab": 64, **bug.model})
    plan = make_plan(**{"global_batch": 8, "precision": "fp64", **bug.plan})
    plan.check(model)
    return (Unequal if bug.unequal else Job)(plan, model, STEPS, None, seed, capture=True)


def planted(bug: Bug, job: Job) -> Job:
    """The same job with the bug in it."""
    return replace(job, observers=(PLANTS[bug.id],))


@dataclass
class Outcome:
    """A run beside one device: the rows that `glass train` would print, the gates that failed, the relative
    loss difference by step.
    """

    rows: list[Row]
    gates: frozenset[str]
    first: dict[str, float]  # differences in the first step
    losses: list[float]

    @property
    def loss_shows_it(self) -> bool:
        """Whether the first step's loss alone would have shown the bug, in the four decimals that a training
        log prints.
        """
        return self.first[LOSS] > 1e-5


def judge(job: Job, run: Run, reference: Any) -> Outcome:
    """Compare a run with one device, and collect its check rows and failed gates."""
    compared = check.compare(run.results, reference, job.plan)
    counted = counted_rows(Trained(job, run, compared))
    losses = [
        check.largest(abs(float(r.losses[step]) - expected) / abs(expected) for r in run.results)
        for step, expected in enumerate(reference.losses)
    ]
    first = {
        GRADIENT: max(compared["by_step"]["grad"][0].values()),
        WEIGHT: max(compared["by_step"]["weight"][0].values()),
        LOSS: losses[0],
    }
    failed = {gate for gate, d in first.items() if not d <= check.TOLERANCE}
    failed |= {row.key for row in counted if row.verdict == FAILED}
    return Outcome(equivalence_rows(compared) + counted, frozenset(failed), first, losses)


def alone(job: Job) -> Any:
    """Train the job on one device, without any bug."""
    with one_thread():
        return train_one_device(
            job.model, [job.batch(step) for step in range(job.steps)], job.optimizer, job.plan.clip, job.seed
        )


# ---- the zoo -----------------------------------------------------------------------------------------------
WRONG, ALL = frozenset({GRADIENT, WEIGHT}), frozenset({GRADIENT, WEIGHT, LOSS})
ZOO: tuple[Bug, ...] = (
    Bug(
        "norms-not-summed",
        ("Norms not summed under sequence parallelism", "序列并行下归一化层梯度未求和"),
        (
            "Every tensor rank's norms and biases see only its own tokens, and nobody adds their gradients "
            "up: the copies drift apart.",
            "每个张量并行 rank 的归一化层和偏置只看到自己的 token，却没有把梯度加起来：各副本逐渐分叉。",
        ),
        (
            Upstream(
                "NVIDIA-NeMo/RL",
                3716,
                "Split-API train step misses the TP grad all-reduce for "
                "replicated params (qk-layernorm / SP layernorms)",
            ),
            Upstream(
                "NVIDIA/Megatron-LM", 1446, "[BUG] final_layernorm gradient mismatch when TP+SP enabled"
            ),
        ),
        {"tp": 2, "sequence_parallel": True},
        WRONG | {"tp_norm_gradients_sent"},
    ),
    Bug(
        "loss-scaled-by-tp",
        ("Gradient t times too large under tensor parallelism", "张量并行下梯度放大 t 倍"),
        (
            "A gradient that every rank already has whole is taken for a part and added up over the t ranks "
            "once more. Clipping and AdamW hide the factor.",
            "每个 rank 手里已经是完整的梯度，却被当作部分和又在 t 个 rank 上加了一遍；裁剪和 AdamW 把这个倍数掩盖了。",
        ),
        (
            Upstream(
                "pytorch/torchtitan", 2106, "Fix gpt-oss backward numerics issue when TP is applied", "pull"
            ),
        ),
        {"tp": 2, "lr": 1e-4},
        frozenset({GRADIENT}),
    ),
    Bug(
        "experts-doubled",
        ("Expert gradients ep times too large", "专家梯度放大 ep 倍"),
        (
            "An expert's gradient already comes from all ep ranks' tokens; it is scaled as if each of them "
            "had only a share of it.",
            "专家的梯度已来自全部 ep 个 rank 的 token，却又按“各有一份”放大了 ep 倍。",
        ),
        (
            Upstream("pytorch/pytorch", 160285, "Wrong-size gradients in Expert Parallel MoE"),
            Upstream(
                "deepspeedai/DeepSpeed",
                5259,
                "support bf16_optimizer moe expert parallel training and moe EP grad_scale/grad_norm fix",
                "pull",
            ),
        ),
        {"dp": 2, "ep": 2},
        WRONG,
        {"experts": 4, "top_k": 2},
    ),
    Bug(
        "cp-averaged",
        ("Averaged over context ranks instead of summed", "上下文并行上取平均而非求和"),
        (
            "Context ranks have different tokens of one sequence: their gradients are summed and divided "
            "once by all tokens. An average divides again by cp.",
            "上下文并行的各 rank 持有同一序列的不同 token：梯度应求和，再按全部 token 数除一次；取平均就多除了一次 cp。",
        ),
        (
            Upstream(
                "NovaSky-AI/SkyRL",
                1420,
                "[megatron] Fix loss aggregation for context parallelism (CP) in Megatron",
                "pull",
            ),
            Upstream(
                "NVIDIA/Megatron-LM", 673, "[BUG] Incorrect loss scaling in context parallel code logic"
            ),
        ),
        {"cp": 2, "clip": 0.0},
        WRONG,
    ),
    Bug(
        "padding-is-a-token",
        ("Padding takes part in the softmax", "填充词参与 softmax"),
        (
            "The vocabulary is padded to a multiple of t; the padding's logits are not masked, so "
            "probability leaks to tokens that do not exist.",
            "词表被填充到 t 的倍数，但填充列的 logits 没有屏蔽，概率漏给了并不存在的词。",
        ),
        (Upstream("NVIDIA-BioNeMo/bionemo-recipes", 631, "Loss disagreement between TP=1 and TP=2", "pull"),),
        {"tp": 4},
        ALL,
        {"vocab": 42},
    ),
    Bug(
        "same-dropout-mask",
        ("Every tensor rank draws the same dropout mask", "所有张量并行 rank 抽到同一个 dropout 掩码"),
        (
            "Each rank starts its generator at the same place, so different tokens lose the same elements. "
            "Training looks healthy.",
            "每个 rank 的随机数都从同一位置开始，不同的 token 丢掉同样的元素；训练看上去一切正常。",
        ),
        (
            Upstream(
                "NVIDIA/Megatron-LM", 1256, "[QUESTION] Effect of sequence parallel with dropout rng context"
            ),
            Upstream(
                "PaddlePaddle/PaddleFleetX", 1005, "Fix dropout random seed for sequence parallel.", "pull"
            ),
        ),
        {"tp": 2, "sequence_parallel": True},
        ALL,
        {"dropout": 0.2},
    ),
    Bug(
        "ring-without-lse",
        ("A ring that averages blocks", "环形注意力直接平均各块"),
        (
            "Two blocks' outputs are averaged instead of weighed by their softmax's sums (their "
            "log-sum-exp).",
            "合并两块的输出时直接取平均，没有按各自 softmax 的分母（log-sum-exp）加权。",
        ),
        (
            Upstream(
                "ROCm/aiter",
                3334,
                "[Triton] SAGE: compensate softmax_lse for K-smoothing shift to "
                "enable ring-attention compatibility",
                "pull",
                nearest=True,
            ),
            Upstream("zhuzilin/ring-flash-attention", 20, "Question about updating lse", nearest=True),
        ),
        {"cp": 2},
        ALL,
    ),
    Bug(
        "ring-stale-keys",
        ("A ring whose backward uses its own keys for everybody's", "环形注意力反向总用自己的 K、V"),
        (
            "Forward is right. Backward sends keys and values round again, but computes with those that "
            "were kept in the first step.",
            "前向正确；反向时 K、V 又转了一圈，计算却仍用第一步保存下来的那一份。",
        ),
        (
            Upstream(
                "huggingface/diffusers",
                14265,
                "Ring attention backward uses stale iteration-0 KV "
                "from ctx.saved_tensors — silent gradient corruption when "
                "training with context parallelism",
            ),
        ),
        {"cp": 2},
        WRONG,
    ),
    Bug(
        "mean-of-means",
        ("A mean of means", "平均值的平均"),
        (
            "Each micro-batch's loss is a mean over its own tokens, and the means are averaged: tokens of "
            "short sequences weigh more.",
            "每个微批次的损失先按自己的 token 取平均，再把平均值平均：短序列里的 token 权重更大。",
        ),
        (
            Upstream(
                "huggingface/transformers",
                24725,
                "Sum loss instead of mean loss should be used if "
                "gradient accumulation step is larger than 1 when "
                "training a "
                "language model",
            ),
        ),
        {"dp": 2},
        ALL,
        unequal=True,
    ),
    Bug(
        "lost-bucket",
        ("One bucket is never reduced", "漏掉一个梯度桶"),
        (
            "The gradients of one bucket stay local, and each replica trains that part of the model on its "
            "own examples.",
            "有一个桶的梯度没有归约，各副本各自训练模型的这一部分。",
        ),
        (
            Upstream(
                "pytorch/pytorch",
                104336,
                "DDP: moving model to CPU and back to GPU breaks gradient synchronization",
                nearest=True,
            ),
        ),
        {"dp": 2, "bucket": 4000},
        WRONG | {"dp_gradients_sent"},
    ),
    Bug(
        "tied-not-summed",
        ("A tied embedding on two stages, not summed", "首尾两级共享的词嵌入未求和"),
        (
            "First and last stage hold a copy of the table; each takes a step with its own half of the "
            "gradient.",
            "第一个和最后一个阶段各有一份词嵌入，却各用自己的那一半梯度更新。",
        ),
        (
            Upstream("uw-syfi/piper", 13, "Tied embedding support"),
            Upstream(
                "NVIDIA/Megatron-LM",
                844,
                "[BUG] Wrong embedding gradients with distributed optimizer and shared embedding",
                nearest=True,
            ),
        ),
        {"pp": 2},
        WRONG | {"tied_embedding_gradients_sent"},
    ),
    Bug(
        "norm-counted-twice",
        ("Clipping counts what every rank has t times", "裁剪范数把复制的参数算了 t 次"),
        (
            "Gradients are right, but their norm counts norms and biases once a rank, so clipping shortens "
            "the step too much.",
            "梯度是对的，但求范数时复制的归一化层和偏置每个 rank 都算了一次，裁剪因此过度。",
        ),
        (
            Upstream(
                "NVIDIA-NeMo/RL",
                3788,
                "fix(dtensor): count TP-replicated gradients once in get_grad_norm",
                "pull",
            ),
        ),
        {"tp": 2, "clip": 0.01, "optimizer": "sgd", "lr": 0.1},
        frozenset({WEIGHT}),
    ),
    Bug(
        "zero-all-reduces",
        ("ZeRO-1 that reduces everything everywhere", "ZeRO-1 用了 all-reduce"),
        (
            "Every number is right. But gradients are all-reduced where a rank needs only its shard: twice "
            "the bytes.",
            "所有数值都对，但每个 rank 只需要自己的分片，却对梯度做了 all-reduce：通信量翻倍。",
        ),
        (
            Upstream("karpathy/llm.c", 421, "Zero update", "pull"),
            Upstream(
                "deepspeedai/DeepSpeed",
                5758,
                "DS communication issue when using NCCL backend: "
                "All_reduce instead of reduce_scatter (or several "
                "reduce ops)",
            ),
        ),
        {"dp": 4, "zero": 1},
        frozenset({"dp_gradients_sent", "last_bucket_reduced"}),
    ),
)


def find(id_: str) -> Bug:
    """The bug of an id; InputError for an unknown one."""
    for bug in ZOO:
        if bug.id == id_:
            return bug
    raise InputError("bug", id_, "unknown bug", [b.id for b in ZOO])


# ---- the scenario ------------------------------------------------------------------------------------------


@scenario("zoo")
def zoo(lab: Lab, bug: str = "", as_student: bool = False) -> None:
    """Bugs that real frameworks had, planted one by one. Each runs beside its honest twin and one device, and
    must be caught by the gates named for it. `--bug ID` runs one of them; with `--as-student` it runs
    unannounced: the checks fail, and what is wrong is yours to find.
    """
    if lab.backend != "threads":
        raise InputError(
            "backend",
            lab.backend,
            "bugs are planted in this process: the ranks have to be its threads",
            ["threads"],
        )
    if as_student and not bug:
        raise InputError("as_student", True, "is for one bug: give --bug, too", [b.id for b in ZOO])
    if as_student:
        _unannounced(lab, find(bug))
        return
    chosen = [find(bug)] if bug else list(ZOO)
    outcomes = {b.id: examine(lab, b, shown=len(chosen) == 1 or bool(b.gates - ALL)) for b in chosen}
    _tell(lab, chosen, outcomes)


def examine(lab: Lab, bug: Bug, shown: bool = True) -> Outcome:
    """Run without and with the bug, and add rows that say whether both runs did what they must.

    With `shown` the planted run is shown in the report.
    """
    job = make_job(bug, lab.seed)
    reference = alone(job)
    lab.say(f"{bug.id}: {job.plan.gpus} threads, honest and planted")
    honest = judge(job, lab.cluster(job.plan.gpus).run(train_rank, job, info=job_info(job)), reference)
    wrong = planted(bug, job)
    if shown:
        run = lab.run(bug.id, (bug.id, bug.title[1]), train_rank, wrong, gpus=job.plan.gpus, **job_info(job))
        lab.entries[-1].compared = False
    else:
        run = lab.cluster(job.plan.gpus).run(train_rank, wrong, info=job_info(job))
    outcome = judge(job, run, reference)
    source = ", ".join(r.cited() for r in bug.reports)
    missed, surprising = sorted(bug.gates - outcome.gates), sorted(outcome.gates - bug.gates)
    row_names = {row.key: row.name for row in outcome.rows} | GATES
    for key, gates, name in (
        ("honest", sorted(honest.gates), Said("gates that fail without it", "没有它时不成立的检查")),
        ("missed", missed, Said("gates that must catch it and do not", "应当发现它却没有发现的检查")),
        ("surprising", surprising, Said("gates that fail beside those named", "指定之外不成立的检查")),
    ):
        which = _list([] if key == "honest" else gates, row_names)
        name = Said(f"{bug.id}: {name.en}{which.en}", f"{bug.id}：{name.zh}{which.zh}")
        lab.check(f"{bug.id.replace('-', '_')}_{key}", 0, len(gates), source, name=name, unit="gates")
    return outcome


def _list(gates: Sequence[str], row_names: dict[str, Said]) -> Said:
    """The names of the gates that people know, in brackets; empty without any."""
    if not gates:
        return Said("", "")
    names = [row_names.get(gate, Said(gate, gate)) for gate in gates]
    return Said(f" ({'; '.join(n.en for n in names)})", f"（{'；'.join(n.zh for n in names)}）")


def _unannounced(lab: Lab, bug: Bug) -> None:
    """Show a bug as a student meets it: a run whose checks fail."""
    job = make_job(bug, lab.seed)
    reference = alone(job)
    title = ("Something is wrong here", "这里有个错误")
    run = lab.run("run", title, train_rank, planted(bug, job), gpus=job.plan.gpus, **job_info(job))
    outcome = judge(job, run, reference)
    lab.entries[-1].checks = outcome.rows
    failed = tally(outcome.rows).failed
    lab.tell(
        (
            f"{failed} of {len(outcome.rows)} checks fail. Which line of the strategy makes exactly "
            f"these fail?",
            f"{len(outcome.rows)} 项检查中 {failed} 项失败。策略代码的哪一行会让恰好这些失败？",
        ),
        view="tab=ledger",
    )
    lab.tell(
        (
            f"The loss of the first step differs from one device's by {outcome.losses[0]:.1e}, that of "
            f"step {STEPS} by {outcome.losses[-1]:.1e}.",
            f"第一步的损失与单卡相差 {outcome.losses[0]:.1e}，第 {STEPS} 步相差 {outcome.losses[-1]:.1e}。",
        ),
        view="tab=checks",
    )
    lab.conclude(("A bug is planted in this run: find it.", "这次运行里埋了一个错误：把它找出来。"))


def _tell(lab: Lab, chosen: list[Bug], outcomes: dict[str, Outcome]) -> None:
    """Tell one sentence a bug, draw one figure, and count the bugs that the loss alone would have shown."""
    shown = {e.key for e in lab.entries} if len(lab.entries) > 1 else set()
    for bug in chosen:
        outcome = outcomes[bug.id]
        row_names = {row.key: row.name for row in outcome.rows} | GATES
        gates = [row_names.get(gate, Said(gate, gate)) for gate in sorted(outcome.gates)]
        by_loss = (
            ("the loss tells", "损失看得出")
            if outcome.loss_shows_it
            else ("the loss does not tell", "损失看不出")
        )
        numbers = ", ".join(f"{k} {outcome.first[k]:.0e}" for k in (GRADIENT, WEIGHT, LOSS))
        digits = "，".join(
            f"{zh} {outcome.first[k]:.0e}" for k, zh in ((GRADIENT, "梯度"), (WEIGHT, "权重"), (LOSS, "损失"))
        )
        lab.tell(
            (
                f"{bug.title[0]}. {bug.wrong[0]} First step against one device: {numbers}; {by_loss[0]} "
                f"(step {STEPS}: {outcome.losses[-1]:.0e}). "
                f"Caught by: {'; '.join(g.en for g in gates) or 'nothing'}. The like: "
                f"{', '.join(r.cited() for r in bug.reports)}.",
                f"{bug.title[1]}。{bug.wrong[1]}第一步与单卡相比：{digits}；{by_loss[1]}（第 {STEPS} 步 "
                f"{outcome.losses[-1]:.0e}）。"
                f"被这些检查发现：{'；'.join(g.zh for g in gates) or '无'}。上游类似报告："
                f"{'、'.join(r.cited('zh') for r in bug.reports)}。",
            ),
            view=f"tab=timeline&run={bug.id}" if bug.id in shown else "tab=ledger",
        )
    for report in chosen[0].reports if len(chosen) == 1 else ():
        lab.tell(
            (
                f"{report.cited()}: “{report.title}”, {report.url}",
                f"{report.cited('zh')}：“{report.title}”，{report.url}",
            ),
            view="tab=ledger",
        )
    words = {
        "en": ("loss", "gradient", "weight", f"loss, step {STEPS}"),
        "zh": ("损失", "梯度", "权重", f"损失，第 {STEPS} 步"),
    }

    def drawn(lang: str) -> Any:
        loss, gradient, weight, last_loss = words[lang]
        series = {
            loss: [outcomes[b.id].first[LOSS] for b in chosen],
            last_loss: [outcomes[b.id].losses[-1] for b in chosen],
            gradient: [outcomes[b.id].first[GRADIENT] for b in chosen],
            weight: [outcomes[b.id].first[WEIGHT] for b in chosen],
        }
        axis = "relative difference from one device" if lang == "en" else "与单卡的相对差异"
        return dots([b.title[lang == "zh"] for b in chosen], series, axis, least=1e-17, limit=TOLERANCE)

    silent = sum(not outcomes[b.id].loss_shows_it for b in chosen)
    lab.figure(
        (
            f"In {silent} of {len(chosen)} the first step's printed loss does not tell; a gradient, a "
            f"weight or the ledger does",
            f"{len(chosen)} 个中有 {silent} 个首步打印的损失看不出来；梯度、权重或账目能看出来",
        ),
        drawn,
    )
    caught = sum(outcomes[b.id].gates == b.gates for b in chosen)
    lab.conclude(
        (
            f"{caught} of {len(chosen)} bugs are caught by exactly the gates named for them; {silent} of "
            f"them the first step's loss would not have told.",
            f"{len(chosen)} 个缺陷中 {caught} 个恰好被指定的检查发现；其中 {silent} 个单看第一步的损失看不出来。",
        ),
    )
