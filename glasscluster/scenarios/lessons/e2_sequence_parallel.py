"""E2: what tensor parallelism sends, what sequence parallelism makes of it, and where both may stand."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

VARIANTS: dict[str, dict[str, Any]] = {
    "tp": {},
    "tp+sp": {"sequence_parallel": True},
    "overlapped": {"sequence_parallel": True, "tp_overlap": True},
}


# fmt: off
@lesson(
    "E2",
    title=("TP traffic and sequence parallel", "张量并行与序列并行"),
    topic=("tensor parallel", "张量并行"),
    question=("Sequence parallelism turns every all-reduce into an all-gather and a reduce-scatter. Does that cost bandwidth?",
              "序列并行把每次 all-reduce 变成 all-gather 加 reduce-scatter。这要多花带宽吗？"),
    formula=Formula("F18, F17", "a layer sends 8 · (t−1)/t · bsh (TP) or 10 · (t−1)/t · bsh (TP+SP) elements a rank; keeps sbh(10 + 24/t + 5as/(ht)) or sbh/t · (34 + 5as/h) bytes",
                    "X", "Korthikanti 2205.05198 §4.2; Megatron-LM 1909.08053 §3"),
    kills=("“Tensor parallelism across nodes is fine with InfiniBand.” Every layer waits for four sums; on the same 8 GPUs in two nodes the same step takes more than twice as long.",
           "“有了 InfiniBand，张量并行可以跨节点。”每一层都要等待四次求和；同样 8 块 GPU 分在两个节点，同一步要花两倍以上的时间。"),
    card=Card(
        ("What does sequence parallelism change in tensor parallelism?", "序列并行改变了张量并行的什么？"),
        ("Outside the matrices each rank keeps s/t tokens. All-reduce becomes all-gather before and reduce-scatter behind the matrices: the same volume, plus one gather in backward for each input of which only the piece is kept. Activations fall to 1/t.",
         "矩阵之外每个 rank 只保留 s/t 个 token。all-reduce 变成矩阵前的 all-gather 和矩阵后的 reduce-scatter：通信量相同，另外反向要为每个只保留了一片的输入再聚集一次。激活降到 1/t。"),
        ("Tensor parallelism leaves norms, residuals and dropout masks whole on every rank: 10 of 34 bytes an element. They work token by token, so cut them along the sequence. f becomes an all-gather (backward: reduce-scatter), "
         "g a reduce-scatter (backward: all-gather). An all-reduce is those two, so a layer sends 8 units of (t−1)/t·bsh as before; keeping only the piece of a gathered input costs one more gather a region in backward: 10 units, "
         "hidden behind the product that runs meanwhile. Activations: sbh/t·(34 + 5as/h), and 34sbh/t with selective recomputation. Gradients of norms and biases must be summed over t. None of it makes the waits cheap: keep t inside a node.",
         "张量并行让归一化、残差和 dropout 掩码在每个 rank 上保持完整：每个元素 34 字节中的 10 字节。它们逐 token 工作，所以可以沿序列切开。f 变成 all-gather（反向 reduce-scatter），"
         "g 变成 reduce-scatter（反向 all-gather）。all-reduce 就是这两步，所以每层仍发送 8 个单位的 (t−1)/t·bsh；只保留聚集输入的一片，则每个区域反向多一次聚集：10 个单位，"
         "藏在同时进行的矩阵乘之后。激活：sbh/t·(34 + 5as/h)，加选择性重算为 34sbh/t。归一化与偏置的梯度要在 t 个 rank 上求和。这些都不能让等待变便宜：t 应留在节点内。"),
        (("Which gradients are wrong if you forget something under sequence parallelism?", "序列并行下忘了什么会使哪些梯度出错？"),
         ("What can be overlapped, and what does cutting a product in pieces cost?", "哪些通信可以重叠？把矩阵乘切成小块的代价是什么？")),
    ),
)
def sequence_parallel(lab: Lab, t: int = 4, hidden: int = 64) -> None:
    """The same GPT trains with tensor parallelism, with sequence parallelism and overlapped; then GPT-3's layer is counted and placed."""
    from dataclasses import replace

    from glasscluster.scenarios.jobs.kept import kept
    from glasscluster.sim.recording.events import PURPOSES, SEND
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.job import Job, job_info
    from glasscluster.strategies.judge.activations import account, kept_by_a_layer, predict_layer
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.strategies.trainer import train_rank
    from glasscluster.visualize.figures.kept import by_layout
    from glasscluster.visualize.figures.matrices import matrices_figure
    from glasscluster.visualize.figures.palette import TIME
    from glasscluster.visualize.figures.plots import stack
    from glasscluster.visualize.figures.strip import layer_strip

    # ---- what is sent: real ranks
    model = make_model("tiny", hidden=hidden, seq=64, dropout=0.1)
    plan: dict[str, Any] = {"tp": t, "micro_batch": 2, "global_batch": 2}
    titles = {"tp": ("Tensor parallel", "张量并行"), "tp+sp": ("With sequence parallel", "加序列并行"), "overlapped": ("Overlapped", "重叠通信")}
    note = ("Layers this small wait for the number of messages; the story's figures take GPT-3's width.", "这么小的层，时间由消息的个数决定；概要中的图采用 GPT-3 的宽度。")
    runs = {k: lab.train(k, titles[k], model=model, steps=1, note=note, **plan, **more) for k, more in VARIANTS.items()}
    one = (t - 1) * 2 * model.seq * hidden * 4  # a unit: (t−1)/t·bsh elements of 4 bytes, over t ranks

    def units(graph: Any, *labels: str) -> float:
        inside = (graph.kind == SEND) & (graph.axis == "tp") & (graph.layer >= 0) & (graph.purpose == PURPOSES.index("activations"))
        if labels:
            inside &= [graph.names[x] in labels for x in graph.label]
        return float(graph.bytes[inside].sum()) / one / model.layers

    sent = {k: units(r.run.graph) for k, r in runs.items()}
    separate = lab.dry(model=model.model_copy(update={"qkv": "separate"}), **plan, sequence_parallel=True)
    for key, predicted in (("tp", 8), ("tp+sp", 10), ("overlapped", 10)):
        lab.check(f"{key}: units of (t−1)/t·bsh sent a layer", predicted, sent[key], "F18", unit="units")
    again = units(runs["tp+sp"].run.graph, "f again")
    lab.check("tp+sp: units that gather an input again in backward", 2, again, "F18", unit="units")
    lab.check("tp+sp: units without those, as an all-reduce sends", sent["tp"], sent["tp+sp"] - again, "F18, F10", unit="units")
    lab.check("tp+sp, Q, K and V apart keep attention's input whole: units", 9, units(separate.graph), "F18", unit="units")
    lab.ask(f"An all-reduce of bsh elements is 2 units of (t−1)/t·bsh, and TP needs 4 a layer: 8 units. How many units does TP with sequence parallelism send a layer (t = {t})?",
            f"一次 bsh 个元素的 all-reduce 是 2 个单位的 (t−1)/t·bsh，TP 每层 4 次：8 个单位。加上序列并行后每层发送几个单位（t = {t}）？", sent["tp+sp"], "units")

    # ---- what is kept: the small layer on real ranks, GPT-3's on its shapes
    unfused = model.model_copy(update={"attention": "unfused"})
    saved = {cut: Cluster("classroom", t, "threads").run(kept_by_a_layer, unfused, 1, "bf16", "none", cut).results for cut in (False, True)}
    small = [x for cut, ranks in saved.items() for rank in ranks for x in account(predict_layer(unfused, 1, t, 2, "none", cut), rank)]
    lab.check("tensors of the small layer that the list does not name, or sizes wrongly, all ranks", 0, sum(not x.ok for x in small), "Korthikanti section 4", unit="tensors")
    giant, wide = make_model("gpt3-175b", attention="unfused", dropout=0.1), 8
    h = giant.hidden
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "tp": ("TP, t = 8", "TP，t = 8", {"cut": False}), "sp": ("+ sequence<br>parallel", "+ 序列并行", {"cut": True}),
        "cp": ("+ SP, cp = 2<br>(Ulysses, 16 GPUs)", "+ SP，cp = 2<br>（Ulysses，16 卡）", {"cut": True, "cp": 2}),
        "selective": ("+ SP, selective<br>recomputation", "+ SP，选择性<br>重计算", {"cut": True, "recompute": "selective"})}
    layouts, names = {}, {"tp": "TP", "sp": "TP and SP", "cp": "TP, SP and cp = 2", "selective": "TP and SP, selective"}
    for key, (_, _, options) in asked.items():
        parts, theory = layouts[key] = kept(giant, 1, "bf16", wide, context="ulysses", **options)
        lab.check(f"GPT-3's layer, kept with {names[key]}", theory, sum(parts.values()), "F17")
    total = {k: sum(parts.values()) for k, (parts, _) in layouts.items()}

    # ---- how long it takes: the same step in one node and in two
    long, node = make_model("gpt3-175b", layers=2, seq=8192), hardware("dgx-h100")
    products = {6 * 8192 * h * h // wide: "QKV", 2 * 8192 * h * h // wide: "out", 8 * 8192 * h * h // wide: "MLP"}
    steps, took = {}, {}
    for key, more in VARIANTS.items():
        job = Job(make_plan(tp=wide, micro_batch=1, global_batch=1, precision="bf16", **more), long, steps=1)
        recorded = Cluster(node, wide, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
        steps[key] = recorded.timeline
        for place, timeline in (("one", recorded.timeline), ("two", recorded.replay(replace(node, node_size=wide // 2)))):
            work = float(timeline.useful().max())
            took[key, place] = work * 1e3, (timeline.window[1] - timeline.window[0] - work) * 1e3
    slower = sum(took["tp", "two"]) / sum(took["tp", "one"])
    hidden_share = {place: 1 - took["overlapped", place][1] / took["tp+sp", place][1] for place in ("one", "two")}

    # ---- see
    names_of = {"en": ("TP", "TP + SP", "TP + SP,<br>overlapped"), "zh": ("TP", "TP + SP", "TP + SP，<br>重叠")}
    models = {"MHA, GELU": make_model("tiny", heads=8), "GQA (kv = 2), SwiGLU": make_model("tiny", heads=8, kv_heads=2, activation="swiglu", ffn=168)}
    lab.figure(("One layer of GPT-3's width, 8,192 tokens, on 8 GPUs of one node: which collective stands where", "GPT-3 宽度的一层，8192 个 token，同一节点的 8 块 GPU：哪个通信在哪里"),
               lambda lang: layer_strip(list(zip(names_of[lang], steps.values(), strict=True)), 1, products, lang))
    lab.figure(("What one layer of GPT-3 keeps for backward on a GPU", "GPT-3 的一层在每块 GPU 上为反向保留的量"),
               lambda lang: by_layout({str(asked[k][lang == "zh"]): v for k, v in layouts.items()}, lang))
    places = {"en": ("8 in one node", "4 + 4 in two"), "zh": ("同一节点 8 卡", "两个节点 4 + 4")}
    rows = {"en": ("computing", "waiting for messages", "ms · dgx-h100"), "zh": ("计算", "等待消息", "ms · dgx-h100")}
    lab.figure(("Forward and backward of the same two layers, embedding and head: 8 GPUs in one node, and in two", "同样两层加嵌入与输出的前向与反向：8 块 GPU 在一个节点，以及在两个节点"),
               lambda lang: stack([f"{n}<br>{p}" for p in places[lang] for n in names_of[lang]],
                                  {rows[lang][i]: (TIME[k], [took[v, p][i] for p in ("one", "two") for v in VARIANTS]) for i, k in enumerate(("compute", "exposed"))}, "", rows[lang][2], totals=True))
    lab.figure(("A layer's matrices on 4 ranks, and where sums land with sequence parallelism", "一层的矩阵在 4 个 rank 上，以及序列并行时求和的位置"),
               lambda lang: matrices_figure(models, 4, lang, sequence_parallel=True))
    lab.tell(f"TP sends {sent['tp']:.4g} units a layer, TP with SP {sent['tp+sp']:.4g}: {sent['tp+sp'] - again:.4g} as before, and {again:.4g} to gather again in backward the two inputs of which only a piece was kept.",
             f"TP 每层发送 {sent['tp']:.4g} 个单位，加 SP 为 {sent['tp+sp']:.4g}：原来的 {sent['tp+sp'] - again:.4g} 个，加上反向重新聚集两个只保留了一片的输入的 {again:.4g} 个。", "tab=network&run=tp%2Bsp")
    lab.tell(f"It buys memory: a layer of GPT-3 on 8 ranks keeps {total['tp'] / 1e6:.1f} MB with TP and {total['sp'] / 1e6:.1f} MB with SP, since norms, residuals and masks are cut too; a second context rank halves everything: {total['cp'] / 1e6:.1f} MB.",
             f"换来的是显存：GPT-3 的一层在 8 个 rank 上，TP 保留 {total['tp'] / 1e6:.1f} MB，加 SP 为 {total['sp'] / 1e6:.1f} MB，因为归一化、残差和掩码也被切开；再加一个上下文 rank，全部减半：{total['cp'] / 1e6:.1f} MB。")
    lab.tell(f"In one node TP waits {took['tp', 'one'][1]:.2f} of {sum(took['tp', 'one']):.2f} ms; SP sends more and yet waits {took['tp+sp', 'one'][1]:.2f}, because the extra gathers run under products; overlapped, {took['overlapped', 'one'][1]:.2f}.",
             f"同一节点内 TP 的 {sum(took['tp', 'one']):.2f} ms 中等待 {took['tp', 'one'][1]:.2f} ms；SP 发送更多，却只等待 {took['tp+sp', 'one'][1]:.2f}，因为多出的聚集在矩阵乘之下进行；重叠后为 {took['overlapped', 'one'][1]:.2f}。")
    lab.tell(f"In two nodes the same TP step takes {slower:.2f} times as long, for all its 50 GB/s a GPU; overlap hides {hidden_share['one']:.0%} of SP's waiting in one node and {hidden_share['two']:.0%} in two.",
             f"分在两个节点，即使每块 GPU 有 50 GB/s，同一个 TP 步也要 {slower:.2f} 倍的时间；重叠在一个节点内隐藏 SP 等待的 {hidden_share['one']:.0%}，在两个节点时隐藏 {hidden_share['two']:.0%}。")
    lab.conclude(f"SP sends {sent['tp+sp']:.4g} units for {sent['tp']:.4g}, and keeps {total['sp'] / total['tp']:.0%} of the activations; across nodes TP takes {slower:.2f} times as long.",
                 f"SP 发送 {sent['tp+sp']:.4g} 个单位（TP 为 {sent['tp']:.4g}），激活降到 {total['sp'] / total['tp']:.0%}；跨节点的 TP 要 {slower:.2f} 倍时间。")
    lab.explain("An all-reduce is a reduce-scatter and an all-gather, so moving the cut costs nothing; keeping only a piece of a gathered input costs the gather once more.",
                "all-reduce 就是 reduce-scatter 加 all-gather，所以移动切分的位置不花带宽；只保留聚集输入的一片，就要再聚集一次。",
                ("The volume is the same except for one gather in backward a region.", "除了反向每个区域多一次聚集，通信量相同。"),
                ("What TP leaves whole (norms, residuals, masks) is cut along the sequence: activations by t.", "TP 未切的部分（归一化、残差、掩码）沿序列切开：激活除以 t。"),
                ("Each sum is waited for: t belongs inside a node.", "每次求和都要等待：t 应留在节点内。"))
    lab.own_number(f"{sent['tp']:.4g} against {sent['tp+sp']:.4g} units; {total['tp'] / total['sp']:.2f} times fewer activations; {slower:.2f} times the time across nodes.",
                   f"{sent['tp']:.4g} 对 {sent['tp+sp']:.4g} 个单位；激活少到 1/{total['tp'] / total['sp']:.2f}；跨节点时间 {slower:.2f} 倍。")
