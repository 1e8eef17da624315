"""A7: which bytes become one token, why Chinese then costs more of them, and how to compare tokenizers."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from glasscluster.model.text.bpe import BYTES, count_pieces, learn
from glasscluster.model.text.mixture import Mixture
from glasscluster.model.text.texts import bilingual
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.merge_tree import merge_tree_figure
from glasscluster.visualize.figures.plots import bars

MARKED = [" gradients", "梯度", "通信"]  # pieces of the text that the trees show


def by_hand(pieces: Mapping[bytes, int], merges: int) -> list[tuple[bytes, bytes]]:
    """Learn merges by algorithm 1 of the paper, as written: count all pairs, merge the most frequent, repeat.

    Returns the merged pairs of byte strings, in order.
    """

    tokens, merged_pairs = list(BYTES), []
    words = {
        tuple(BYTES.index(piece[i : i + 1]) for i in range(len(piece))): n for piece, n in pieces.items()
    }
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
        merged_pairs.append((tokens[best[0]], tokens[best[1]]))
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return merged_pairs


@dataclass(frozen=True)
class Reader:
    """A GPT on one tokenizer: where its rows come from, and how long they are."""

    name: str
    vocab: int
    seq: int
    tokenizer: str | None  # a file; None reads bytes

    @property
    def model(self) -> Any:
        """The GPT's shape."""
        return make_model("tiny", layers=1, hidden=64, heads=4, seq=self.seq, vocab=self.vocab)

    @property
    def data(self) -> Mixture:
        """English and Chinese sentences, with equal weights."""
        return Mixture((("english", 1.0), ("chinese", 1.0)), self.tokenizer)


@lesson
def bpe_by_hand(lab: Lab, vocab: int = 1024, steps: int = 40) -> None:
    """Three tokenizers learn from the same sentences in English, in Chinese and in both; two GPTs then read
    the text as bytes and as tokens.
    """
    english, chinese = (
        [sentence.encode() for sentence in column] for column in zip(*bilingual(), strict=True)
    )
    texts = {"en": english, "zh": chinese}
    check_the_algorithm(lab, english[:60] + chinese[:60])
    lab.say("learning three tokenizers")
    sources = {**texts, "both": english + chinese}
    made = {name: Tokenizer.train(source, vocab) for name, source in sources.items()}
    size = {lang: sum(map(len, text)) for lang, text in texts.items()}
    counts = {name: {lang: tokens_in(t, text) for lang, text in texts.items()} for name, t in made.items()}
    for name, tokenizer in made.items():
        check_a_tokenizer(lab, name, tokenizer, texts)
    ratio = {name: count["zh"] / count["en"] for name, count in counts.items()}

    lab.say("training a GPT on bytes and one on tokens")
    share = sum(counts["both"].values()) / sum(size.values())  # tokens of a byte
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        file = str(Path(home) / "tokenizer.json")
        made["both"].save(Path(file))
        for reader in (Reader("bytes", 256, 64, None), Reader("tokens", vocab, round(64 * share), file)):
            results[reader.name] = read_text(lab, reader, made["both"], steps)
    if not lab.leader:
        return
    over_loss = results["bytes"]["bits"] / (results["bytes"]["loss"] / math.log(2))
    lab.row("bits_of_a_byte", 1, over_loss, "Eq 37: a token is a byte", unit="×", tolerance=1e-12)

    per = {name: {lang: size[lang] / counts[name][lang] for lang in size} for name in made}
    blanks: dict[str, Any] = {"english": size["en"], "chinese": size["zh"]}
    lab.ask("ratio", ratio["en"], vocab=vocab, held=per["en"]["en"], held_chinese=per["en"]["zh"], **blanks)
    lab.figure("bytes_by_tokenizer", lambda lang: bytes_per_token(lab, per, lang))
    for name in ("en", "both"):
        lab.figure(f"merges_{name}", partial(merge_tree_figure, made[name], MARKED))
    lab.figure("two_units", lambda lang: two_units(lab, results, lang))
    lab.tell("bytes_of_the_sentences", **blanks)
    blanks = {f"en_on_{lang}": per["en"][lang] for lang in per["en"]}
    lab.tell("learned_from_english", **blanks, ratio_en=ratio["en"])
    lab.tell("learned_from_others", ratio_zh=ratio["zh"], ratio_both=ratio["both"])
    blanks = {f"loss_{name}": each["loss"] for name, each in results.items()}
    bits: dict[str, Any] = {f"bits_{name}": each["bits"] for name, each in results.items()}
    lab.tell(
        "after_training",
        view="tab=story",
        steps=steps,
        held_tokens=results["tokens"]["bytes"],
        **blanks,
        **bits,
    )
    lab.conclude(ratio_en=ratio["en"], ratio_both=ratio["both"])
    lab.explain()
    lab.own_number(ratio_en=ratio["en"], vocab=vocab, merges=vocab - 256, **bits)


