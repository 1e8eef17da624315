"""E3: cross-entropy over a vocabulary that is sharded over ranks, without ever gathering a row of logits."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from glasscluster.model.parallel import Shard
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.plots import lines

HIDDEN = 16
VOCABULARIES, ODD, LARGEST = (64, 1_001, 8_192, 50_257), 1_001, 50_257
SMALL = 66  # the vocabulary of the mistake


def inputs(vocab: int, tokens: int) -> tuple[Any, Any, Any]:
    """The hidden states [1, tokens, h], the table [V, h] and the targets, the same on every rank."""

    generator = torch.Generator().manual_seed(vocab)
    x = torch.randn(1, tokens, HIDDEN, generator=generator, dtype=torch.float64)
    table = torch.randn(vocab, HIDDEN, generator=generator, dtype=torch.float64)
    return x, table / HIDDEN**0.5, torch.randint(vocab, (1, tokens), generator=generator)


def alone(vocab: int, tokens: int, zeros: int = 0) -> tuple[float, Any, Any]:
    """The loss and the gradients of x and of the table on one device, by torch's own cross-entropy; `zeros`
    more logits of every token are 0.
    """

    x, table, targets = inputs(vocab, tokens)
    logits = pad(x.requires_grad_() @ table.requires_grad_().T, (0, zeros))
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    return float(loss.detach()), x.grad, table.grad


def program(gpu: Any, vocab: int, tokens: int, gathers: bool, pads: bool) -> dict[str, Any]:
    """Compute the loss from this rank's rows of the table, from scalars or from gathered logits.

    With `pads` False rows of padding count as tokens, which is the mistake that the lesson shows.
    """
    seen: list[tuple[float, float]] = []

    class Watched(TensorParallel):
        """Records the first token's scalar before and after each sum or maximum over ranks."""

        def all_reduce(self, x: Any, label: str, op: str = "sum") -> Any:
            before = float(x.flatten()[0])
            seen.append((before, float(super().all_reduce(x, label, op).flatten()[0])))
            return x

    x, table, targets = inputs(vocab, tokens)
    parallel, shard = Watched(gpu.comm), Shard(0)
    mine = shard.take(table, gpu.rank, gpu.size).requires_grad_()
    logits = parallel.column(x.requires_grad_(), mine)
    if gathers:
        whole = torch.zeros(gpu.size, *logits.shape, dtype=logits.dtype)
        whole[gpu.rank] = logits.detach()
        gpu.comm.all_gather(whole, purpose="activations", label="logits")
        logits = whole.permute(1, 2, 0, 3).flatten(2)[0, :, :vocab]
        return {"loss": float(cross_entropy(logits, targets.flatten(), reduction="sum"))}
    logits.retain_grad()
    loss = parallel.cross_entropy(logits, targets, vocab if pads else len(mine) * gpu.size)
    loss.backward()
    real = max(0, min(len(mine), vocab - gpu.rank * len(mine)))
    touched = int((logits.grad[..., real:] != 0).sum()) if logits.grad is not None else -1
    return {
        "loss": float(loss.detach()),
        "x": x.grad,
        "table": mine.grad,
        "seen": seen[:3],
        "padded": len(mine) - real,
        "touched": touched,
    }


