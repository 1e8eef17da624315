"""E1: why Megatron cuts the MLP by columns first."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def program(gpu: Any, tokens: int, hidden: int) -> dict[str, float]:
    """One MLP, cut both ways; messages of each order carry its label."""
    import torch
    import torch.nn.functional as F

    t, r = gpu.size, gpu.rank
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    a = torch.randn(hidden, 4 * hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    b = torch.randn(4 * hidden, hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    whole = F.gelu(x @ a) @ b
    # columns of A, then rows of B: GELU is local, one sum at the end
    column = F.gelu(x @ a.chunk(t, 1)[r]) @ b.chunk(t, 0)[r]
    gpu.comm.all_reduce(column, purpose="activations", label="column then row")
    # rows of A, then columns of B: the sum must come before GELU, and the output is in pieces
    middle = x.chunk(t, 1)[r] @ a.chunk(t, 0)[r]
    wrong = F.gelu(middle)
    gpu.comm.all_reduce(middle, purpose="activations", label="row then column")
    gpu.comm.all_reduce(wrong, purpose="activations", label="the mistake")
    pieces = torch.zeros(t, tokens, hidden // t, dtype=torch.float64)
    pieces[r] = F.gelu(middle) @ b.chunk(t, 1)[r]
    gpu.comm.all_gather(pieces, purpose="activations", label="row then column")
    row = torch.cat(list(pieces), 1)
    scale = float(whole.abs().max())
    return {
        "column": float((column - whole).abs().max()) / scale,
        "row": float((row - whole).abs().max()) / scale,
        "wrong": float((wrong @ b - whole).abs().max()) / scale,
    }


@lesson(
    "E1",
    title=("Column, then row", "先列后行"),
    topic=("tensor parallel", "张量并行"),
    question=(
        "Megatron cuts the MLP's first matrix by columns and the second by rows. Why not the other way round?",
        "Megatron 先按列切第一个矩阵，再按行切第二个。为什么不反过来？",
    ),
    formula=Formula("Eq 18", "4 all-reduces of bsh per layer and micro-batch: 8bsh(t−1)/t sent per rank", "X", "Megatron-LM 1909.08053 §3"),
    kills=(
        "“GELU(X+Y) = GELU(X)+GELU(Y).” It is not linear, so partial sums must be added before it.",
        "“GELU(X+Y) = GELU(X)+GELU(Y)。”它不是线性的，部分和必须先相加。",
    ),
    card=Card(
        ("How many all-reduces does tensor parallelism need per layer, and why?", "张量并行每层需要多少次 all-reduce？为什么？"),
        (
            "Four: one in forward for attention and one for the MLP, and the same in backward. Column then row keeps the nonlinearity local.",
            "四次：前向中注意力一次、MLP 一次，反向相同。先列后行使非线性在本地完成。",
        ),
        (
            "Cut A by columns: each rank has whole columns of XA, so GELU is local; cut B by rows: each rank's product is a partial sum, one "
            "all-reduce (g) adds them. Backward mirrors it: f is the identity forward and an all-reduce backward. Attention is the same with heads as "
            "columns. Each all-reduce moves 2(t−1)/t·bsh elements a rank and sits on the critical path, so tensor parallelism stays inside a node.",
            "A 按列切：每个 rank 得到 XA 的完整列，GELU 在本地；B 按行切：各 rank 得到部分和，一次 all-reduce（g）相加。反向镜像：f 前向恒等、反向 all-reduce。"
            "注意力相同，头就是列。每次 all-reduce 每个 rank 传 2(t−1)/t·bsh 个元素且在关键路径上，所以张量并行应留在节点内。",
        ),
        (("What does sequence parallelism change?", "序列并行改变了什么？"), ("Where is the bias added?", "偏置加在哪里？")),
    ),
)
def column_then_row(lab: Lab, t: int = 4, hidden: int = 64) -> None:
    """One MLP is cut both ways over real ranks, then a whole GPT trains with tensor parallelism."""
    from glasscluster.sim.recording.events import COLLECTIVE
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.matrices import matrices_figure
    from glasscluster.visualize.figures.plots import bars

    tokens, layers = 128, 4
    both = lab.run("mlp", ("One MLP, cut both ways", "同一个 MLP 的两种切法"), program, tokens, hidden, gpus=t)
    model = make_model("tiny", layers=layers, hidden=hidden, seq=64)
    trained = lab.train("tp", ("A GPT, tensor parallel", "张量并行的 GPT"), model=model, steps=1, tp=t, micro_batch=2, global_batch=2)
    graph = trained.run.graph
    reduces = int(((graph.kind == COLLECTIVE) & (graph.rank == 0) & (graph.layer >= 0)).sum())
    lab.ask("How many all-reduces a layer, forward and backward?", "每层前向加反向共多少次 all-reduce？", reduces / layers, "all-reduces")
    lab.check("all-reduces inside the layers, one rank", 4 * layers, reduces, "Eq 18", unit="all-reduces")
    row = next(r for r in trained.checks if "4 per layer" in r["name"])
    lab.check("bytes of them, all ranks", 8 * 2 * 64 * hidden * (t - 1) * layers * 4, row["counted"], "Eq 18")
    sent = {k: sum(both.graph.bytes_sent(label=k)) for k in ("column then row", "row then column")}
    one = tokens * hidden * 8
    lab.check("column then row: one all-reduce of tokens × h", 2 * (t - 1) * one, sent["column then row"], "Eq 9")
    lab.check("row then column: all-reduce 4 × as wide, all-gather", (2 * 4 + 1) * (t - 1) * one, sent["row then column"], "Eq 9, Eq 10")
    worst = {k: max(r[k] for r in both.results) for k in ("column", "row", "wrong")}
    lab.check("largest error of column then row", 0, worst["column"], "one device", unit="relative", tolerance=1e-12)
    lab.check("largest error of row then column", 0, worst["row"], "one device", unit="relative", tolerance=1e-12)
    names = {"en": ("column → row", "row → column", "bytes sent, forward"), "zh": ("先列后行", "先行后列", "前向发送字节")}
    lab.figure(
        ("What each order sends in forward", "两种切法前向的通信量"),
        lambda lang: bars([names[lang][0], names[lang][1]], {names[lang][2]: list(sent.values())}, names[lang][2]),
    )
    lab.figure(
        (f"A layer's matrices on {t} ranks, and where sums over ranks land", f"一层的矩阵在 {t} 个 rank 上，以及求和的位置"),
        lambda lang: matrices_figure({"MHA, GELU": model}, t, lang),
    )
    lab.tell(
        f"Both orders give the whole MLP's output; row first sends {sent['row then column'] / sent['column then row']:.2f} times as much.",
        f"两种切法都得到完整 MLP 的输出；先行后列的通信量是 {sent['row then column'] / sent['column then row']:.2f} 倍。",
    )
    lab.tell(
        f"Adding after GELU instead of before is wrong by {worst['wrong']:.0%} of the largest output.",
        f"若在 GELU 之后才相加，误差达最大输出的 {worst['wrong']:.0%}。",
    )
    lab.conclude("Column then row needs one all-reduce; row first a larger one and a gather.", "先列后行只需一次 all-reduce。")
    lab.explain(
        "GELU must see whole sums. Columns of the first matrix are whole sums; rows are not, so they must be added, four times as wide, before it.",
        "GELU 必须作用在完整的和上。第一个矩阵按列切得到完整的和；按行切则不是，必须先把四倍宽的部分和相加。",
        ("A nonlinearity needs whole sums: GELU(X+Y) ≠ GELU(X)+GELU(Y).", "非线性需要完整的和：GELU(X+Y) ≠ GELU(X)+GELU(Y)。"),
        (
            "Column then row leaves one all-reduce of tokens × h per block and direction.",
            "先列后行，每块每个方向只剩一次 tokens × h 的 all-reduce。",
        ),
    )
    lab.own_number(f"{reduces / layers:.0f} all-reduces a layer at t = {t}.", f"t = {t} 时每层 {reduces / layers:.0f} 次 all-reduce。")
