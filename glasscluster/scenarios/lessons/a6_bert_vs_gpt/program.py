"""A6: the same tokens for BERT and for GPT: which tokens carry a loss, and how much each model learns from
them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from glasscluster.model.parallel import IGNORE
from glasscluster.model.text.data import masked
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.plots import lines

VOCAB = 257  # bytes, and [MASK]
SEQUENCES = 8  # of a step


def fates(vocab: int, seq: int, sequences: int) -> dict[str, float]:
    """Count what happened to the chosen tokens of many sequences: the shares hidden, changed and kept, and
    the counts.
    """
    tokens = torch.randint(0, vocab - 1, (sequences, seq), generator=torch.Generator().manual_seed(0))
    inputs, targets = masked(tokens, vocab, 0, 0)
    chosen = targets != IGNORE
    hidden = float((inputs == vocab - 1)[chosen].float().mean())
    kept = float((inputs == tokens)[chosen].float().mean())
    outside = int((inputs != tokens)[~chosen].sum())
    return {
        "hidden": hidden,
        "kept": kept,
        "changed": 1 - hidden - kept,
        "chosen": int(chosen.sum()),
        "outside": outside,
    }


@lesson
def bert_vs_gpt(lab: Lab, steps: int = 20, seq: int = 64) -> None:
    """The same small corpus trains a masked and a causal model of one size; tokens that carry a loss are
    counted on the way.
    """
    shape: dict[str, Any] = {"layers": 2, "hidden": 64, "seq": seq, "vocab": VOCAB}
    models = {
        "causal": make_model("tiny", **shape),
        "masked": make_model("tiny", **shape, objective="masked", norm_position="post"),
    }
    with_loss, batches, losses = {}, {}, {}
    for kind, model in models.items():
        lab.train(kind, lab.text(kind), model=model, steps=1, dp=2, global_batch=SEQUENCES)
        job = Job(make_plan(dp=2, global_batch=SEQUENCES, lr=3e-3), model, steps)
        text = [job.batch(step) for step in range(steps)]
        # the other steps run on one device, which the two ranks equal
        losses[kind] = train_one_device(model, text, job.optimizer, 1.0, 0, torch.float32).losses
        batches[kind] = text[0]
        with_loss[kind] = int((text[0][1] != IGNORE).sum())

    tokens = SEQUENCES * seq
    count: dict[str, Any] = {"unit": "tokens"}
    lab.row("tokens_causal", tokens, with_loss["causal"], "every token has a next one", **count)
    chosen = SEQUENCES * round(0.15 * seq)
    lab.row("tokens_masked", chosen, with_loss["masked"], "round(0.15·s) a sequence", **count)
    fate = fates(VOCAB, seq, 2000)
    for name, share in (("hidden", 0.8), ("changed", 0.1), ("kept", 0.1)):
        # five standard errors of a share, and the random token that happens to be the one that was there
        tolerance = 5 * (share * (1 - share) / fate["chosen"]) ** 0.5 + 1 / VOCAB
        chance: dict[str, Any] = {"unit": "", "match": "statistical", "tolerance": tolerance}
        lab.row("share_of_chosen", share, fate[name], "1810.04805 §3.1", **chance, name=lab.text(name))
    lab.row("outside_the_chosen", 0, fate["outside"], "only chosen tokens are touched", **count)

    ratio = with_loss["causal"] / with_loss["masked"]
    lab.ask("ratio", ratio, seq=seq, share=0.15)
    lab.figure("same_text", lambda lang: coloured_text(lab, batches, lang))
    figures_of_training(lab, losses, with_loss, tokens)
    batch: dict[str, Any] = {"tokens": tokens, "sequences": SEQUENCES, "seq": seq}
    lab.tell("tokens_with_loss", view="tab=ledger", **batch, **with_loss, ratio=ratio)
    lab.tell("fates", view="tab=ledger", **fate)
    ends: dict[str, Any] = {f"loss_{kind}": values[-1] for kind, values in losses.items()}
    lab.tell("after_training", view="tab=story", steps=steps, **ends, vocab=VOCAB, uniform=math.log(VOCAB))
    lab.tell("two_ranks", view="tab=checks&run=masked")
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.own_number(ratio=ratio, seq=seq, chosen=with_loss["masked"] // SEQUENCES)


def coloured_text(lab: Lab, batches: dict[str, Any], lang: str) -> Any:
    """Draw the first 32 tokens of both models' batches; tokens that carry a loss are coloured."""
    tables = []
    for kind in ("causal", "masked"):
        inputs, targets = (x[0, :32].tolist() for x in batches[kind])
        halves = (slice(0, 16), slice(16, 32))
        text = [[letter(token) for token in inputs[half]] for half in halves]
        fill = [["#ffd38a" if t != IGNORE else "#ffffff" for t in targets[half]] for half in halves]
        tables.append(Table(lab.word(kind, lang), ["0", "16"], [str(i) for i in range(16)], text, fill))
    return cells_figure(tables)


def letter(token: int) -> str:
    """A byte as it is printed; ▢ stands for [MASK], · for a byte without a letter."""
    return "▢" if token == VOCAB - 1 else chr(token) if 32 < token < 127 else "·"


def figures_of_training(lab: Lab, losses: dict[str, Any], with_loss: dict[str, int], tokens: int) -> None:
    """Draw losses by step, and the number of tokens learned from against the number read."""
    at = list(range(1, len(losses["causal"]) + 1))
    read = [tokens * step for step in at]
    models = {"gpt": "causal", "bert": "masked"}

    def loss(lang: str) -> Any:
        series = {lab.word(name, lang): (at, losses[kind]) for name, kind in models.items()}
        figure = lines(series, lab.word("step", lang), lab.word("loss_per_token", lang))
        return figure.update_traces(mode="lines")

    def signals(lang: str) -> Any:
        learned = {kind: [with_loss[kind] * step for step in at] for kind in with_loss}
        series = {lab.word(name, lang): (read, learned[kind]) for name, kind in models.items()}
        figure = lines(series, lab.word("tokens_read", lang), lab.word("tokens_learned_from", lang))
        return figure.update_traces(mode="lines")

    lab.figure("losses", loss)
    lab.figure("signals", signals)
