"""E10: experts on 8 ranks: which rows leave, what a hot expert does to load, traffic and time, and what puts it right."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
def sequence(rank: int, number: int, tokens: int, hidden: int) -> Any:
    """Independent tokens [1, s, h]: nothing about one says where another goes."""
    import torch

    return torch.randn(1, tokens, hidden, generator=torch.Generator().manual_seed(1000 * rank + number), dtype=torch.float64)


def block_of(config: Any, ranks: Any = None) -> Any:
    """A block whose experts are all here, or spread over a communicator's ranks; its weights depend on nothing but their names."""
    import torch

    from glasscluster.model.gpt import Block
    from glasscluster.model.parallel import Unsharded
    from glasscluster.strategies.experts.expert_parallel import ExpertParallel

    parallel: Any = Unsharded()
    if ranks is not None:
        parallel.experts = ExpertParallel(ranks)
    return Block(0, config, parallel, 3, torch.empty(0, dtype=torch.float64))


def program(gpu: Any, config: Any, sequences: int) -> dict[str, Any]:
    """One layer's router and experts, forward and backward, a sequence at a time."""
    from glasscluster.model.layers import moe

    mesh = gpu.make_mesh({"dp": gpu.size})
    with gpu.unrecorded():
        block = block_of(config, mesh.inside(mesh["dp"], gpu.size, "ep", axis="ep"))
        batch = [sequence(gpu.rank, i, config.seq, config.hidden).requires_grad_() for i in range(sequences)]
    outputs = []
    for i, x in enumerate(batch):
        with gpu.region("forward", layer=0, micro_batch=i):
            outputs.append(moe.experts(block, x))
        with gpu.region("backward", layer=0, micro_batch=i):
            outputs[i].backward(x.detach())
    return {"outputs": [y.detach() for y in outputs], "routing": block.routing}


