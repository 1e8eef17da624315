"""Figures of who computes what, which need the plan and the results beside the graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.layers import moe
from glasscluster.scenarios.jobs.kept import kept_picture
from glasscluster.scenarios.jobs.trained import Trained
from glasscluster.strategies.layout.tokens import tokens_of, work
from glasscluster.strategies.plan import Plan
from glasscluster.visualize.figures import network
from glasscluster.visualize.figures.causal import Shared, causal_figure
from glasscluster.visualize.figures.experts import Load, expert_load_figure
from glasscluster.visualize.figures.matrices import matrices_figure
from glasscluster.visualize.words import word


def network_pictures(trained: Trained) -> dict[str, Callable[[str], Any]]:
    """The figures of a trained network by rank: matrices, a sharded causal mask, the load of experts."""
    plan, model, results = trained.job.plan, trained.job.model, trained.run.results
    made: dict[str, Callable[[str], Any]] = {}
    if plan.tp > 1 and not model.experts and not model.kv_latent:
        made["matrices"] = partial(_matrices, plan, model)
    picture = (
        None if trained.job.packed else kept_picture(plan, model)
    )  # packed documents keep one more copy of attention's output than the formula lists
    if picture:
        made["kept"] = picture  # in the memory tab
    if plan.cp > plan.heads_cut and model.causal and not model.prefix and not model.window:
        made["causal"] = partial(_causal, plan, model)
    if model.experts:
        made["experts"] = partial(_load, plan, model, results)
    if plan.ep > 1 and not trained.run.graph.has_native:
        made["dispatch"] = partial(_dispatch, trained.run.graph)
    return made


def _matrices(plan: Plan, model: ModelConfig, lang: str) -> Any:
    """A layer's matrices, rank by rank."""
    return matrices_figure({"": model}, plan.tp, lang, plan.sequence_parallel, word("matrices_title", lang))


def _causal(plan: Plan, model: ModelConfig, lang: str) -> Any:
    """The causal mask of a few tokens, coloured by the rank that holds them; the work shown is the real
    model's.
    """
    groups = plan.cp // plan.heads_cut
    tokens = 2 * groups * max(1, 8 // groups)
    queries = [0] * tokens
    for group in range(groups):
        for token in tokens_of(plan.context, group, groups, tokens):
            queries[token] = group
    pairs = work(plan.context, plan.cp, model.seq, model.heads // plan.tp, plan.heads_cut)
    return causal_figure(
        [Shared(plan.context, queries, pairs)], lang, word("causal_work", lang, tokens=tokens)
    )


def _load(plan: Plan, model: ModelConfig, results: list[Any], lang: str) -> Any:
    """The rows of every expert, summed over all ranks; tensor ranks route the same tokens, so they count
    once.
    """
    first = results[:: plan.tp]
    wanted, kept = (
        [sum(c) for c in zip(*(c for r in first for c in r.routing_counts(what)), strict=True)]
        for what in ("wanted", "kept")
    )
    sequences = plan.global_batch * model.routed_layers
    places = moe.capacity(model, model.seq) * sequences if model.capacity_factor else None
    return expert_load_figure([Load("", wanted, kept, places)], lang, word("expert_load", lang))


def _dispatch(graph: Any, lang: str) -> Any:
    return network.matrices_figure(
        {word("dispatch_matrix", lang): network.matrix(graph, "ep", "dispatch")}, lang, across=1
    )
