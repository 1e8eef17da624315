"""A2: causal, padding and packed documents: who can influence whom, by trying."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

DOCUMENTS, PADS = (5, 4, 3), 3  # lengths of packed documents; tokens of padding at the end


# fmt: off
def allowed(kind: str, n: int) -> Any:
    """[n, n] of truth: may query i see key j?"""
    import torch

    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    document = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS))
    match kind:
        case "causal":
            return j <= i
        case "padding":
            return (j < n - PADS).expand(n, n)
        case "packed":
            return (j <= i) & (document[i] == document[j])
    return torch.ones(n, n, dtype=torch.bool)


def transformer(x: Any, weights: list[Any], mask: Any) -> Any:
    """Two layers over x [n, h]: attention under a mask, then an MLP, each added to what came in."""
    import torch

    for w_qkv, w_out, w_up, w_down in weights:
        q, k, v = (torch.nn.functional.layer_norm(x, x.shape[-1:]) @ w_qkv).chunk(3, -1)
        scores = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
        x = x + scores.softmax(-1) @ v @ w_out
        x = x + torch.nn.functional.gelu(torch.nn.functional.layer_norm(x, x.shape[-1:]) @ w_up) @ w_down
    return x


def influence(mask: Any, x: Any, weights: list[Any]) -> list[list[float]]:
    """[n][n]: how far output i moves when input j is changed."""
    import torch

    before, moved = transformer(x, weights, mask), []
    for j in range(len(x)):
        changed = x.clone()
        changed[j] += torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)
        moved.append((transformer(changed, weights, mask) - before).abs().amax(-1))
    return torch.stack(moved, -1).tolist()


def program(gpu: Any, kinds: list[str], h: int) -> dict[str, Any]:
    """Influence under every mask; what additive masks do in 16 bits; the model's own causal attention."""
    import torch

    from glasscluster.model.layers.attention import unfused_attention

    n = sum(DOCUMENTS)
    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        weights = [[torch.randn(*s, generator=draw, dtype=torch.float64) * s[0] ** -0.5 for s in ((h, 3 * h), (h, h), (h, 4 * h), (4 * h, h))] for _ in range(2)]
        x = torch.randn(n, h, generator=draw, dtype=torch.float64)
        found: dict[str, Any] = {kind: influence(allowed(kind, n), x, weights) for kind in kinds}
        scores, hidden = torch.randn(n, n, generator=draw), ~allowed("packed", n)
        hidden[0] = True  # a query that may see nothing
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            added = scores.to(dtype) + torch.where(hidden, -1e9, 0.0).to(dtype)
            found[name] = int(added.softmax(-1).isnan().any(-1).sum())
        q, k, v = torch.randn(3, 1, 1, n, h, generator=draw, dtype=torch.float64)
    with gpu.region("forward", layer=0, micro_batch=0):
        ours = unfused_attention(q, k, v)
    with gpu.unrecorded():
        plain = (q @ k.mT * h**-0.5).masked_fill(~allowed("causal", n), float("-inf")).softmax(-1) @ v
        found["apart"] = float((ours - plain).abs().max())
    return found