@lesson(
    "E10",
    title=("MoE all-to-all", "专家并行"),
    topic=("expert parallel", "专家并行"),
    question=("A router sends each token to 2 of 8 experts, one on each of 8 ranks. Which share of the copies leaves its rank?",
              "路由器把每个 token 发给 8 个专家中的 2 个，8 个 rank 各有一个专家。有多大比例的副本离开自己的 rank？"),
    formula=Formula("Eq 27", "rows leaving a rank per dispatch T·k·(N−1)/N on average; 4 all-to-alls; C = ⌈cf·k·s/E⌉ a sequence; aux αE·Σf_iP_i", "X", "GShard 2006.16668; Switch 2101.03961"),
    kills=("“MoE is cheap because few parameters are active.” FLOPs are few, but every expert must be held somewhere, and 7 of 8 rows travel there and back, twice.",
           "“MoE 便宜，因为激活的参数少。”FLOPs 是少，但每个专家都要放在某处，而且 8 行中有 7 行要往返两次。"),
    card=Card(
        ("What does expert parallelism send, and what goes wrong?", "专家并行通信什么？会出什么问题？"),
        ("Four all-to-alls a layer and micro-batch; (N−1)/N of the k·T rows leave in each. A hot expert makes its rank late for everybody: balance it, or drop rows.",
         "每层每微批次四次 all-to-all，每次 k·T 行中有 (N−1)/N 离开。热门专家使其所在 rank 拖慢所有人：要么均衡，要么丢弃行。"),
        ("Dispatch sends a token's row to the ranks of its k experts, combine brings results back, and backward does both again with gradients: 4·T·k·(N−1)/N·h elements a rank. "
         "Skew does not change the mean that leaves, only who receives. Capacity C = ⌈cf·k·s/E⌉ bounds an expert's rows a sequence and drops the rest. The auxiliary loss αE·Σf_iP_i is α when uniform "
         "and pushes the router there. Expert gradients are already summed over N ranks: reduce them only over replicas. Memory holds all E experts, a token's FLOPs pay for k.",
         "dispatch 把 token 的行发往其 k 个专家所在的 rank，combine 取回结果，反向对梯度再各做一次：每个 rank 4·T·k·(N−1)/N·h 个元素。"
         "倾斜不改变平均离开的行数，只改变谁接收。容量 C = ⌈cf·k·s/E⌉ 限制每条序列中一个专家的行数，其余丢弃。辅助损失 αE·Σf_iP_i 在均匀时等于 α，推动路由器趋向均匀。"
         "专家的梯度已经是 N 个 rank 的和：只在副本间归约。显存要放下全部 E 个专家，每个 token 的 FLOPs 只付 k 个。"),
        (("What happens to a token that is dropped?", "被丢弃的 token 会怎样？"), ("Why must the gradients of experts not be averaged over all ranks?", "为什么专家的梯度不能在所有 rank 上平均？")),
    ),
)
def moe_all_to_all(lab: Lab, sequences: int = 4, steps: int = 10) -> None:
    """A top-2 router and 8 experts on 8 ranks: evenly asked, with a hot expert, with places limited; then a GPT learns to balance."""
    from glasscluster.model.layers import moe
    from glasscluster.sim.recording.events import COLLECTIVE, PURPOSES
    from glasscluster.strategies.experts import expert_parallel
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.experts import Load, expert_load_figure
    from glasscluster.visualize.figures.network import matrices_figure, matrix

    n, k, width, alpha = 8, 2, 8, 0.01
    plain = make_model("tiny", layers=1, experts=n, top_k=k, init_std=0.1, aux_loss=alpha)
    s, h = plain.seq, plain.hidden
    kinds = {"even": (plain, ("Asked evenly", "请求均匀")), "hot": (plain.model_copy(update={"hot_expert": 2.0}), ("A hot expert", "热门专家")),
             "places": (plain.model_copy(update={"hot_expert": 2.0, "capacity_factor": 1.25}), ("Hot, places limited", "热门专家，容量受限"))}
    runs, loads, times, dropped, far = {}, {}, {}, {}, [0.0]
    for key, (config, title) in kinds.items():
        run = runs[key] = lab.run(key, title, program, config, sequences, gpus=n)
        routing, alone = [r["routing"] for r in run.results], block_of(config)
        wanted, kept = ([[sum(c) for c in zip(*(m[what] for m in mine), strict=True)] for mine in routing] for what in ("wanted", "kept"))
        loads[key] = [sum(c) for c in zip(*wanted, strict=True)], [sum(c) for c in zip(*kept, strict=True)]
        times[key] = run.timeline.makespan * 1e3
        far += [float((moe.experts(alone, sequence(r, i, s, h)).detach() - y).abs().max()) for r, x in enumerate(run.results) for i, y in enumerate(x["outputs"])]
        found, said = matrix(run.graph, "ep", "dispatch").tolist(), expert_parallel.traffic(kept, h, width)
        lab.check(f"{key}: pairs of ranks whose dispatch differs from the routing's", 0, sum(a != b for x, y in zip(found, said, strict=True) for a, b in zip(x, y, strict=True)), "Eq 27, as routed", unit="pairs")
        moved = (run.graph.kind == COLLECTIVE) & (run.graph.axis == "ep") & (run.graph.rank == 0) & (run.graph.purpose == PURPOSES.index("activations"))
        lab.check(f"{key}: all-to-alls of rows, a layer and micro-batch", 4, int(moved.sum()) / sequences, "Eq 27: dispatch and combine, both ways", unit="all-to-alls")
        dropped[key] = sum(loads[key][0]) - sum(loads[key][1])
        lost = sum(moe.predict_dropped(config, m["wanted"], s) for mine in routing for m in mine)
        lab.check(f"{key}: assignments dropped, sequence by sequence", lost, dropped[key], "Eq 27: what is wanted beyond C", unit="rows")
    lab.check("largest difference of outputs from one device", 0, max(far), "all experts in one place, float64", unit="absolute", tolerance=1e-12)
    most, places = max(max(m["kept"]) for r in runs["places"].results for m in r["routing"]), moe.capacity(kinds["places"][0], s)
    lab.check("places: most rows of a sequence that an expert took", places, most, "C = ⌈1.25·k·s/E⌉", unit="rows")
    rows, left = n * sequences * s * k, sum(runs["even"].graph.bytes_sent(axis="ep", label="dispatch")) // (h * width)
    error = (rows * 7 / 8 / 8) ** 0.5  # of a sum of independent choices; a token's own two are never the same, which makes it less
    lab.check("rows that left their rank in the dispatch, all ranks", expert_parallel.leaving(rows // k, k, n), left, "Eq 27; 3 standard errors √(A·7/8·1/8)", unit="rows", match="statistical", tolerance=3 * error)
    uniform = block_of(plain)
    uniform.router_weight.data.zero_()
    moe.experts(uniform, sequence(0, 0, s, h))
    lab.check("auxiliary loss a token, uniform router", alpha, float(uniform.routing[0]["aux"]) / s, "Eq 27: α when uniform", unit="loss", tolerance=1e-15)

    trained, after = {}, {}
    for key, weight, title in (("left", 0.0, ("Hot GPT, no auxiliary loss", "热门专家，训练时无辅助损失")), ("balanced", 0.3, ("Hot GPT, auxiliary loss", "热门专家，训练时有辅助损失"))):
        model = kinds["hot"][0].model_copy(update={"aux_loss": weight})
        trained[key] = lab.train(key, title, model=model, steps=steps, checked=weight > 0, compared=False, dp=n, ep=n, micro_batch=1, global_batch=n, lr=5e-3)
        after[key] = [sum(c) for c in zip(*(c for r in trained[key].run.results for c in r.routing_counts("kept")), strict=True)]
    over = {key: max(x) / (sum(x) / n) for key, x in {**{key: x for key, (x, _) in loads.items()}, **after}.items()}
    dense, graph = plain.model_copy(update={"experts": 0, "ffn": k * plain.width}), trained["left"].run.graph
    same, tokens = lab.dry(model=dense, dp=n, micro_batch=1, global_batch=n).graph, n * s
    flops = [int(g.flops[g.phase == 1].sum()) for g in (same, graph)]
    lab.check("forward FLOPs: those of a dense model of width k·f and the routers'", flops[0] + 2 * h * n * tokens, flops[1], "2 h E a token for a router", unit="FLOPs")
    held = sum(size for r in trained["left"].run.results for name, size, _ in r.units if name.startswith("expert"))
    lab.check("MLP parameters over that dense model's, E/k", n / k, held / (2 * h * k * plain.width), "every expert is held by a rank", unit="×")
    mixtral = make_model("tiny", layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, activation="swiglu", experts=8, vocab=32000, seq=1, tied=False)
    billions = [mixtral.parameters() / 1e9, (mixtral.parameters() - 32 * 6 * 3 * 4096 * 14336) / 1e9]
    for name, paper, count in zip(("all", "active"), (47, 13), billions, strict=True):
        lab.check(f"Mixtral 8x7B: {name} parameters, by this count", paper, count, "Mixtral 2401.04088, abstract (rounded there)", unit="billion", tolerance=0.5)
    share = left / rows
    lab.ask("Top-2, 8 experts on 8 ranks: which share of the copies leaves its rank?", "top-2、8 个专家在 8 个 rank 上：有多大比例的副本离开自己的 rank？", 100 * share, "%")

    lab.figure(("Dispatch, rank to rank: evenly asked, and with expert 0 hot", "dispatch 的 rank 间流量：请求均匀，与专家 0 热门"),
               lambda lang: matrices_figure({kinds[key][1][lang == "zh"]: matrix(runs[key].graph, "ep", "dispatch") for key in ("even", "hot")}, lang))
    lab.figure(("Rows for each expert, all ranks", "各专家的行数，全部 rank"),
               lambda lang: expert_load_figure([Load(kinds[key][1][lang == "zh"], *two, places * sequences * n if key == "places" else None) for key, two in loads.items()], lang))
    two = {"left": ("without the auxiliary loss", "无辅助损失"), "balanced": ("with the auxiliary loss", "有辅助损失")}
    lab.figure((f"The hot GPT after {steps} steps", f"热门专家的 GPT 训练 {steps} 步之后"),
               lambda lang: expert_load_figure([Load(two[key][lang == "zh"], x, x) for key, x in after.items()], lang))
    lab.tell(f"{left:,} of {rows:,} rows left their rank: {share:.2%}, for 7 of 8 expected; 3 standard errors are {3 * error / rows:.2%}.",
             f"{rows:,} 行中有 {left:,} 行离开本 rank：{share:.2%}，期望为 7/8；三倍标准误为 {3 * error / rows:.2%}。", "tab=network&run=even")
    lab.tell(f"With expert 0 hot its load is {over['hot']:.2f} times the mean instead of {over['even']:.2f}; as many rows leave, but most go to rank 0, and the layer takes {times['hot'] / times['even']:.2f} times as long.",
             f"专家 0 变热后，最大负载为平均的 {over['hot']:.2f} 倍（原为 {over['even']:.2f}）；离开的行数相近，但大多去往 rank 0，该层用时为 {times['hot'] / times['even']:.2f} 倍。", "tab=timeline&run=hot")
    lab.tell(f"With {places} places a sequence, {dropped['places']:,} of {rows:,} rows are dropped and the time is {times['places'] / times['even']:.2f} times the even one: quick, but these tokens lose an expert.",
             f"每条序列 {places} 个位置时，{rows:,} 行中丢弃 {dropped['places']:,} 行，用时为均匀时的 {times['places'] / times['even']:.2f} 倍：快，但这些 token 少了一个专家。", "tab=timeline&run=places")
    lab.tell(f"Trained {steps} steps, the hot GPT's largest load is {over['left']:.2f} times the mean without the auxiliary loss, {over['balanced']:.2f} with it.",
             f"训练 {steps} 步后，热门专家的 GPT 最大负载：无辅助损失为平均的 {over['left']:.2f} 倍，有辅助损失为 {over['balanced']:.2f} 倍。", "tab=network&run=balanced")
    lab.tell(f"A token pays the FLOPs of {k} experts, memory holds {n}: Mixtral 8x7B computes with {billions[1]:.1f} and holds {billions[0]:.1f} billion parameters.",
             f"一个 token 只付 {k} 个专家的 FLOPs，显存却要放下 {n} 个：Mixtral 8x7B 用 {10 * billions[1]:.0f} 亿个参数计算，却要放下 {10 * billions[0]:.0f} 亿个。", "tab=memory&run=left")
    lab.conclude(f"{share:.1%} of the rows travel; a hot expert makes the layer {times['hot'] / times['even']:.2f} times as long.",
                 f"{share:.1%} 的行要传输；热门专家使该层用时变为 {times['hot'] / times['even']:.2f} 倍。")
    lab.explain("Wherever a token's expert is, it is on the token's own rank only one time in N. An all-to-all ends when its busiest rank is done, so load decides the time.",
                "无论专家在哪，它恰好在 token 自己 rank 上的概率只有 1/N。all-to-all 要等最忙的 rank，所以负载决定时间。",
                ("(N−1)/N of the k·T rows leave, whoever is popular.", "无论谁热门，k·T 行中都有 (N−1)/N 离开。"),
                ("All experts are held, k are computed: memory and traffic are the price, not FLOPs.", "放下全部专家，只计算 k 个：代价是显存和通信，而不是 FLOPs。"))
    lab.own_number(f"{share:.1%} leave; load {over['hot']:.1f} → time {times['hot'] / times['even']:.2f}×.", f"{share:.1%} 离开；负载 {over['hot']:.1f} → 时间 {times['hot'] / times['even']:.2f} 倍。")
