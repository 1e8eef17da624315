"""The ledger rows of tensor and sequence parallelism: bytes predicted and counted along tp."""

from __future__ import annotations

import numpy as np
import torch

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.strategies.layout.judged import Judged, bytes_row
from glasscluster.strategies.layout.segments import dense_again, ends, last_spared
from glasscluster.strategies.tensor import sequence_parallel, tensor_parallel
from glasscluster.strategies.tensor.tensor_parallel import predict_again, predict_shared_heads

PLACE = 20  # in the ledger


def predict(run: Judged) -> list[Row]:
    """Bytes sent along tp, summed over ranks: Eq 18, Eq 19, and Eq 9 for gradients summed once a step."""
    graph = run.graph
    if graph is None or run.plan.tp == 1:
        return []
    return [*_activations(run, graph), *_shared_heads(run, graph), *_router(run, graph), *_whole(run, graph)]


# ---- what a layer sends for each micro-batch ---------------------------------------------------------------
def _activations(run: Judged, graph: ExecutionGraph) -> list[Row]:
    """Eq 18 and Eq 19: a row each for layers, the embedding, the head, and the loss."""
    plan, model = run.plan, run.model
    each = 2 if plan.sequence_parallel else 1
    b_s, h, t, w = plan.micro_batch * model.seq, model.hidden, plan.tp, plan.width
    total = {"layer": 0, "embedding": 0, "head": 0, "loss": 0}
    for stage, layers in enumerate(plan.stage_layers(model)):
        first_and_last, again = (stage == 0, stage == plan.stages - 1), 0
        if plan.recompute == "full":
            full = plan.recomputed_layers(layers)
            stop = [last_spared(model, i, plan.tp_overlap) for i in ends(full, plan.recompute_every)]
            again = predict_again(sum(map(model.matrix_pairs, full)), sum(stop), each)
        elif branches := dense_again(model, layers, plan.recomputed):
            # a branch runs again without its last collective, unless that is one with its matrix
            stop = [not plan.tp_overlap or not model.dense_width(i) for i in branches]
            pairs = [1 if "shared" in plan.recomputed else model.matrix_pairs(i) - 1 for i in branches]
            again = predict_again(sum(pairs), sum(stop), each)
        inside = sum(_of_layer(run, layer) for layer in layers)  # layers differ: they are taken as one
        sizes = 1, plan.micro_batches, b_s, h, t, w
        if plan.sequence_parallel:
            more = inside, _head_input(model)
            part = sequence_parallel.predict_traffic(*sizes, *first_and_last, again, *more)
        else:
            part = tensor_parallel.predict_traffic(*sizes, *first_and_last, again, inside)
        total = {k: sent + part[k] * plan.dp for k, sent in total.items()}
    where, (what, place, source) = _places(graph), _names(run)
    return [
        bytes_row(
            graph,
            f"tp_{k}_sent",
            Said(f"{what.en}, {place[k].en}", f"{what.zh}，{place[k].zh}"),
            sent,
            where[k],
            source,
        )
        for k, sent in total.items()
    ]


def _of_layer(run: Judged, layer: int) -> int:
    """How many collectives a layer and micro-batch has, without recomputation.

    A pair of matrices that saves its whole input instead of gathering it again in backward (a gated MLP of
    three matrices; a router with its experts) has one all-gather less.
    """
    if run.plan.sequence_parallel:
        return 5 * run.model.matrix_pairs(layer) - (not run.model.one_gather) - run.model.routed(layer)
    return 2 * run.model.matrix_pairs(layer)


def _head_input(model: ModelConfig) -> int:
    """Gathers and scatters of the head's input: a loss in chunks does not gather it again in backward."""
    return 2 if model.loss == "chunked" else 3


def _places(graph: ExecutionGraph) -> dict[str, np.ndarray]:
    """Which events along tp belong to what: activations are distinguished by their layer and label."""
    tp = graph.where(axis="tp", purpose="activations")
    label, in_layer = np.array([*graph.names, ""])[graph.label], graph.layer >= 0
    heads, router = np.char.startswith(label, "key-value head"), np.char.startswith(label, "router weights")
    return {
        "layer": tp & in_layer & ~heads & ~router,
        "embedding": tp & ~in_layer & np.char.startswith(label, "g "),
        "head": tp & ~in_layer & np.char.startswith(label, "f "),
        "loss": tp & np.char.startswith(label, "cross_entropy"),
        "heads": tp & heads,
        "router": tp & router,
    }