@lesson(
    "A2",
    title=("Masks: causal, padding, packed", "三种掩码"),
    topic=("the model", "模型"),
    question=("Two documents are packed into one sequence. Can the second see the first?", "两篇文档拼在一条序列里，后一篇能看到前一篇吗？"),
    formula=Formula("A2", "query i sees key j ⇔ j ≤ i and doc(i) = doc(j); everywhere else the influence is exactly 0", "X", "1706.03762 §3.2.3; definition"),
    kills=("“A padding mask is a causal mask, and −1e9 is always safe.” They hide different things; and in fp16 −1e9 is −∞: a row that may see nothing becomes NaN.",
           "“填充掩码就是因果掩码，−1e9 总是安全的。”两者遮住的东西不同；而在 fp16 中 −1e9 就是 −∞：什么都不能看的一行会变成 NaN。"),
    card=Card(
        ("Which masks does a transformer need, and how do you test one?", "Transformer 需要哪些掩码？怎样测试？"),
        ("Causal hides the future, padding hides what is not text, packing hides other documents. Test: change token j and look whose output moves.",
         "因果掩码遮未来，填充掩码遮非文本，打包掩码遮其他文档。测试：改动 token j，看谁的输出变了。"),
        ("A mask is a relation, allowed(i, j). Causal: j ≤ i. Padding: j is text. Packed: the same document, and j ≤ i; the same as running the documents apart if positions restart too. Layers compose relations; these are transitive, so depth leaks nothing. "
         "Write it as −∞ before softmax, in softmax's own type: a finite number is only as safe as its type. fp16 ends at −65504, so −1e9 becomes −∞, and a row that is all −∞ is 0/0. Padded queries must see something or be dropped, and they carry no loss. "
         "FlashAttention takes causal as a flag and packed documents as cumulative lengths: tiles that are hidden are not computed at all.",
         "掩码是一个关系 allowed(i, j)。因果：j ≤ i。填充：j 是文本。打包：同一篇文档且 j ≤ i；若位置也重新开始，就等于分别运行各篇文档。多层是关系的复合；这些关系是传递的，所以加深不会泄漏。"
         "在 softmax 之前写成 −∞，用 softmax 自己的类型：有限的数只在其类型里安全。fp16 到 −65504 为止，−1e9 变成 −∞，而全是 −∞ 的一行就是 0/0。填充位置的查询要么能看到点什么，要么丢掉输出，并且不计损失。"
         "FlashAttention 把因果作为开关，把打包文档作为累积长度：被遮住的块根本不计算。"),
        (("Should positions restart in each packed document?", "每篇打包文档的位置要重新开始吗？"), ("What does leaking across documents do to the loss?", "跨文档泄漏会怎样影响损失？")),
    ),
)
def masks(lab: Lab, h: int = 16) -> None:
    """A two-layer transformer under four masks: every input is changed in turn, and every output that moves is noted."""
    from glasscluster.visualize.figures.cells import Table, cells_figure, shade

    n, kinds = sum(DOCUMENTS), ["none", "causal", "padding", "packed"]
    run = lab.run("masks", ("Four masks, two layers", "四种掩码，两层"), program, kinds, h, gpus=1)
    found = run.results[0]
    size = {"none": n * n, "causal": n * (n + 1) // 2, "padding": n * (n - PADS) + PADS, "packed": sum(k * (k + 1) // 2 for k in DOCUMENTS)}
    for kind in kinds:
        may = allowed(kind, n).tolist()
        wrong = sum((found[kind][i][j] != 0) != (may[i][j] or i == j) for i in range(n) for j in range(n))  # the residual goes round attention
        lab.check(f"{kind}: pairs that influence each other", size[kind], sum(x != 0 for row in found[kind] for x in row), "the relation, and each token itself", unit="pairs")
        lab.check(f"{kind}: pairs that are not as the mask says", 0, wrong, "allowed(i, j)", unit="pairs")
    apart = allowed("packed", n).tolist()
    lab.check("largest influence of one packed document on another", 0, max(found["packed"][i][j] for i in range(n) for j in range(n) if not apart[i][j]), "exactly 0", unit="absolute")
    lab.check("largest difference of the GPT's causal attention from the mask", 0, found["apart"], "float64", unit="absolute", tolerance=1e-12)
    lab.check("fp16, −1e9 added: rows of NaN", 1, found["fp16"], "−1e9 is −∞ in fp16: 0/0 where a row sees nothing", unit="rows")
    lab.check("bf16, −1e9 added: rows of NaN", 0, found["bf16"], "bf16 has the range of fp32", unit="rows")
    lab.ask(f"Documents of {', '.join(map(str, DOCUMENTS))} tokens in one causal sequence of {n}: how many of its {n * n} query-key pairs are allowed?",
            f"长 {'、'.join(map(str, DOCUMENTS))} 的文档拼成一条 {n} 个 token 的因果序列：{n * n} 个查询-键对中允许多少个？", size["packed"], "pairs")
    names = {"en": {"none": "no mask", "causal": "causal", "padding": f"padding, {PADS} at the end", "packed": "packed documents"},
             "zh": {"none": "无掩码", "causal": "因果", "padding": f"填充，末尾 {PADS} 个", "packed": "打包的文档"}}
    axes = {"en": ("input changed, j", "output, i"), "zh": ("改动的输入 j", "输出 i")}

    def tables(lang: str) -> Any:
        made = []
        for kind in kinds:
            top = max(max(row) for row in found[kind])
            fill = [[shade(0.2 + 0.8 * x / top) if x else "#ffffff" for x in row] for row in found[kind]]
            text = [["" if x else "0" for x in row] for row in found[kind]]
            made.append(Table(names[lang][kind], [str(i) for i in range(n)], [str(j) for j in range(n)], text, fill, *axes[lang]))
        return cells_figure(made, across=2)

    lab.figure(("Who moves when token j is changed; 0 means exactly 0", "改动 token j 时谁会变；0 表示恰好为 0"), tables)
    lab.tell(f"Packed: {size['packed']} of {n * n} pairs are allowed, and after two layers all others still have an influence of exactly 0.",
             f"打包：{n * n} 对中允许 {size['packed']} 对，两层之后其余各对的影响仍恰好为 0。", "tab=ledger")
    lab.tell(f"The causal mask alone would let {size['causal'] - size['packed']} pairs through from one document to the next.", f"只用因果掩码，会有 {size['causal'] - size['packed']} 对从一篇文档漏到下一篇。", "tab=ledger")
    lab.tell("A padded token's output still depends on itself: the residual stream goes round attention, so its loss must be masked too.", "填充 token 的输出仍依赖它自己：残差绕过注意力，所以它的损失也要遮住。", "tab=ledger")
    lab.tell(f"−1e9 added in fp16: {found['fp16']} row of NaN, the one that may see nothing; in bf16: {found['bf16']}.", f"fp16 中加 −1e9：{found['fp16']} 行 NaN，即什么都不能看的那一行；bf16 中：{found['bf16']} 行。", "tab=ledger")
    lab.conclude(f"With the document mask {size['packed']} pairs influence each other; without it, {size['causal']}.", f"用文档掩码时有 {size['packed']} 对相互影响；不用时为 {size['causal']} 对。")
    lab.explain("A hidden score is −∞ before softmax, so its weight is exactly 0; and no depth brings it back, because who sees whom is transitive.",
                "被遮住的分数在 softmax 之前是 −∞，权重恰好为 0；由于“谁看到谁”是传递的，再深也漏不出来。",
                ("allowed(i, j) ⇔ j ≤ i and doc(i) = doc(j).", "allowed(i, j) ⇔ j ≤ i 且 doc(i) = doc(j)。"), ("Masks are checked by changing an input, not by reading the code.", "检验掩码要靠改动输入，而不是读代码。"))
    lab.own_number(f"{size['packed']} of {n * n} pairs; leaks: 0.", f"{n * n} 对中 {size['packed']} 对；泄漏：0。")
