"""A7: which bytes become one token, why Chinese then costs more of them, and in what unit two tokenizers can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import pairwise

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def by_hand(pieces: Mapping[bytes, int], merges: int) -> list[tuple[bytes, bytes]]:
    """Algorithm 1 of the paper as it stands there: count all pairs anew, merge the most frequent one, repeat."""
    from glasscluster.model.text.bpe import BYTES

    tokens, words, found = (
        list(BYTES),
        {tuple(BYTES.index(piece[i : i + 1]) for i in range(len(piece))): n for piece, n in pieces.items()},
        [],
    )
    for _ in range(merges):
        counts: Counter[tuple[int, int]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merged = {}
        for word, times in words.items():
            out: list[int] = []
            for token in word:
                joins = bool(out) and (out[-1], token) == best
                out[-1:] = [len(tokens)] if joins else [*out[-1:], token]
            merged[tuple(out)] = times
        words = merged
        found.append((tokens[best[0]], tokens[best[1]]))
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return found


# fmt: off
@lesson(
    "A7",
    title=("BPE by hand", "手写 BPE"),
    topic=("text", "文本"),
    question=("Why does Chinese cost more tokens?", "为什么中文更费 token？"),
    formula=Formula("F37", "vocabulary = 256 + merges; bits/byte = loss·tokens/(bytes·ln 2); first loss ln V", "X", "Sennrich et al. 1508.07909, algorithm 1; GPT-2, section 2.2"),
    kills=("“The model with the lower loss per token is the better one.” Longer tokens are harder to guess and fewer; only per byte of text can tokenizers be compared.",
           "“每 token 损失更低的模型更好。”token 越长越难猜，但数量更少；不同分词器之间只能按每字节文本来比较。"),
    card=Card(
        ("How does BPE work, and what does a vocabulary cost?", "BPE 如何工作？词表的代价是什么？"),
        ("Start from bytes; merge the most frequent pair of neighbours into a new token, again and again: vocabulary = 256 + merges. Encoding replays the merges by rank. What was frequent in the training text gets short, the rest stays bytes.",
         "从字节开始，反复把最常见的相邻对合并成新 token：词表 = 256 + 合并数。编码时按名次重放合并。训练文本里常见的内容变短，其余停留在字节。"),
        ("A rule first cuts the text into pieces (GPT-2: a word with one space before it, digits, punctuation), so no token crosses words; bytes make every text encodable without an unknown token. Counts live in a table from pair to pieces and a heap, so a merge "
         "touches only the pieces that have it. A Chinese character is three bytes of UTF-8, so without merges it is three tokens. A larger vocabulary shortens sequences (attention is quadratic in them) and costs V·h embedding and head rows, each seen more rarely. "
         "Compare models by bits per byte: loss per token times tokens per byte, over ln 2. Special tokens stand outside the merges, and user text must not be able to make them.",
         "先用一条规则把文本切成片段（GPT-2：带一个前置空格的单词、数字、标点），因此 token 不会跨词；以字节为底，任何文本都能编码，没有未知 token。计数保存在“对→片段”的表和一个堆里，所以一次合并只触及含有它的片段。"
         "一个汉字是 UTF-8 的三个字节，没有合并就是三个 token。词表更大则序列更短（注意力随其平方增长），代价是 V·h 的嵌入与输出行，且每行更少见到。比较模型要用每字节比特数：每 token 损失乘以每字节 token 数，再除以 ln 2。特殊 token 不经过合并，用户文本不得产生它们。"),
        (("Why is arithmetic hard for some tokenizers?", "为什么有些分词器让算术变难？"), ("How do you extend a vocabulary after pre-training?", "预训练之后怎样扩充词表？")),
    ),
)
def bpe_by_hand(lab: Lab, vocab: int = 1024, steps: int = 40) -> None:
    """Three tokenizers learn from the same sentences in English, in Chinese and in both; two GPTs then read the text as bytes and as tokens."""
    import math
    import tempfile
    from pathlib import Path

    import torch

    from glasscluster.model.text.bpe import count_pieces, learn
    from glasscluster.model.text.mixture import Mixture
    from glasscluster.model.text.texts import bilingual
    from glasscluster.model.text.tokenizer import Tokenizer
    from glasscluster.strategies.exchange.replica import one_thread
    from glasscluster.strategies.job import Job
    from glasscluster.strategies.judge.single_device import train_one_device
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.merge_tree import merge_tree_figure
    from glasscluster.visualize.figures.plots import bars

    paper = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    texts = {"en": [pair[0].encode() for pair in bilingual()], "zh": [pair[1].encode() for pair in bilingual()]}
    few = count_pieces(texts["en"][:60] + texts["zh"][:60])
    wrong = sum(by_hand(pieces, n) != [(f.tokens[a], f.tokens[b]) for a, b in f.merges] for pieces, n, f in ((paper, 8, learn(paper, 264)), (few, 50, learn(few, 306))))
    lab.check("texts whose merges are not those of counting anew each time", 0, wrong, "1508.07909, algorithm 1", unit="texts")
    lab.check("how often e s stands in the paper's dictionary", 6 + 3, learn(paper, 257).counts[0], "newest 6, widest 3", unit="times")
    lab.say("learning three tokenizers")
    made = {name: Tokenizer.train(sources, vocab) for name, sources in (("en", texts["en"]), ("zh", texts["zh"]), ("both", texts["en"] + texts["zh"]))}
    size = {lang: sum(map(len, found)) for lang, found in texts.items()}
    counts = {name: {lang: sum(len(t.encode(text)) for text in found) for lang, found in texts.items()} for name, t in made.items()}
    for name, t in made.items():
        lab.check(f"different tokens of the tokenizer for {name}", 256 + len(t.merges), len(set(t.tokens.values())), "256 + merges", unit="tokens")
        broken = sum(t.decode_bytes(t.encode(text)) != text for found in texts.values() for text in (*found, bytes(range(256)), b"\xe4\xb8"))
        lab.check(f"texts that come back otherwise, tokenizer for {name}", 0, broken, "tokens are bytes", unit="texts")
    ratio = {name: c["zh"] / c["en"] for name, c in counts.items()}

    lab.say("training a GPT on bytes and one on tokens")
    each = size["en"] + size["zh"], counts["both"]["en"] + counts["both"]["zh"]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        made["both"].save(Path(home) / "tokenizer.json")
        for name, file, v, seq in (("bytes", None, 256, 64), ("tokens", str(Path(home) / "tokenizer.json"), vocab, round(64 * each[1] / each[0]))):
            model = make_model("tiny", layers=1, hidden=64, heads=4, seq=seq, vocab=v)
            data = Mixture((("english", 1.0), ("chinese", 1.0)), file)
            titles = {"bytes": ("A GPT that reads bytes", "读字节的 GPT"), "tokens": ("A GPT that reads tokens", "读 token 的 GPT")}
            trained = lab.train(name, titles[name], model=model, steps=1, dp=2, global_batch=16, data=data, compared=False)
            if lab.leader:
                lab.check(f"first loss of the GPT that reads {name}", math.log(v), float(trained.run.results[-1].losses[0]), "F37: ln V ± 0.1", unit="nats", match="statistical", tolerance=0.1)
            job = Job(make_plan(global_batch=16, lr=3e-3), model, steps, data, lab.seed)
            batches = [job.batch(step) for step in range(steps)]
            with one_thread():  # the rest of the way on one device, which the two ranks equal
                losses = train_one_device(model, batches, job.optimizer, 1.0, lab.seed, torch.float32).losses
            late = [targets.flatten().tolist() for _, targets in batches[-steps // 4 :]]
            read, many = sum(len(made["both"].decode_bytes(t)) if file else len(t) for t in late), sum(map(len, late))
            loss = sum(losses[-steps // 4 :]) / len(late)
            found[name] = {"loss": loss, "bits": loss * many / (read * math.log(2)), "bytes": read / many}
    if not lab.leader:
        return
    lab.check("bits per byte of a GPT that reads bytes, over loss / ln 2", 1, found["bytes"]["bits"] / (found["bytes"]["loss"] / math.log(2)), "F37: a token is a byte", unit="×", match="statistical", tolerance=1e-12)
    lab.ask("Merges learned from English alone: the same sentences in Chinese have about as many bytes. How many times as many tokens?", "只从英文学来的合并：同样的句子用中文写，字节数差不多。token 数是几倍？", ratio["en"], "×")
    learned = {"en": ("learned from English", "from Chinese", "from both"), "zh": ("学自英文", "学自中文", "学自两者")}
    axis = {"en": ("English text", "Chinese text", "bytes per token"), "zh": ("英文文本", "中文文本", "每 token 字节数")}
    per = {n: {x: size[x] / counts[n][x] for x in size} for n in made}
    lab.figure(("Bytes per token of the same sentences, by what the merges were learned from", "同样句子的每 token 字节数，按合并学自什么文本"),
               lambda lang: bars(learned[lang], {axis[lang][i]: [per[n][x] for n in made] for i, x in enumerate(size)}, axis[lang][2]))
    for name, title in (("en", ("Merges learned from English: Chinese stays bytes", "合并学自英文：中文停留在字节")), ("both", ("Merges learned from both languages", "合并学自两种语言"))):
        lab.figure(title, partial(merge_tree_figure, made[name], [" gradients", "梯度", "通信"]))
    units = {"en": ("loss per token (nats)", "bits per byte", "GPT on bytes", "GPT on tokens", "nats a token, bits a byte"), "zh": ("每 token 损失 (nat)", "每字节比特数", "读字节的 GPT", "读 token 的 GPT", "nat/token，bit/字节")}
    lab.figure(("The same two models in two units", "同样两个模型，两种单位"), lambda lang: bars(units[lang][:2], {units[lang][2 + i]: [f["loss"], f["bits"]] for i, f in enumerate(found.values())}, units[lang][4]))
    lab.tell(f"The sentences have {size['en']:,} bytes in English and {size['zh']:,} in Chinese; a Chinese character is three.", f"这些句子的英文为 {size['en']:,} 字节，中文为 {size['zh']:,} 字节；一个汉字三个字节。")
    lab.tell(f"With merges learned from English a token holds {per['en']['en']:.2f} bytes of English and {per['en']['zh']:.2f} of Chinese: {ratio['en']:.2f} times the tokens.", f"合并学自英文时，一个 token 容纳英文 {per['en']['en']:.2f} 字节、中文 {per['en']['zh']:.2f} 字节：token 数是 {ratio['en']:.2f} 倍。")
    lab.tell(f"Learned from Chinese it is {ratio['zh']:.2f} times, learned from both {ratio['both']:.2f}: the text that was counted decides, not the language.", f"学自中文则为 {ratio['zh']:.2f} 倍，学自两者为 {ratio['both']:.2f} 倍：起决定作用的是被统计的文本，而不是语言。")
    raw, short = found["bytes"], found["tokens"]
    lab.tell(f"After {steps} steps of about the same text the GPT on bytes is at {raw['loss']:.2f} nats a token, the one on tokens at {short['loss']:.2f}; per byte of text it is {raw['bits']:.2f} bits and {short['bits']:.2f}.",
             f"读过约同样多的文本、{steps} 步之后，读字节的 GPT 每 token {raw['loss']:.2f} nat，读 token 的 {short['loss']:.2f}；按每字节文本则是 {raw['bits']:.2f} 比特与 {short['bits']:.2f} 比特。", "tab=story")
    lab.conclude(f"Merges learned from English spend {ratio['en']:.2f} times as many tokens on the same sentences in Chinese; learned from both, {ratio['both']:.2f} times.", f"学自英文的合并在同样的中文句子上花 {ratio['en']:.2f} 倍的 token；学自两者则为 {ratio['both']:.2f} 倍。")
    lab.explain("Merges go to what is frequent in the text they are counted in. A character of three bytes that is rare there stays three tokens.", "合并给了统计文本中常见的内容。三个字节的汉字若在那里少见，就仍是三个 token。",
                ("Tokens of a language depend on its share of the tokenizer's training text.", "一种语言的 token 数取决于它在分词器训练文本中的份额。"),
                ("A loss per token says nothing without bytes per token.", "不知道每 token 的字节数，每 token 损失就说明不了什么。"))
    lab.own_number(f"{ratio['en']:.2f}× the tokens; {raw['bits']:.2f} and {short['bits']:.2f} bits per byte.", f"token 数 {ratio['en']:.2f} 倍；每字节 {raw['bits']:.2f} 与 {short['bits']:.2f} 比特。")