def check_the_algorithm(lab: Lab, sentences: list[bytes]) -> None:
    """Check the learned merges against the paper's algorithm and its own example."""
    paper = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    few = count_pieces(sentences)
    wrong = 0
    for pieces, merges in ((paper, 8), (few, 50)):
        learned = learn(pieces, 256 + merges)
        pairs = [(learned.tokens[a], learned.tokens[b]) for a, b in learned.merges]
        wrong += by_hand(pieces, merges) != pairs
    lab.row("merges_not_as_counted_anew", 0, wrong, "1508.07909, algorithm 1", unit="texts")
    lab.row(
        "paper_dictionary", 6 + 3, learn(paper, 257).counts[0], "1508.07909, algorithm 1", unit="occurrences"
    )


def check_a_tokenizer(lab: Lab, name: str, tokenizer: Tokenizer, texts: dict[str, list[bytes]]) -> None:
    """Check that all tokens differ, and that decoding restores every text, even bytes that are not valid
    text.
    """
    blanks: dict[str, Any] = {"name": lab.text({"en": "english", "zh": "chinese", "both": "two"}[name])}
    different = len(set(tokenizer.tokens.values()))
    expected = 256 + len(tokenizer.merges)
    lab.row("different_tokens", expected, different, "256 + merges", unit="tokens", **blanks)
    rows = [row for text in texts.values() for row in (*text, bytes(range(256)), b"\xe4\xb8")]
    broken = sum(tokenizer.decode_bytes(tokenizer.encode(row)) != row for row in rows)
    lab.row("texts_changed", 0, broken, "tokens are bytes", unit="texts", **blanks)


def tokens_in(tokenizer: Tokenizer, sentences: list[bytes]) -> int:
    """The number of tokens of all sentences."""
    return sum(len(tokenizer.encode(sentence)) for sentence in sentences)


def read_text(lab: Lab, reader: Reader, tokenizer: Tokenizer, steps: int) -> dict[str, float]:
    """Train a GPT; return its loss over the last quarter of the steps, in nats a token and bits a byte, and
    its bytes a token.
    """
    model, data = reader.model, reader.data
    title = lab.text("gpt_reads_bytes" if reader.tokenizer is None else "gpt_reads_tokens")
    plan: dict[str, Any] = {"dp": 2, "global_batch": 16, "data": data, "compared": False}
    trained = lab.train(reader.name, title, model=model, steps=1, **plan)
    if lab.leader:
        first, what = float(trained.run.results[-1].losses[0]), lab.text(reader.name)
        chance: dict[str, Any] = {"unit": "nats", "match": "statistical", "tolerance": 0.1}
        lab.row("first_loss", math.log(reader.vocab), first, "Eq 37: ln V ± 0.1", **chance, name=what)
    job = Job(make_plan(global_batch=16, lr=3e-3), model, steps, data, lab.seed)
    batches = [job.batch(step) for step in range(steps)]
    with one_thread():  # the other steps run on one device, which the two ranks equal
        losses = train_one_device(model, batches, job.optimizer, 1.0, lab.seed, torch.float32).losses
    late = [targets.flatten().tolist() for _, targets in batches[-steps // 4 :]]
    tokens = sum(map(len, late))
    nbytes = sum(len(tokenizer.decode_bytes(row)) for row in late) if reader.tokenizer else tokens
    loss = sum(losses[-steps // 4 :]) / len(late)
    return {"loss": loss, "bits": loss * tokens / (nbytes * math.log(2)), "bytes": nbytes / tokens}


def bytes_per_token(lab: Lab, per: dict[str, dict[str, float]], lang: str) -> Any:
    """Draw bytes a token of either language, by the texts that the merges were learned from."""
    learned_from = [lab.word(name, lang) for name in per]
    series = {
        lab.word("english_text", lang): [each["en"] for each in per.values()],
        lab.word("chinese_text", lang): [each["zh"] for each in per.values()],
    }
    return bars(learned_from, series, lab.word("bytes_per_token", lang))


def two_units(lab: Lab, results: dict[str, dict[str, float]], lang: str) -> Any:
    """Draw the same two models in nats a token and in bits a byte."""
    units = [lab.word("loss_per_token", lang), lab.word("bits_per_byte", lang)]
    series = {lab.word(f"gpt_{name}", lang): [each["loss"], each["bits"]] for name, each in results.items()}
    return bars(units, series, lab.word("nats_and_bits", lang))
