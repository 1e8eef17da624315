"""E3: cross-entropy over a vocabulary that is cut over ranks, without ever putting a row of logits together."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from glasscluster.model.parallel import Shard
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.plots import lines

HIDDEN = 16


def inputs(vocab: int, tokens: int) -> tuple[Any, Any, Any]:
    """The same hidden states [1, tokens, h], table [V, h] and targets everywhere."""

    generator = torch.Generator().manual_seed(vocab)
    x, table = (
        torch.randn(*shape, HIDDEN, generator=generator, dtype=torch.float64)
        for shape in ((1, tokens), (vocab,))
    )
    return x, table / HIDDEN**0.5, torch.randint(vocab, (1, tokens), generator=generator)


def alone(vocab: int, tokens: int) -> tuple[float, Any, Any]:
    """Loss, gradient of x and of the table on one device: torch's own cross-entropy."""

    x, table, targets = inputs(vocab, tokens)
    loss = cross_entropy(
        (x.requires_grad_() @ table.requires_grad_().T).flatten(0, 1), targets.flatten(), reduction="sum"
    )
    loss.backward()
    return float(loss.detach()), x.grad, table.grad


def program(gpu: Any, vocab: int, tokens: int, gathers: bool, pads: bool) -> dict[str, Any]:
    """This rank's rows of the table, and the loss either way. `pads` False: rows of padding pass for tokens (the mistake)."""

    seen: list[tuple[float, float]] = []

    class Watched(TensorParallel):
        """Notes what the first token's scalar was before and after each sum or maximum over ranks."""

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
        return {
            "loss": float(
                cross_entropy(
                    whole.permute(1, 2, 0, 3).flatten(2)[0, :, :vocab], targets.flatten(), reduction="sum"
                )
            )
        }
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
    """The loss of several vocabularies on real ranks, cut and gathered; then a whole GPT whose vocabulary the ranks do not divide."""

    vocabularies, odd, largest = (64, 1_001, 8_192, 50_257), 1_001, 50_257
    rows = {v: -(-v // t) * t for v in vocabularies}  # padded
    scalars, gathered, worst, cut, seconds = {}, {}, {"loss": 0.0, "gradient": 0.0}, {}, {}
    for vocab in vocabularies:
        loss, d_x, d_table = alone(vocab, tokens)
        shown = {
            False: ("scalars", lab.text("three_scalars", vocab=vocab)),
            True: ("gather", lab.text("logits_gathered_2", vocab=vocab)),
        }
        run, other = (
            lab.run(*shown[g], program, vocab, tokens, g, True, gpus=t)
            if vocab == odd
            else lab.cluster(t).run(program, vocab, tokens, g, True)
            for g in shown
        )
        scalars[vocab] = sum(
            sum(run.graph.bytes_sent(label=f"cross_entropy {k}")) for k in ("max", "target", "sum")
        )
        cut[vocab], gathered[vocab], seconds[vocab] = (
            run,
            sum(other.graph.bytes_sent(label="logits")),
            (run.timeline.makespan, other.timeline.makespan),
        )
        for rank, mine in enumerate(run.results):
            for got, want, whole in (
                (mine["x"], d_x, d_x),
                (mine["table"], Shard(0).take(d_table, rank, t), d_table),
            ):
                worst["gradient"] = max(
                    worst["gradient"], float((got - want).abs().max() / whole.abs().max())
                )
            worst["loss"] = max(
                worst["loss"], abs(mine["loss"] / loss - 1), abs(other.results[rank]["loss"] / loss - 1)
            )
    times = {v: gathered[v] / scalars[v] for v in vocabularies}
    lab.ask("number", times[largest], "×", largest=largest, t=t)
    for vocab in vocabularies:
        lab.row(
            "three_scalars_token_all_ranks",
            3 * 2 * (t - 1) * tokens * 8,
            scalars[vocab],
            "F19, F9",
            vocab=vocab,
        )
        lab.row(
            "logits_gathered_all_ranks",
            (t - 1) * tokens * rows[vocab] * 8,
            gathered[vocab],
            "F10",
            vocab=vocab,
        )
    for what in worst:
        lab.row(
            "largest_difference_cut_vocabularies_torch_cross",
            0,
            worst[what],
            "one device",
            unit="relative",
            tolerance=1e-12,
            what=what,
        )
    padded, touched = (
        sum(r[what] for v in vocabularies for r in cut[v].results) for what in ("padded", "touched")
    )
    lab.row(
        "rows_padding_all_vocabularies",
        sum(rows.values()) - sum(rows),
        padded,
        "V padded to a multiple of t",
        unit="rows",
    )
    lab.row("padded_logits_gradient", 0, touched, "their logit is minus infinity", unit="logits")
    trained = lab.train("gpt", lab.text("gpt_vocabulary"), model=make_model("tiny", vocab=253), steps=2, tp=t)
    mistake = (
        lab.cluster(t).run(program, 66, tokens, False, False).results[0]["loss"] / alone(66, tokens)[0] - 1
    )

    def table(lang: str) -> Any:
        text = [[f"{v:.4g}" for pair in r["seen"] for v in pair] for r in cut[odd].results]
        fill, each, say = (
            [[shade(0.15), shade(0.95)] * 3] * t,
            rows[odd] // t,
            (
                lab.word("largest_br_logit", lang),
                lab.word("max_over_br_ranks", lang),
                lab.word("target_logit_br_max", lang),
                lab.word("sum_over_br_ranks", lang),
                lab.word("exp_logit_br_max", lang),
                lab.word("sum_over_br_ranks", lang),
                lab.word("rank", lang),
            ),
        )
        names = [say[6].format(r, r * each, min(odd, (r + 1) * each) - 1) for r in range(t)]
        return cells_figure([Table("", names, say[:6], text, fill)])

    lab.figure(lab.text("token_three_all_reduces", odd=odd), table)
    lab.figure(
        "gathered_logits_grow_vocabulary",
        lambda lang: lines(
            {
                axes[lang][i]: (vocabularies, [d[v] / tokens for v in vocabularies])
                for i, d in enumerate((gathered, scalars))
            },
            lab.word("vocabulary", lang),
            lab.word("bytes_sent_token_all", lang),
            log_x=True,
            log_y=True,
        ),
    )
    peak, target, total = (after for _, after in cut[odd].results[0]["seen"])
    lab.tell(
        "first_token_largest_logit",
        view="tab=network&run=scalars",
        peak=peak,
        target=target,
        total=total,
        loss=log(total) - target,
    )
    lab.tell(
        "three_scalars_send_bytes",
        view="tab=network&run=gather",
        scalar_bytes=scalars[largest] / tokens,
        largest=largest,
        gathered_bytes=gathered[largest] / tokens,
        times=times[largest],
    )
    lab.tell(
        "fewer_bytes_not_always",
        view="tab=timeline&run=scalars",
        odd=odd,
        tokens=tokens,
        odd_scalars_ms=1000.0 * seconds[odd][0],
        odd_gathered_ms=1000.0 * seconds[odd][1],
        largest=largest,
        scalars_ms=1000.0 * seconds[largest][0],
        gathered_ms=1000.0 * seconds[largest][1],
    )
    lab.tell(
        "not_multiples_last_rank",
        view="tab=checks&run=gpt",
        odd=odd,
        largest=largest,
        t=t,
        mistake=mistake,
        difference=trained.comparison["max_rel_grad_diff"],
    )
    lab.conclude(largest=largest, times=times[largest])
    lab.explain()
    lab.own_number(times=times[largest], largest=largest)
