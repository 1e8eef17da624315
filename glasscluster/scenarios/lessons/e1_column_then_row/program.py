"""E1: why Megatron cuts the MLP by columns first."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import COLLECTIVE
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.matrices import matrices_figure
from glasscluster.visualize.figures.plots import bars

WIDER = 4  # the MLP's middle over its input


def inputs(tokens: int, hidden: int) -> tuple[Any, Any, Any]:
    """The tokens [tokens, h], and both matrices [h, 4h] and [4h, h], the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    a = torch.randn(hidden, WIDER * hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    b = torch.randn(WIDER * hidden, hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    return x, a, b


def mistake(tokens: int, hidden: int, t: int) -> float:
    """The largest error of a sum behind GELU over the largest output, on one device."""
    x, a, b = inputs(tokens, hidden)
    expected = F.gelu(x @ a) @ b
    parts = [F.gelu(x_i @ a_i) for x_i, a_i in zip(x.chunk(t, 1), a.chunk(t, 0), strict=True)]
    wrong = torch.stack(parts).sum(0) @ b
    return float((wrong - expected).abs().max() / expected.abs().max())


def program(gpu: Any, tokens: int, hidden: int) -> dict[str, float]:
    """Run one MLP sharded both ways; the messages of each way carry its label."""

    t, r = gpu.size, gpu.rank
    x, a, b = inputs(tokens, hidden)
    expected = F.gelu(x @ a) @ b
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
    scale = float(expected.abs().max())
    return {
        "column": float((column - expected).abs().max()) / scale,
        "row": float((row - expected).abs().max()) / scale,
        "wrong": float((wrong @ b - expected).abs().max()) / scale,
    }


@lesson
def column_then_row(lab: Lab, t: int = 4, hidden: int = 64) -> None:
    """One MLP is cut both ways over real ranks, then a whole GPT trains with tensor parallelism."""
    tokens, layers, seq = 128, 4, 64
    run = lab.run("mlp", lab.text("both_ways"), program, tokens, hidden, gpus=t)
    model = make_model("tiny", layers=layers, hidden=hidden, seq=seq)
    plan: dict[str, Any] = {"tp": t, "micro_batch": 2, "global_batch": 2}
    trained = lab.train("tp", lab.text("gpt"), model=model, steps=1, **plan)
    graph = trained.run.graph
    inside = (graph.kind == COLLECTIVE) & (graph.rank == 0) & (graph.layer >= 0)
    reduces = int(inside.sum())
    lab.row("all_reduces", 4 * layers, reduces, "Eq 18", unit="all-reduces")
    of_layers = next(r for r in trained.checks if r.key == "tp_layer_sent")
    predicted = 8 * 2 * seq * hidden * (t - 1) * layers * 4
    lab.row("bytes_of_all_reduces", predicted, of_layers.counted, "Eq 18")
    sent = {label: sum(run.graph.bytes_sent(label=label)) for label in ("column then row", "row then column")}
    size = tokens * hidden * 8
    lab.row("column_then_row", 2 * (t - 1) * size, sent["column then row"], "Eq 9")
    lab.row("row_then_column", (2 * WIDER + 1) * (t - 1) * size, sent["row then column"], "Eq 9, Eq 10")
    times_bytes = sent["row then column"] / sent["column then row"]
    lab.row("row_over_column", (2 * WIDER + 1) / 2, times_bytes, "(2·4 + 1) / 2 units", unit="×")
    lab.ask("times_bytes", times_bytes, "×", t=t, tokens=tokens, hidden=hidden, middle=WIDER * hidden)
    worst = {way: max(result[way] for result in run.results) for way in ("column", "row", "wrong")}
    rounding: dict[str, Any] = {"unit": "relative", "tolerance": 1e-12}
    lab.row("error_column_then_row", 0, worst["column"], "one device", **rounding)
    lab.row("error_row_then_column", 0, worst["row"], "one device", **rounding)
    lab.row("error_of_mistake", mistake(tokens, hidden, t), worst["wrong"], "one device", **rounding)

    def what_each_sends(lang: str) -> Any:
        nbytes = lab.word("bytes_sent_forward", lang)
        orders = [lab.word("column_row", lang), lab.word("row_column", lang)]
        return bars(orders, {nbytes: list(sent.values())}, nbytes)

    lab.figure("what_each_order_sends", what_each_sends)
    lab.figure("matrices", lambda lang: matrices_figure({"MHA, GELU": model}, t, lang), t=t)
    lab.tell("both_orders", view="tab=network&run=mlp", times_bytes=times_bytes)
    lab.tell("mistake", wrong=worst["wrong"])
    counts: dict[str, Any] = {"per_layer": reduces // layers, "layers": layers, "t": t}
    lab.tell("gpt", view="tab=timeline&run=tp", **counts, megabytes=of_layers.counted / 1e6)
    lab.conclude(times_bytes=times_bytes)
    lab.explain()
    lab.own_number(per_layer=reduces // layers, t=t)
    lab.card(times_bytes=times_bytes, wrong=worst["wrong"])
