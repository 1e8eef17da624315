"""The ledger row of context parallelism: bytes predicted and counted along cp."""

from __future__ import annotations

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.strategies.context import ulysses
from glasscluster.strategies.layout.judged import Judged, bytes_row

PLACE = 30  # in the ledger


def predict(run: Judged) -> list[Row]:
    """Eq 26: the bytes that attention sends along cp, summed over ranks."""
    plan, model, graph = run.plan, run.model, run.graph
    if graph is None or plan.cp == 1:
        return []
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    a, n_kv = model.heads // plan.tp, max(1, model.key_heads // plan.tp)
    b, s, d = plan.micro_batch, model.seq, model.score_dim
    one = ulysses.predict_traffic(kind, plan.cp, b, s, a, n_kv, d, plan.width, plan.heads_cut)
    again = {"none": 0, "selective": one["again"], "full": one["forward"]}[
        plan.recompute if "core" in plan.recomputed else "none"
    ]
    again *= len(plan.recomputed_layers(range(model.layers)))
    attention = (one["forward"] + one["backward"]) * model.layers + again
    return [
        bytes_row(
            graph,
            "cp_attention_sent",
            Said("cp keys, values and heads sent, all ranks", "cp 键、值与头的发送量，所有 rank"),
            attention * plan.micro_batches * plan.gpus // plan.pp,
            graph.where(axis="cp", purpose="activations"),
            "Ring attention 2310.01889, Ulysses 2309.14509 (Eq 26)",
        )
    ]