def _names(run: Judged) -> tuple[Said, dict[str, Said], str]:
    """The names of the rows: what is sent, for which part of the model, and the source of the formula."""
    full = run.plan.recompute == "full"
    if run.plan.sequence_parallel:
        again = Said(" and what runs again", "及重算的部分") if full else Said("", "")
        what = Said("tp gathers and scatters sent", "tp gather 与 scatter 的发送量")
        source = "Korthikanti 2205.05198 section 4.2.2 (Eq 18)"
        embedding, head = Said("embedding, 2", "嵌入 2 次"), Said("head input, 3", "输出层输入 3 次")
        if (n := _head_input(run.model)) != 3:
            head = Said(f"head input, {n}", f"输出层输入 {n} 次")
    else:
        again = Said(" and what runs again", "及重算的次数") if full else Said("", "")
        what = Said("tp all-reduces sent", "tp all-reduce 发送量")
        source = "Megatron-LM 1909.08053 section 3 (Eq 18, Eq 19)"
        embedding = Said("embedding, once", "词嵌入（一次）")
        head = Said("head input, once", "输出头的输入（一次）")
    each = [str(n) for n in sorted({_of_layer(run, layer) for layer in range(run.model.layers)})]
    place = {
        "layer": Said(f"{' or '.join(each)} per layer{again.en}", f"每层 {'或'.join(each)} 次{again.zh}"),
        "embedding": embedding,
        "head": head,
        "loss": Said("loss, 3 scalars a token", "损失（每 token 3 个标量）"),
    }
    return what, place, source


def _shared_heads(run: Judged, graph: ExecutionGraph) -> list[Row]:
    """The bytes for key-value heads that several ranks share: each gathers K and V of the whole head."""
    plan, model = run.plan, run.model
    if plan.tp <= model.key_heads:
        return []
    full = plan.recomputed_layers(range(model.layers)) if plan.recompute == "full" else []
    runs, b_s = 2 * model.layers + len(full), plan.micro_batch * model.seq
    layers = predict_shared_heads(model.key_heads, model.key_width, plan.tp, b_s, plan.width, runs)
    return [
        bytes_row(
            graph,
            "tp_shared_heads_sent",
            Said("tp keys and values of shared heads sent", "tp 共享头的键和值的发送量"),
            layers * plan.micro_batches * plan.dp,
            _places(graph)["heads"],
            "GQA 2305.13245; Eq 10 over tp / kv-heads",
        )
    ]


def _router(run: Judged, graph: ExecutionGraph) -> list[Row]:
    """The bytes for gradients of the k weights that the router gives a token.

    They are all-reduced; with sequence parallelism the weights are gathered and their gradients scattered.
    """
    plan, model = run.plan, run.model
    if not model.experts:
        return []
    weights = plan.micro_batch * model.seq * model.top_k * max(plan.width, 4)
    runs = 2 * model.routed_layers
    if "moe" in plan.recomputed and plan.sequence_parallel:
        runs += sum(map(model.routed, plan.recomputed_layers(range(model.layers))))
    return [
        bytes_row(
            graph,
            "tp_router_sent",
            Said("tp weights of the router sent", "tp 路由权重的发送量"),
            runs * (plan.tp - 1) * weights * plan.micro_batches * plan.dp,
            _places(graph)["router"],
            "Eq 9, Eq 10: k numbers a token",
        )
    ]


# ---- once a step -------------------------------------------------------------------------------------------
def _whole(run: Judged, graph: ExecutionGraph) -> list[Row]:
    """The bytes for gradients that are summed over tp once a step: 2 (t-1) times their elements (Eq 9).

    With sequence parallelism they are those of all parameters that are whole on every rank, else of the whole
    parameters that each rank uses for its own heads only.
    """
    plan, units = run.plan, run.units
    whole = [x for u in units for x in u.members if x.shard is None]
    if plan.sequence_parallel:
        key, label = "tp_norm_gradients_sent", "norms, biases, positions"
        name = Said("tp gradients of norms, biases and positions sent", "tp 归一化、偏置和位置梯度的发送量")
        source = "Korthikanti 2205.05198 section 4.2.2"
    else:
        parts = GPTStage(run.model, device=torch.device("meta")).parts()
        partial = set().union(*(part.partial for part in parts))
        whole = [x for x in whole if x.name in partial]
        key, label = "tp_shared_gradients_sent", "what all heads share"
        name = Said("tp gradients of what all heads share sent", "tp 各头共用参数梯度的发送量")
        source = "Eq 9: each rank has its heads' part"
        if not whole:
            return []
    shares = plan.data_ranks // (plan.shards if plan.zero else 1)  # with ZeRO every dp rank sums what it owns
    elements = sum(x.stop - x.start for x in whole)
    predicted = 2 * (plan.tp - 1) * elements * plan.gradient_width * shares
    return [bytes_row(graph, key, name, predicted, graph.where(axis="tp", label=label), source)]
