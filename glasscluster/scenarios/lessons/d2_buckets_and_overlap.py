"""D2: gradient buckets, and what of their reduction fits behind backward."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

KIB = 1024


@lesson(
    "D2",
    title=("Buckets and overlap", "桶与重叠"),
    topic=("data parallel", "数据并行"),
    question=("One big gradient bucket or a hundred small ones?", "一个大梯度桶，还是一百个小桶？"),
    formula=Formula("F14", "T_end = max over the chain of (ready_i, end_{i−1}) + c_i", "V", "PyTorch DDP 2006.15704"),
    kills=(
        "“Smaller buckets overlap better.” Each costs a whole ring of latencies; below α·β they only get in each other's way.",
        "“桶越小重叠越好。”每个桶都要付一整圈的延迟；小于 α·β 时它们只会互相妨碍。",
    ),
    card=Card(
        ("How does DDP hide communication?", "DDP 如何隐藏通信？"),
        (
            "Hooks fire as gradients become ready, last layers first; a full bucket is all-reduced while earlier layers still compute.",
            "梯度就绪时触发钩子，从最后的层开始；桶满后立即 all-reduce，前面的层仍在反向。",
        ),
        (
            "Buckets go through one communication lane in order, so bucket i ends at max(ready_i, end_{i−1}) + c_i with c_i = 2(N−1)(α + S_i/(Nβ)). One "
            "bucket starts when backward is over: nothing overlaps. Many small ones pay 2(N−1)α each. The best size makes the last "
            "bucket small and the others longer than their latency; torch's default is 25 MB.",
            "各桶按顺序走同一条通信通道，第 i 桶结束于 max(ready_i, end_{i−1}) + c_i，c_i = 2(N−1)(α + S_i/(Nβ))。只有一个桶时要等反向结束：毫无重叠。"
            "很多小桶则每个付 2(N−1)α。最佳大小使最后一桶小、其余各桶长于其延迟；torch 默认 25 MB。",
        ),
        (
            ("Why is the first bucket of backward special?", "反向的第一个桶有何特别？"),
            ("What changes with ZeRO?", "用 ZeRO 时有什么变化？"),
        ),
    ),
)
def buckets_and_overlap(lab: Lab, gpus: int = 4, bucket_kib: int = 256) -> None:
    """A GPT trains with hooks that launch buckets during backward; other bucket sizes are recorded beside it."""
    from glasscluster.sim.hardware import hardware
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.plots import lines

    model = make_model("tiny", hidden=128, seq=128)
    plan: dict[str, Any] = {"model": model, "dp": gpus, "micro_batch": 2, "global_batch": 2 * gpus}
    trained = lab.train("buckets", (f"Buckets of {bucket_kib} KiB", f"{bucket_kib} KiB 的桶"), steps=1, bucket=bucket_kib * KIB, **plan)
    sizes = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    steps, exposed = [], []
    for kib in sizes:
        line = lab.dry(bucket=kib * KIB, **plan).timeline
        steps.append(line.makespan * 1e3)
        exposed.append(line.summary()["exposed_comm_s"] * 1e3)
    late = lab.dry(bucket=bucket_kib * KIB, overlap=False, **plan).timeline
    best = sizes[steps.index(min(steps))]
    lab.ask(
        f"Which bucket size (KiB, of {sizes[0]}…{sizes[-1]}) makes the shortest step?",
        f"哪种桶大小（KiB，{sizes[0]}…{sizes[-1]}）一步最短？",
        best,
        "KiB",
    )
    link = hardware(lab.hardware).link(0, 1)
    works = [w for w in trained.timeline.communications() if w["rank"] == 0 and w["op"].startswith("all_reduce") and w["bytes"] > 64]
    end = 0.0
    for w in sorted(works, key=lambda w: w["launched"]):
        end = max(w["launched"], end) + 2 * (gpus - 1) * (link.alpha + w["bytes"] / gpus / link.bandwidth)
    lab.check("end of the last bucket", end, None, "F14", simulated=max(w["end"] for w in works), unit="s", match="virtual", tolerance=1e-9)
    names = {"en": ("step", "exposed communication", "bucket (KiB)", "ms"), "zh": ("一步", "暴露的通信", "桶大小（KiB）", "ms")}
    lab.figure(
        ("Step time against bucket size", "一步的时间与桶大小"),
        lambda lang: lines({names[lang][0]: (sizes, steps), names[lang][1]: (sizes, exposed)}, *names[lang][2:], log_x=True),
    )
    own = trained.timeline
    lab.tell(
        f"With {len(works)} buckets of up to {bucket_kib} KiB a step takes {own.makespan * 1e3:.4g} ms; launched only after backward, {late.makespan * 1e3:.4g} ms.",
        f"用 {len(works)} 个至多 {bucket_kib} KiB 的桶，一步 {own.makespan * 1e3:.4g} ms；若反向结束后才发起则为 {late.makespan * 1e3:.4g} ms。",
        "tab=timeline&run=buckets",
    )
    lab.conclude(f"{best} KiB is best here: {min(steps):.4g} ms against {steps[0]:.4g} ms at {sizes[0]} KiB and {steps[-1]:.4g} ms at {sizes[-1]} KiB.",
                 f"这里 {best} KiB 最好：{min(steps):.4g} ms；{sizes[0]} KiB 时 {steps[0]:.4g} ms，{sizes[-1]} KiB 时 {steps[-1]:.4g} ms。")  # fmt: skip
    lab.explain(
        "Left, latency: a ring pays 2(N−1)α however little it carries. Right, no overlap: the only bucket is full when backward is over.",
        "左边是延迟：环无论携带多少都要付 2(N−1)α。右边没有重叠：唯一的桶要等反向结束才满。",
        ("Small buckets pay latency many times; one big bucket starts when backward ends.", "小桶多次付延迟；一个大桶要等反向结束才开始。"),
        ("Only what ends after backward is exposed.", "只有反向结束之后才完成的部分是暴露的。"),
    )
    lab.own_number(f"{best} KiB on {gpus} GPUs of {lab.hardware}.", f"{lab.hardware} 的 {gpus} 块 GPU：{best} KiB。")
