"""The tour: one GPT, four GPUs, four ways to share the work. This is `make demo`."""

from __future__ import annotations

from typing import Any

from glasscluster.base.rows import tally
from glasscluster.base.text import Said
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.strategies.plan import make_model

OTHER = "dgx-h100"
GPUS = 4
MAIN = ("ddp", "zero3", "tp", "gpipe")  # all but the run without prefetch


@scenario("tour", backend="ray")
def tour(lab: Lab, steps: int = 6, hidden: int = 128, seq: int = 128, data: str | None = None) -> None:
    """Train one small GPT on real text with data parallelism, ZeRO-3, tensor parallelism and GPipe.

    Each run is checked against one device in float64, every byte is counted against the paper's formula, and
    what ran is replayed on two kinds of hardware.
    """
    model = make_model("tiny", hidden=hidden, seq=seq)
    common: dict[str, Any] = {
        "model": model,
        "steps": steps,
        "data": data,
        "also_on": (OTHER,),
        "global_batch": 2 * GPUS,
    }
    runs = {
        "ddp": lab.train(
            "ddp",
            ("Data parallel (DDP)", "数据并行（DDP）"),
            dp=GPUS,
            micro_batch=2,
            bucket=256 * 1024,
            **common,
        ),
        "zero3": lab.train("zero3", ("ZeRO-3", "ZeRO-3"), dp=GPUS, zero=3, micro_batch=2, **common),
        "tp": lab.train(
            "tp",
            ("Tensor parallel (Megatron)", "张量并行（Megatron）"),
            tp=GPUS,
            micro_batch=2 * GPUS,
            **common,
        ),
        "gpipe": lab.train(
            "gpipe", ("Pipeline (GPipe)", "流水线并行（GPipe）"), pp=GPUS, schedule="gpipe", **common
        ),
        "bare": lab.train(
            "zero3-no-prefetch",
            ("ZeRO-3 without prefetch", "ZeRO-3（关闭预取）"),
            dp=GPUS,
            zero=3,
            micro_batch=2,
            prefetch=0,
            # the same sums in the same order as zero3: bit-equal losses are checked below instead
            checked=False,
            compared=False,
            **common,
        ),
    }
    if not lab.leader:
        return
    _check(lab, runs)
    _conclude(lab, runs)
    _tell(lab, runs)
    _tell_elsewhere(lab, runs)


def _check(lab: Lab, runs: dict[str, Any]) -> None:
    """Check what holds between the runs: prefetch moves gathers in time and changes nothing else."""
    with_it, without = runs["zero3"], runs["bare"]
    losses = [float(loss) for loss in with_it.run.results[-1].losses]
    other = [float(loss) for loss in without.run.results[-1].losses]
    name = Said(
        "ZeRO-3 losses with and without prefetch, steps that differ", "ZeRO-3 预取与不预取，损失不同的步数"
    )
    differ = sum(a != b for a, b in zip(losses, other, strict=True))
    lab.check("prefetch_changes_no_loss", 0, differ, "same sums in the same order", name=name, unit="steps")
    name = Said("ZeRO-3 bytes without prefetch, as with it", "ZeRO-3 不预取时的字节数，应与预取相同")
    sent = [sum(t.run.graph.bytes_sent()) for t in (with_it, without)]
    lab.check("prefetch_adds_no_byte", sent[0], sent[1], "prefetch moves gathers, it adds none", name=name)


def _step_ms(runs: dict[str, Any]) -> dict[str, float]:
    """The milliseconds of a step, by run."""
    return {k: t.timeline.makespan * 1e3 for k, t in runs.items()}


def _peak_mb(runs: dict[str, Any]) -> dict[str, float]:
    """The megabytes of the fullest GPU, by run."""
    return {k: max(b for b, _ in t.run.peak_memory()) / 1e6 for k, t in runs.items()}


def _conclude(lab: Lab, runs: dict[str, Any]) -> None:
    """Conclude: one model four times, and which way is fastest and which needs least memory here."""
    here, step = lab.hardware, _step_ms(runs)
    peak = _peak_mb(runs)
    worst = max(t.comparison["max_rel_grad_diff"] for t in runs.values() if t.comparison)
    fastest = min(MAIN, key=lambda k: step[k])
    leanest = min(MAIN, key=lambda k: peak[k])
    name = {e.key: e.title for e in lab.entries}
    lab.conclude(
        (
            f"All four train the same model (largest gradient difference from one device {worst:.1e}); "
            f"on {here} "
            f"{name[fastest].en} is fastest ({step[fastest]:.2f} ms a step) and {name[leanest].en} "
            f"needs least memory ({peak[leanest]:.1f} MB a GPU).",
            f"四种方式训练出同一个模型（与单卡梯度的最大差异 {worst:.1e}）；在 {here} 上 "
            f"{name[fastest].zh} 最快（每步 {step[fastest]:.2f} ms），{name[leanest].zh} 最省显存（每卡 "
            f"{peak[leanest]:.1f} MB）。",
        ),
    )


