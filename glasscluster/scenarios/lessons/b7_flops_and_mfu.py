"""B7: where the 6 of 6ΨD comes from; MFU and HFU."""

from __future__ import annotations

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
@lesson(
    "B7",
    title=("FLOPs, MFU, HFU", "算力利用率"),
    topic=("one GPU", "单卡"),
    question=("6 FLOPs for each parameter and token: where does the 6 come from?", "每参数每 token 6 次浮点运算：6 从哪里来？"),
    formula=Formula("Eq 30", "72BsLh²(1 + s/(6h) + V/(12Lh)) an iteration, ≈ 6Ψ a token; Eq 1: 12h² + 13h parameters a layer", "X", "Megatron SC21 2104.04473 eq. 3; PaLM 2204.02311 App. B"),
    kills=("“Recomputation raises MFU.” It raises HFU: the GPU does more, the model gets no more done. MFU counts only what the model needs.", "“重计算能提高 MFU。”它提高的是 HFU：GPU 做得更多，模型并没有多学。MFU 只计模型需要的运算。"),
    card=Card(
        ("How many FLOPs does a training step take, and what are MFU and HFU?", "训练一步要多少 FLOPs？什么是 MFU 和 HFU？"),
        ("Each parameter multiplies and adds once per token forward: 2. Backward does that twice, for the input's gradient and the weight's: 4. Together 6Ψ a token, plus attention's 12·s·h a layer. MFU is that over time and peak.",
         "前向时每个参数对每个 token 乘加一次：2。反向要做两次，分别求输入和权重的梯度：4。合计每 token 6Ψ，另加每层注意力的 12·s·h。MFU 是它除以时间与峰值。"),
        ("A matrix [h, f] costs 2hf a token forward; its backward is two products of the same size. So 6 FLOPs a parameter and token, with embeddings looked up free and the head counted: 72BsLh²(1 + s/(6h) + V/(12Lh)). The second term is attention, dense by convention (a causal kernel skips half); the third the head. "
         "MFU = model FLOPs / (time × GPUs × dense peak); HFU counts what ran, recomputation included, so full recompute has 8 against 6: HFU up to 4/3 of MFU at the same MFU. Compare runs by MFU; use HFU to see how well kernels run. Papers differ in whether attention, the causal half and the head are counted: say which.",
         "矩阵 [h, f] 前向每 token 2hf 次运算；反向是两次同样大小的乘法。所以每参数每 token 6 次，嵌入查表不计，输出头计入：72BsLh²(1 + s/(6h) + V/(12Lh))。第二项是注意力，按惯例按稠密计（因果内核会跳过一半）；第三项是输出头。"
         "MFU = 模型 FLOPs /（时间 × GPU 数 × 稠密峰值）；HFU 计实际运行的运算，含重计算，所以全部重算为 8 对 6：MFU 不变时 HFU 最多为其 4/3。比较训练用 MFU；看内核效率用 HFU。各论文是否计注意力、因果的一半和输出头并不一致：要说明。"),
        (("Why is the backward twice the forward?", "为什么反向是前向的两倍？"), ("When is 6ΨD a bad estimate?", "什么时候 6ΨD 估得不准？")),
    ),
)
def flops_and_mfu(lab: Lab, layers: int = 4, hidden: int = 64, seq: int = 64, batch: int = 4) -> None:
    """A GPT with textbook attention trains with three kinds of recomputation; every FLOP of every operation is counted by phase."""
    from glasscluster.sim.recording.events import PHASES
    from glasscluster.strategies.memory.recompute import predict_flops
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.plots import bars, lines

    model = make_model("tiny", layers=layers, hidden=hidden, seq=seq, attention="unfused")
    b, s, v, ll, h = batch, seq, model.vocab, layers, hidden
    runs = {k: lab.train(k, (f"Recompute: {k}", f"重计算：{k}"), model=model, steps=1, checked=k == "full", recompute=k, global_batch=b, micro_batch=b) for k in ("none", "selective", "full")}

    def counted(kind: str, phase: str) -> int:
        graph = runs[kind].run.graph
        return int(graph.flops[graph.phase == PHASES.index(phase)].sum())

    forward = 24 * b * s * ll * h * h + 4 * b * s * s * ll * h + 2 * b * s * h * v  # a third of Eq 30, multiplied out
    lab.check("FLOPs forward, a step", forward, counted("none", "forward"), "Eq 30 over 3", unit="FLOPs")
    lab.check("FLOPs backward, a step", 2 * forward, counted("none", "backward"), "Eq 30: two products for each of the forward's", unit="FLOPs")
    lab.check("parameters of a layer", 12 * h * h + 13 * h, sum(size for name, size, _ in _sizes(model)), "Eq 1", unit="")
    lab.check("parameters of the model", 12 * ll * h * h + 13 * ll * h + (v + s) * h + 2 * h, model.parameters(), "Eq 1: layers, embedding, positions, last norm", unit="")
    again = {k: predict_flops(k, model, ll, 1, b) if k != "none" else 0 for k in runs}
    ran = {k: sum(counted(k, phase) for phase in ("forward", "backward", "recompute")) for k in runs}
    for kind in runs:
        lab.check(f"FLOPs that ran, {kind}", 3 * forward + again[kind], ran[kind], "Eq 30 and Eq 29", unit="FLOPs")
    mfu = {k: t.timeline.mfu(3.0 * forward) for k, t in runs.items()}
    hfu = {k: t.timeline.mfu(float(t.run.graph.flops.sum())) for k, t in runs.items()}
    for kind in runs:
        lab.check(f"HFU over MFU, {kind}", (3 * forward + again[kind]) / (3 * forward), None, "what ran over what the model needs", simulated=hfu[kind] / mfu[kind], unit="×", match="virtual", tolerance=1e-9)
    seconds, peak = runs["none"].timeline.makespan, runs["none"].timeline.hardware.gpu.peak("fp32")
    lab.check("MFU of the log", 3 * forward / (seconds * peak), None, "FLOPs over time and peak", simulated=runs["none"].as_json()["mfu"], unit="", match="virtual", tolerance=1e-9)
    psi = model.parameters()
    each = 3 * forward / (b * s) / psi
    lab.ask(f"This GPT has {psi:,} parameters. How many FLOPs does a training step take for each of them and each token, attention and head included?", f"这个 GPT 有 {psi:,} 个参数。训练一步，每参数每 token 要多少次浮点运算（含注意力和输出头）？", each, "FLOPs")
    lengths = [256, 1024, 4096, 16384, 65536]
    shares = {name: [100 * n / (6 * hh) / (1 + n / (6 * hh)) for n in lengths] for name, hh in (("h = 768", 768), ("h = 4096", 4096), ("h = 12288", 12288))}
    words = {"en": ("forward", "backward", "computed again", "FLOPs of a step, counted (millions)", "MFU", "HFU", "of the peak (%)", "length s", "attention's share of a layer's FLOPs (%)"),
             "zh": ("前向", "反向", "重新计算", "一步的 FLOPs，计数（百万）", "MFU", "HFU", "占峰值 (%)", "长度 s", "注意力占一层 FLOPs 的比例 (%)")}
    kinds = list(runs)
    lab.figure(("What ran, by phase: backward is twice forward", "实际运行的运算（按阶段）：反向是前向的两倍"), lambda lang: bars(kinds, {words[lang][i]: [counted(k, p) / 1e6 for k in kinds] for i, p in enumerate(("forward", "backward", "recompute"))}, words[lang][3], stack=True))
    lab.figure(("MFU and HFU: recomputation keeps the GPU busier and the model later", "MFU 与 HFU：重计算让 GPU 更忙，让模型更慢"), lambda lang: bars(kinds, {words[lang][4]: [100 * mfu[k] for k in kinds], words[lang][5]: [100 * hfu[k] for k in kinds]}, words[lang][6]))
    lab.figure(("When attention matters: s/(6h) against 1", "注意力何时重要：s/(6h) 与 1 相比"), lambda lang: lines({n: (lengths, y) for n, y in shares.items()}, *words[lang][7:], log_x=True))
    lab.tell(f"Forward {counted('none', 'forward') / 1e6:.2f} MFLOP, backward {counted('none', 'backward') / 1e6:.2f}: exactly twice.", f"前向 {counted('none', 'forward') / 1e6:.2f} MFLOP，反向 {counted('none', 'backward') / 1e6:.2f}：恰好两倍。", "tab=ledger")
    lab.tell(f"{each:.2f} FLOPs a parameter and token: 6 for the matrices, more for attention, less for tables that are only looked up.", f"每参数每 token {each:.2f} 次：矩阵为 6，注意力使它变多，只查表的参数使它变少。", "tab=ledger")
    lab.tell(f"Full recomputation runs {ran['full'] / ran['none']:.3f} times as many FLOPs: HFU {100 * hfu['full']:.2f} %, MFU {100 * mfu['full']:.2f} % instead of {100 * mfu['none']:.2f} %.",
             f"全部重算时运行的 FLOPs 是 {ran['full'] / ran['none']:.3f} 倍：HFU {100 * hfu['full']:.2f} %，MFU 从 {100 * mfu['none']:.2f} % 变为 {100 * mfu['full']:.2f} %。", "tab=timeline&run=full")
    lab.tell("Attention's part grows with s/(6h): at s = 6h it is half of a layer.", "注意力的份额随 s/(6h) 增长：s = 6h 时占一层的一半。", "tab=story")
    lab.conclude(f"{each:.2f} FLOPs a parameter and token here; recomputation lowers MFU from {100 * mfu['none']:.2f} % to {100 * mfu['full']:.2f} %.", f"这里每参数每 token {each:.2f} 次；重计算使 MFU 从 {100 * mfu['none']:.2f} % 降到 {100 * mfu['full']:.2f} %。")
    lab.explain("Forward multiplies each weight with each token once; backward needs the product twice more, for what came in and for the weight itself.", "前向中每个权重与每个 token 乘一次；反向还需要两次乘法，一次对输入，一次对权重本身。",
                ("2 forward, 4 backward.", "前向 2，反向 4。"), ("MFU counts what the model needs; HFU what the GPU did.", "MFU 计模型所需；HFU 计 GPU 所做。"))
    lab.own_number(f"{each:.2f} FLOPs a parameter and token.", f"每参数每 token {each:.2f} 次。")


def _sizes(model: object) -> list[tuple[str, int, int]]:
    """Names and elements of one layer's parameters, from the module itself."""
    import torch

    from glasscluster.model.gpt import GPTStage

    stage = GPTStage(model, [0], first=False, last=False, device=torch.device("meta"))  # type: ignore[arg-type]
    return [(name, p.numel(), p.numel()) for name, p in stage.named_parameters()]
