"""The ledger row of expert parallelism: bytes predicted from the routers' choices, and counted along ep."""

from __future__ import annotations

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.strategies.layout.judged import Judged, bytes_row

PLACE = 50  # in the ledger


def predict(run: Judged) -> list[Row]:
    """Eq 27: bytes of the rows that went to experts on other ranks, and back, in forward and backward."""
    plan, graph = run.plan, run.graph
    if graph is None or run.results is None or plan.ep == 1:
        return []
    each, rows_sent = run.model.experts // plan.ep, 0
    for rank, result in enumerate(run.results):
        here = rank // plan.tp % plan.ep
        again = plan.recomputed_layers(result.routing) if "moe" in plan.recomputed else ()
        for layer, made in result.routing.items():
            for rows in (x["kept"] for x in made):
                left = sum(rows) - sum(rows[here * each : (here + 1) * each])
                rows_sent += left * (6 if layer in again else 4)
    return [
        bytes_row(
            graph,
            "ep_tokens_sent",
            Said("ep tokens sent to experts and back, all ranks", "ep 往返专家的 token 发送量，所有 rank"),
            rows_sent * run.model.hidden * plan.width,
            graph.where(axis="ep", purpose="activations"),
            "GShard 2006.16668 section 3 (Eq 27), as routed",
        )
    ]