@lesson
def vocab_parallel_loss(lab: Lab, t: int = 4, tokens: int = 32) -> None:
    """The loss of several vocabularies on real ranks, cut and gathered; then a whole GPT whose vocabulary the
    ranks do not divide.
    """
    cut = {v: both_ways(lab, "scalars", v, tokens, t) for v in VOCABULARIES}
    gathered = {v: both_ways(lab, "gather", v, tokens, t) for v in VOCABULARIES}
    scalar_bytes = {v: sum(sent(run, f"cross_entropy {k}") for k in SCALARS) for v, run in cut.items()}
    gathered_bytes = {v: sent(run, "logits") for v, run in gathered.items()}
    times = gathered_bytes[LARGEST] / scalar_bytes[LARGEST]
    lab.ask("times", times, "×", largest=LARGEST, t=t)

    padded = {v: -(-v // t) * t for v in VOCABULARIES}
    for v in VOCABULARIES:
        lab.row("scalars", 3 * 2 * (t - 1) * tokens * 8, scalar_bytes[v], "Eq 19, Eq 9", vocab=v)
        lab.row("gathered", (t - 1) * tokens * padded[v] * 8, gathered_bytes[v], "Eq 10", vocab=v)
    lab.row(
        "times", padded[LARGEST] / 6, times, "Eq 19: V/6, V padded", unit="×", tolerance=1e-12, vocab=LARGEST
    )
    for what, worst in differences(cut, gathered, tokens, t).items():
        rounding: dict[str, Any] = {"unit": "relative", "tolerance": 1e-12, "what": lab.text(what)}
        lab.row("difference", 0, worst, "one device", **rounding)
    ranks = [rank for run in cut.values() for rank in run.results]
    expected, source = sum(padded.values()) - sum(padded), "V padded to a multiple of t"
    lab.row("rows_of_padding", expected, sum(rank["padded"] for rank in ranks), source, unit="rows")
    touched = sum(rank["touched"] for rank in ranks)
    lab.row("padded_logits", 0, touched, "their logit is minus infinity", unit="logits")
    trained = lab.train("gpt", lab.text("gpt"), model=make_model("tiny", vocab=253), steps=2, tp=t)
    mistake = check_mistake(lab, tokens, t)

    lab.figure("three_all_reduces", lambda lang: three_all_reduces(lab, cut[ODD].results, lang), odd=ODD)
    each = {"gather_short": gathered_bytes, "scalars_short": scalar_bytes}
    lab.figure("bytes_by_vocabulary", lambda lang: bytes_by_vocabulary(lab, each, tokens, lang))
    peak, target, total = (after for _, after in cut[ODD].results[0]["seen"])
    first: dict[str, Any] = {"peak": peak, "target": target, "total": total, "loss": log(total) - target}
    lab.tell("first_token", view="tab=network&run=scalars", **first)
    bytes_a_token: dict[str, Any] = {
        "scalar_bytes": scalar_bytes[LARGEST] / tokens,
        "gathered_bytes": gathered_bytes[LARGEST] / tokens,
    }
    lab.tell("bytes", view="tab=network&run=gather", largest=LARGEST, **bytes_a_token, times=times)
    milliseconds: dict[str, Any] = {
        "odd_scalars_ms": 1e3 * cut[ODD].timeline.makespan,
        "odd_gathered_ms": 1e3 * gathered[ODD].timeline.makespan,
        "scalars_ms": 1e3 * cut[LARGEST].timeline.makespan,
        "gathered_ms": 1e3 * gathered[LARGEST].timeline.makespan,
    }
    sizes: dict[str, Any] = {"odd": ODD, "largest": LARGEST}
    lab.tell("time", view="tab=timeline&run=scalars", tokens=tokens, **sizes, **milliseconds)
    padding: dict[str, Any] = {
        "mistake": mistake,
        "small": SMALL,
        "difference": trained.comparison["max_rel_grad_diff"],
    }
    lab.tell("padding", view="tab=checks&run=gpt", **sizes, t=t, **padding)
    lab.conclude(largest=LARGEST, times=times)
    lab.explain()
    lab.own_number(times=times, largest=LARGEST)
    lab.card(mistake=mistake, small=SMALL)


def check_mistake(lab: Lab, tokens: int, t: int) -> float:
    """Check by how much the loss is too large where rows of padding count as tokens, as a share of it."""
    right = alone(SMALL, tokens)[0]
    expected = alone(SMALL, tokens, -SMALL % t)[0] / right - 1
    mistake = lab.cluster(t).run(program, SMALL, tokens, False, False).results[0]["loss"] / right - 1
    rounding: dict[str, Any] = {"unit": "relative", "tolerance": 1e-12, "vocab": SMALL}
    lab.row("mistake", expected, mistake, "one device, logits of 0 appended", **rounding)
    return float(mistake)


SCALARS = ("max", "target", "sum")


def both_ways(lab: Lab, way: str, vocab: int, tokens: int, t: int) -> Any:
    """Run the loss from scalars or from gathered logits; the runs of the odd vocabulary go into the
    report.
    """
    job = (program, vocab, tokens, way == "gather", True)
    if vocab == ODD:
        return lab.run(way, lab.text(way, vocab=vocab), *job, gpus=t)
    return lab.cluster(t).run(*job)


def sent(run: Any, label: str) -> int:
    """The bytes that all ranks sent under a label."""
    return sum(run.graph.bytes_sent(label=label))


def differences(cut: dict[int, Any], gathered: dict[int, Any], tokens: int, t: int) -> dict[str, float]:
    """The largest relative differences from torch's cross-entropy on one device, over ranks and
    vocabularies.
    """
    worst = {"loss": 0.0, "gradient": 0.0}
    for vocab in VOCABULARIES:
        loss, d_x, d_table = alone(vocab, tokens)
        for rank, (mine, other) in enumerate(zip(cut[vocab].results, gathered[vocab].results, strict=True)):
            worst["loss"] = max(worst["loss"], abs(mine["loss"] / loss - 1), abs(other["loss"] / loss - 1))
            of_x = (mine["x"] - d_x).abs().max() / d_x.abs().max()
            of_table = (mine["table"] - Shard(0).take(d_table, rank, t)).abs().max() / d_table.abs().max()
            worst["gradient"] = max(worst["gradient"], float(of_x), float(of_table))
    return worst


def three_all_reduces(lab: Lab, ranks: list[dict[str, Any]], lang: str) -> Any:
    """Draw one token's scalars: every rank's value before each all-reduce, and the value after it."""
    t = len(ranks)
    each = -(-ODD // t)  # rows of a rank
    heads = ["largest_logit", "max_over_ranks", "target_less_max"]
    heads += ["sum_over_ranks", "sum_of_exponentials", "sum_over_ranks"]
    names = []
    for rank in range(t):
        columns: dict[str, Any] = {"first": rank * each, "last": min(ODD, (rank + 1) * each) - 1}
        names.append(lab.word("rank_columns", lang, rank=rank, **columns))
    text = [[f"{value:.4g}" for pair in rank["seen"] for value in pair] for rank in ranks]
    fill = [[shade(0.15), shade(0.95)] * 3] * t
    return cells_figure([Table("", names, [lab.word(head, lang) for head in heads], text, fill)])


def bytes_by_vocabulary(lab: Lab, each: dict[str, dict[int, int]], tokens: int, lang: str) -> Any:
    """Draw the bytes a token that all ranks send, from scalars and from gathered logits."""
    series = {}
    for way, nbytes in each.items():
        series[lab.word(way, lang)] = (VOCABULARIES, [nbytes[v] / tokens for v in VOCABULARIES])
    return lines(
        series, lab.word("vocabulary", lang), lab.word("bytes_a_token", lang), log_x=True, log_y=True
    )
