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


def program(gpu: Any, tokens: int, hidden: int) -> dict[str, float]:
    """Run one MLP sharded both ways; the messages of each way carry its label."""

    t, r = gpu.size, gpu.rank
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    a = torch.randn(hidden, 4 * hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    b = torch.randn(4 * hidden, hidden, generator=generator, dtype=torch.float64) / hidden**0.5
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
    lab.ask("per_layer", reduces / layers, "all-reduces")
    lab.row("all_reduces", 4 * layers, reduces, "Eq 18", unit="all-reduces")
    of_layers = next(r for r in trained.checks if r.key == "tp_layer_sent")
    predicted = 8 * 2 * seq * hidden * (t - 1) * layers * 4
    lab.row("bytes_of_all_reduces", predicted, of_layers.counted, "Eq 18")
    sent = {label: sum(run.graph.bytes_sent(label=label)) for label in ("column then row", "row then column")}
    size = tokens * hidden * 8
    lab.row("column_then_row", 2 * (t - 1) * size, sent["column then row"], "Eq 9")
    lab.row("row_then_column", (2 * 4 + 1) * (t - 1) * size, sent["row then column"], "Eq 9, Eq 10")
    worst = {way: max(result[way] for result in run.results) for way in ("column", "row", "wrong")}
    rounding: dict[str, Any] = {"unit": "relative", "tolerance": 1e-12}
    lab.row("error_column_then_row", 0, worst["column"], "one device", **rounding)
    lab.row("error_row_then_column", 0, worst["row"], "one device", **rounding)

    def what_each_sends(lang: str) -> Any:
        nbytes = lab.word("bytes_sent_forward", lang)
        orders = [lab.word("column_row", lang), lab.word("row_column", lang)]
        return bars(orders, {nbytes: list(sent.values())}, nbytes)

    lab.figure("what_each_order_sends", what_each_sends)
    lab.figure("matrices", lambda lang: matrices_figure({"MHA, GELU": model}, t, lang), t=t)
    lab.tell("both_orders", times_bytes=sent["row then column"] / sent["column then row"])
    lab.tell("mistake", wrong=worst["wrong"])
    lab.conclude()
    lab.explain()
    lab.own_number(per_layer=reduces / layers, t=t)
