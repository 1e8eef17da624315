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
    formula=Formula("Eq 14", "T_end = max over the chain of (ready_i, end_{i−1}) + c_i", "V", "PyTorch DDP 2006.15704"),
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
    from glasscluster.scenarios.jobs.buckets import best, reductions, sweep
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.data import overlap
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.palette import TIME
    from glasscluster.visualize.figures.plots import lines, stack
    from glasscluster.visualize.page.words import word

    model = make_model("tiny", hidden=128, seq=128)
    plan: dict[str, Any] = {"model": model, "dp": gpus, "micro_batch": 2, "global_batch": 2 * gpus}
    trained = lab.train("buckets", (f"Buckets of {bucket_kib} KiB", f"{bucket_kib} KiB 的桶"), steps=1, bucket=bucket_kib * KIB, **plan)
    sizes = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    here, layout = hardware(lab.hardware), make_plan(**{k: v for k, v in plan.items() if k != "model"})
    wires = {"1": here, "1/8": here.scaled(bandwidth=1 / 8), "8": here.scaled(bandwidth=8)}  # links so many times as wide
    swept = dict(zip(wires, sweep(layout, model, list(wires.values()), [kib * KIB for kib in sizes]), strict=True))
    steps = [s.step_s * 1e3 for s in swept["1"]]
    late = lab.dry(bucket=bucket_kib * KIB, overlap=False, **plan).timeline
    found = {wire: best(rows) for wire, rows in swept.items()}
    best_kib = sizes[steps.index(min(steps))]
    lab.ask(
        f"Which bucket size (KiB, of {sizes[0]}…{sizes[-1]}) makes the shortest step?",
        f"哪种桶大小（KiB，{sizes[0]}…{sizes[-1]}）一步最短？",
        best_kib,
        "KiB",
    )
    ready, done, nbytes = reductions(trained.timeline)
    cost = [overlap.on_a_ring("all_reduce", gpus, here.link(0, 1), here.gpu.reduce_rate)(b) for b in nbytes.tolist()]
    end = overlap.end_of_chain(ready.tolist(), cost)
    lab.check("end of the last bucket", end, None, "Eq 14", simulated=float(done.max()), unit="s", match="virtual", tolerance=1e-9)
    axis = {"en": "bucket (KiB)", "zh": "桶大小（KiB）"}
    parts = {"compute": "compute_s", "optimizer": "optimizer_s", "exposed": "exposed_s", "bubble": "bubble_s"}

    def step_in_parts(lang: str) -> Any:
        shown = {
            word("waiting" if k == "bubble" else k, lang): (TIME[k], [getattr(s, f) * 1e3 for s in swept["1"]]) for k, f in parts.items()
        }
        return stack([str(kib) for kib in sizes], {k: v for k, v in shown.items() if any(v[1])}, axis[lang], "ms")

    def on_three_wires(lang: str) -> Any:
        said = {"en": "links × {}", "zh": "链路带宽 × {}"}[lang]
        series = {said.format(wire): (sizes, [s.end_s * 1e3 for s in rows]) for wire, rows in swept.items()}
        return lines(series, axis[lang], {"en": "last bucket reduced (ms)", "zh": "最后一个桶归约完成（ms）"}[lang], log_x=True, log_y=True)

    lab.figure(("A step by bucket size: what is exposed", "不同桶大小的一步：暴露的部分"), step_in_parts)
    lab.figure(("The best size depends on the link", "最佳大小取决于链路"), on_three_wires)
    own = trained.timeline
    lab.tell(
        f"With {len(done)} buckets of up to {bucket_kib} KiB a step takes {own.makespan * 1e3:.4g} ms; launched only after backward, {late.makespan * 1e3:.4g} ms.",
        f"用 {len(done)} 个至多 {bucket_kib} KiB 的桶，一步 {own.makespan * 1e3:.4g} ms；若反向结束后才发起则为 {late.makespan * 1e3:.4g} ms。",
        "tab=timeline&run=buckets",
    )
    lab.tell(
        f"On links an eighth as wide the last bucket is reduced soonest with {found['1/8'].size // KIB} KiB, on links eight times as wide with "
        f"{found['8'].size // KIB} KiB, which leaves little for the last one.",
        f"带宽为八分之一时，{found['1/8'].size // KIB} KiB 使最后一个桶最早完成；八倍时为 {found['8'].size // KIB} KiB：留给最后一个桶的很少。",
        "tab=timeline&run=buckets",
    )
    lab.conclude(f"{best_kib} KiB is best here: {min(steps):.4g} ms against {steps[0]:.4g} ms at {sizes[0]} KiB and {steps[-1]:.4g} ms at {sizes[-1]} KiB.",
                 f"这里 {best_kib} KiB 最好：{min(steps):.4g} ms；{sizes[0]} KiB 时 {steps[0]:.4g} ms，{sizes[-1]} KiB 时 {steps[-1]:.4g} ms。")  # fmt: skip
    lab.explain(
        "Left, latency: a ring pays 2(N−1)α however little it carries. Right, no overlap: the only bucket is full when backward is over.",
        "左边是延迟：环无论携带多少都要付 2(N−1)α。右边没有重叠：唯一的桶要等反向结束才满。",
        ("Small buckets pay latency many times; one big bucket starts when backward ends.", "小桶多次付延迟；一个大桶要等反向结束才开始。"),
        ("Only what ends after backward is exposed.", "只有反向结束之后才完成的部分是暴露的。"),
    )
    lab.own_number(f"{best_kib} KiB on {gpus} GPUs of {lab.hardware}.", f"{lab.hardware} 的 {gpus} 块 GPU：{best_kib} KiB。")
