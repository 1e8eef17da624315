"""A6: the same tokens for BERT and for GPT: which carry a loss, and how much each learns from them."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
def fates(vocab: int, seq: int, sequences: int) -> dict[str, float]:
    """What became of the chosen tokens in many sequences: hidden, another token, left alone; and how many were chosen a sequence."""
    import torch

    from glasscluster.model.parallel import IGNORE
    from glasscluster.model.text.data import masked

    tokens = torch.randint(0, vocab - 1, (sequences, seq), generator=torch.Generator().manual_seed(0))
    inputs, targets = masked(tokens, vocab, 0, 0)
    chosen = targets != IGNORE
    hidden = (inputs == vocab - 1)[chosen].float().mean()
    kept = (inputs == tokens)[chosen].float().mean()
    return {"hidden": float(hidden), "kept": float(kept), "changed": float(1 - hidden - kept), "chosen": int(chosen.sum()), "outside": int((inputs != tokens)[~chosen].sum())}


@lesson(
    "A6",
    title=("BERT vs GPT", "双向与自回归"),
    topic=("the model", "模型"),
    question=("The same 64 tokens: how many teach GPT something, and how many BERT?", "同样 64 个 token：有多少教会 GPT，又有多少教会 BERT？"),
    formula=Formula("A6", "tokens with a loss of a sequence of T: masked 0.15·T, causal T; of the chosen 80 % hidden, 10 % another token, 10 % as they are", "T", "BERT 1810.04805 §3.1, App. A.1"),
    kills=("“BERT is just GPT without a mask.” Without the causal mask the next token is in plain sight; so BERT must hide what it predicts, and learns from 15 % of its tokens.", "“BERT 就是去掉掩码的 GPT。”没有因果掩码，下一个 token 就在眼前；所以 BERT 必须把要预测的遮住，只从 15 % 的 token 学习。"),
    card=Card(
        ("BERT or GPT: what differs, and why did decoders win?", "BERT 与 GPT 有何不同？为什么解码器赢了？"),
        ("GPT predicts every next token from the left; BERT predicts hidden tokens from both sides. At equal tokens GPT gets almost seven times the signals, and generating is what it was trained for.",
         "GPT 由左侧预测每个下一个 token；BERT 由两侧预测被遮住的 token。同样的 token 数，GPT 得到的信号将近七倍，而且生成正是它训练的任务。"),
        ("Attention: causal against bidirectional. Loss: T tokens a sequence against 0.15 T. BERT hides 80 % of the chosen with [MASK], swaps 10 % and keeps 10 %, because [MASK] never occurs later and every position must stay useful. What BERT sees is richer (both sides), so its vectors are better for classifying and retrieval at the same size. "
         "Decoders won because the loss is dense, the KV cache makes generation cheap, one objective covers all tasks as text, and prompting needs no head. A prefix model (UniLM, T5's decoder-only variant) lets the prompt see itself both ways. Original BERT adds token types, next-sentence prediction (dropped by RoBERTa) and post-norm.",
         "注意力：因果对双向。损失：每序列 T 个 token 对 0.15 T 个。BERT 把选中的 80 % 换成 [MASK]，10 % 换成别的，10 % 不动，因为之后不会再出现 [MASK]，每个位置都要保持有用。BERT 看到的更多（两侧），所以同样大小时其向量更适合分类与检索。"
         "解码器之所以胜出：损失稠密，KV 缓存使生成便宜，一个目标覆盖所有以文本表达的任务，提示不需要额外的头。前缀模型（UniLM、T5 的仅解码器变体）让提示部分双向可见。原始 BERT 还有句子类型、下一句预测（RoBERTa 去掉了）和后置归一化。"),
        (("Why are 10 % of the chosen tokens left as they are?", "为什么选中的 token 有 10 % 保持不变？"), ("Why has BERT no KV cache?", "为什么 BERT 没有 KV 缓存？")),
    ),
)
def bert_vs_gpt(lab: Lab, steps: int = 20, seq: int = 64) -> None:
    """The same small corpus trains a masked and a causal model of one size; tokens that carry a loss are counted on the way."""
    import math

    import torch

    from glasscluster.model.parallel import IGNORE
    from glasscluster.strategies.job import Job
    from glasscluster.strategies.judge.single_device import train_one_device
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.cells import Table, cells_figure
    from glasscluster.visualize.figures.plots import lines

    shape = {"layers": 2, "hidden": 64, "seq": seq, "vocab": 257}
    models = {"causal": make_model("tiny", **shape), "masked": make_model("tiny", **shape, objective="masked", norm_position="post")}
    titles = {"causal": ("GPT: the next token", "GPT：下一个 token"), "masked": ("BERT: hidden tokens", "BERT：被遮住的 token")}
    with_loss, batches, losses = {}, {}, {}
    for kind, model in models.items():
        lab.train(kind, titles[kind], model=model, steps=1, dp=2, global_batch=8)
        job = Job(make_plan(dp=2, global_batch=8, lr=3e-3), model, steps)
        text = [job.batch(step) for step in range(steps)]  # the rest of the way on one device, which the two ranks equal
        losses[kind] = train_one_device(model, text, job.optimizer, 1.0, 0, torch.float32).losses
        batches[kind] = text[0]
        with_loss[kind] = int((text[0][1] != IGNORE).sum())
    lab.check("tokens with a loss, causal", 8 * seq, with_loss["causal"], "every token has a next one", unit="tokens", match="statistical", tolerance=0)
    lab.check("tokens with a loss, masked", 8 * round(0.15 * seq), with_loss["masked"], "0.15·T a sequence", unit="tokens", match="statistical", tolerance=0)
    fate = fates(257, seq, 2000)
    for name, share in (("hidden", 0.8), ("changed", 0.1), ("kept", 0.1)):
        error = (share * (1 - share) / fate["chosen"]) ** 0.5
        lab.check(f"share of chosen tokens that are {name}", share, fate[name], "1810.04805 §3.1", unit="", match="statistical", tolerance=5 * error + 1 / 257)
    lab.check("tokens outside the chosen ones that were changed", 0, fate["outside"], "only chosen tokens are touched", unit="tokens")
    ratio = with_loss["causal"] / with_loss["masked"]
    lab.ask(f"Sequences of {seq} tokens: how many times as many tokens teach GPT as teach BERT?", f"长 {seq} 的序列：教会 GPT 的 token 数是教会 BERT 的几倍？", ratio, "×")
    names = {"en": ("GPT", "BERT", "step", "loss a predicted token (nats)", "tokens of the corpus read", "tokens that carried a loss"), "zh": ("GPT", "BERT", "步", "每个被预测 token 的损失 (nat)", "读过的语料 token", "带损失的 token")}

    def shown(lang: str) -> Any:
        tables = []
        for kind in ("causal", "masked"):
            inputs, targets = (x[0, :32].tolist() for x in batches[kind])
            text = [["▢" if t == 256 else chr(t) if 32 < t < 127 else "·" for t in row] for row in (inputs[:16], inputs[16:])]
            fill = [["#ffd38a" if t != IGNORE else "#ffffff" for t in row] for row in (targets[:16], targets[16:])]
            tables.append(Table(titles[kind][lang == "zh"], ["0", "16"], [str(i) for i in range(16)], text, fill))
        return cells_figure(tables)

    lab.figure(("The same text: tokens that carry a loss are coloured, ▢ is [MASK]", "同一段文本：带损失的 token 着色，▢ 为 [MASK]"), shown)
    at = list(range(1, steps + 1))
    lab.figure(("Loss of both on the same text", "两者在同一文本上的损失"), lambda lang: lines({names[lang][i]: (at, losses[k]) for i, k in enumerate(("causal", "masked"))}, *names[lang][2:4]).update_traces(mode="lines"))
    lab.figure(("Signals against text read", "信号数与读过的文本"), lambda lang: lines({names[lang][i]: ([8 * seq * s for s in at], [with_loss[k] * s for s in at]) for i, k in enumerate(("causal", "masked"))}, *names[lang][4:]).update_traces(mode="lines"))
    lab.tell(f"Of {8 * seq} tokens {with_loss['causal']} carry a loss in GPT, {with_loss['masked']} in BERT: {ratio:.2f} times as many.", f"{8 * seq} 个 token 中，GPT 有 {with_loss['causal']} 个带损失，BERT 有 {with_loss['masked']} 个：{ratio:.2f} 倍。", "tab=ledger")
    lab.tell(f"Of BERT's chosen tokens {fate['hidden']:.3f} were hidden, {fate['changed']:.3f} changed, {fate['kept']:.3f} kept.", f"BERT 选中的 token 中，{fate['hidden']:.3f} 被遮住，{fate['changed']:.3f} 被替换，{fate['kept']:.3f} 保持不变。", "tab=ledger")
    lab.tell(f"After {steps} steps GPT is at {losses['causal'][-1]:.3f} nats a token, BERT at {losses['masked'][-1]:.3f}; both began near ln 257 = {math.log(257):.3f}.", f"{steps} 步之后 GPT 为每 token {losses['causal'][-1]:.3f} nat，BERT 为 {losses['masked'][-1]:.3f}；两者都从 ln 257 = {math.log(257):.3f} 附近开始。", "tab=story")
    lab.tell("The first step also ran on two data-parallel ranks and equals one device, though each rank has loss tokens of its own number.", "第一步也在两个数据并行 rank 上运行，并与单卡一致，尽管各 rank 带损失的 token 数各有不同。", "tab=checks&run=masked")
    lab.conclude(f"At equal tokens GPT gets {ratio:.2f} times the training signal.", f"同样的 token 数，GPT 得到的训练信号是 {ratio:.2f} 倍。")
    lab.explain("GPT may predict every token, because none sees its own future; BERT sees everything, so it can only be asked about what was taken away.", "GPT 可以预测每个 token，因为谁也看不到自己的未来；BERT 什么都看得到，所以只能问它被拿走的那些。",
                ("The mask decides which predictions are honest.", "掩码决定哪些预测是诚实的。"), ("Fewer tokens with a loss are fewer gradients for the same compute.", "带损失的 token 少，同样的计算得到的梯度就少。"))
    lab.own_number(f"{ratio:.2f}× the tokens with a loss.", f"带损失的 token 为 {ratio:.2f} 倍。")