def _tell(lab: Lab, runs: dict[str, Any]) -> None:
    """Tell what ran here: one sentence a strategy, each with the view that shows it."""
    step, peak = _step_ms(runs), _peak_mb(runs)
    exposed = {k: t.timeline.summary()["exposed_comm_s"] * 1e3 for k, t in runs.items()}
    sent = {k: max(t.run.graph.bytes_sent()) / 1e6 for k, t in runs.items()}
    states = sum(runs["zero3"].run.results[0].state_bytes.values()) / sum(
        runs["ddp"].run.results[0].state_bytes.values()
    )
    bubble = runs["gpipe"].timeline.bubble()
    losses = [float(loss) for loss in runs["ddp"].run.results[-1].losses]
    counts = tally(lab.all_checks).said
    lab.tell(
        (
            f"Four ranks on {lab.backend} trained a GPT on real text; the loss went from {losses[0]:.3f} to "
            f"{losses[-1]:.3f} in {len(losses)} "
            f"steps. Checks: {counts.en}.",
            f"四个 rank（{lab.backend} 后端）在真实文本上训练了一个 GPT：{len(losses)} 步内损失从 {losses[0]:.3f} 降到 "
            f"{losses[-1]:.3f}，"
            f"检查：{counts.zh}。",
        ),
        view="tab=checks",
    )
    lab.tell(
        (
            f"DDP keeps everything on every GPU ({peak['ddp']:.1f} MB) and sends {sent['ddp']:.2f} MB a "
            f"rank, launched while backward is "
            f"still computing: {exposed['ddp']:.2f} ms of it is waited for.",
            f"DDP 在每张卡上保存全部状态（{peak['ddp']:.1f} MB），每个 rank 发送 {sent['ddp']:.2f} MB，在反向计算期间就已发起："
            f"真正等待通信的有 {exposed['ddp']:.2f} ms。",
        ),
        view="tab=timeline&run=ddp",
    )
    lab.tell(
        (
            f"ZeRO-3 holds {states:.0%} of DDP's states on a GPU and sends "
            f"{sent['zero3'] / sent['ddp']:.2f} times DDP's bytes. With prefetch "
            f"{exposed['zero3']:.2f} ms of it is waited for; without, {exposed['bare']:.2f} ms.",
            f"ZeRO-3 每卡保存的状态是 DDP 的 {states:.0%}，通信量是 DDP 的 {sent['zero3'] / sent['ddp']:.2f} 倍。预取时暴露的通信为 "
            f"{exposed['zero3']:.2f} ms，关闭预取则为 {exposed['bare']:.2f} ms。",
        ),
        view="tab=timeline&run=zero3-no-prefetch",
    )
    lab.tell(
        (
            f"Tensor parallelism waits for an all-reduce four times a layer: {exposed['tp']:.2f} ms of a "
            f"{step['tp']:.2f} ms step is exposed.",
            f"张量并行每层要等四次 all-reduce：每步 {step['tp']:.2f} ms 中有 {exposed['tp']:.2f} ms 是暴露的通信。",
        ),
        view="tab=timeline&run=tp",
    )
    m = runs["gpipe"].job.plan.micro_batches
    lab.tell(
        (
            f"GPipe sends {sent['gpipe']:.2f} MB a rank. From the first forward to the last backward its ranks "
            f"are idle for {bubble['bubble_fraction']:.1%} of the time, messages' time included: the papers' "
            f"bubble; equal stages and free messages would give (p-1)/(m+p-1) = {(GPUS - 1) / (m + GPUS - 1):.1%}.",
            f"GPipe 每个 rank 发送 {sent['gpipe']:.2f} MB。从首个前向到最后一个反向，各 rank 有 "
            f"{bubble['bubble_fraction']:.1%} 的时间空闲（含消息时间），即论文口径的气泡；若各级相等且通信免费，应为 "
            f"(p-1)/(m+p-1) = {(GPUS - 1) / (m + GPUS - 1):.1%}。",
        ),
        view="tab=timeline&run=gpipe",
    )


def _tell_elsewhere(lab: Lab, runs: dict[str, Any]) -> None:
    """Tell how the same recordings do on the other hardware."""
    name = {e.key: e.title for e in lab.entries}
    slow = {k: runs[k].run.replay(OTHER).makespan * 1e3 for k in MAIN}
    first = min(MAIN, key=lambda k: slow[k])
    busy = max(runs[k].run.replay(OTHER).mfu(runs[k].run.graph.info["model_flops"]) for k in MAIN)
    lab.tell(
        (
            f"The same recordings replayed on {OTHER}: "
            + ", ".join(f"{name[k].en} {slow[k]:.2f} ms" for k in MAIN)
            + f". {name[first].en} is "
            f"fastest there, and no run uses more than {busy:.1%} of the peak: a model this small waits "
            f"for kernel launches.",
            f"同一份记录在 {OTHER} 上重放："
            + "，".join(f"{name[k].zh} {slow[k]:.2f} ms" for k in MAIN)
            + f"。{name[first].zh} 最快，"
            f"但没有一种用到超过 {busy:.1%} 的峰值算力：模型这么小，时间都花在内核启动上。",
        ),
        view=f"tab=timeline&run=ddp&hw={OTHER}",
    )
