"""Mixture of experts: a router sends each token to k of E MLPs, and adds up what they say.

Follows Switch Transformers (Fedus et al., 2101.03961, section 2), the capacity of GShard (Lepikhin et al.,
2006.16668, section 2.2) and the weights of Mixtral (Jiang et al., 2401.04088, section 2.1). Symbols: E
experts, k of them a token, b sequences, s tokens, h hidden, f width of an expert, A assignments of a token to
an expert (k·b·s, less what is dropped).

        p = softmax(W x)  y = sum over the k largest p_i of w_i · expert_i(x)
                          w = p (k = 1), p over its sum (k > 1)

        tokens   a b c d           expert  0 │ 1 │ 2
        choices  2 0 2 1  ─sort─►  rows    b │ d │ a c  ─dispatch, expert, combine─►  a b c d, times w, added

    capacity  C = ⌈c·k·s/E⌉ tokens of a sequence an expert; places are taken by the first choices of all
              tokens, then by the second ones, in the order of the tokens. Who finds none is dropped: that
              expert adds nothing to that token.
    balance   aux = α E · sum_i f_i P_i a sequence: f_i expert i's share of the k·s choices, P_i its mean
              probability. α when uniform. It goes into the gradient, not into the loss that is reported.

The routing group is one sequence, so nothing here depends on how a batch is cut. Losses are summed over
tokens and divided once by their number, so a token's part is α E · sum_i f_i p_i, and a rank that has some
tokens of a sequence adds theirs: only f needs all. On shapes without data (`meta`) nobody knows the choices:
they are taken as balanced (`balanced`). But: no noise in the router and no router z-loss; experts have no
biases; places are counted with a [b, k·s, E] table.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.layers import mlp
from glasscluster.model.parallel import Shard


def declare(block: Any) -> None:
    """The router, whole on every rank, and the experts, spread over ranks and each cut as an MLP is."""
    config, h, f = block.config, block.config.hidden, block.config.width
    blocks = (f,) * config.gates
    block.weight("router_weight", config.experts, h, std=config.init_std)
    block.weight(
        "expert_up_weight",
        config.experts,
        sum(blocks),
        h,
        std=config.init_std,
        shard=Shard(1, blocks, experts=True),
    )
    block.weight("expert_down_weight", config.experts, h, f, std=block.out_std, shard=Shard(2, experts=True))
    if config.shared_ffn:
        mlp.declare(block, "shared_", config.shared_ffn)
    block.routing = []  # what the router did in each forward since somebody cleared it; see `experts`


def experts(block: Any, x: Tensor) -> Tensor:
    """[b, s, h] -> [b, s, h], in the place of an MLP. Outside the matrices a rank may have some tokens only.

    Appends to `block.routing` how many assignments of this rank's tokens each expert was "wanted" for and
    "kept", and the "aux" loss.
    """
    parallel, config = block.parallel, block.config
    p, weights, choices = route(x, block.router_weight, config)
    choices = parallel.gather_tokens(choices)
    whole = parallel.context.whole(choices) if config.aux_loss or config.capacity_factor else choices
    aux = balance(p, whole, config) if config.aux_loss else None
    if aux is not None:
        weights = AddToGradient.apply(weights, aux, parallel.seed)
    kept = parallel.context.cut(places(whole, config), dim=1) if config.capacity_factor else None

    weights, inside = (
        parallel.f(weights, "router weights"),
        parallel.f(x),
    )  # weights too: their gradient adds up over the parts of h -> f -> h
    order, wanted, counts = by_expert(choices, kept, whole.shape[1], config)
    rows = inside.flatten(0, 1).index_select(0, order // config.top_k)
    arrived, sources = parallel.experts.dispatch(rows, counts)
    rows = parallel.experts.combine(apply_experts(block, arrived, sources), counts, sources)
    y = parallel.g(weighted_sum(rows, order, weights))
    if not block.keep.active:
        block.routing.append({"wanted": wanted, "kept": counts, "aux": None if aux is None else aux.detach()})
    return y + mlp.mlp(block, x, "shared_") if config.shared_ffn else y


# ---- the router --------------------------------------------------------------------------------------------


def route(x: Tensor, router: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [b, s, E] (in fp32 for 16-bit x), and weights and numbers [b, s, k] of the experts
    chosen, best first.
    """
    logits = F.linear(x.to(accumulation_dtype(x.dtype)), router.to(accumulation_dtype(x.dtype)))
    if config.hot_expert:
        logits = logits + F.pad(logits.new_full((1,), config.hot_expert), (0, config.experts - 1))
    p = logits.softmax(-1)
    weights, choices = p.topk(config.top_k, dim=-1)
    return p, weights / weights.sum(-1, keepdim=True) if config.top_k > 1 else weights, choices


def balance(p: Tensor, whole: Tensor, config: ModelConfig) -> Tensor:
    """α E · sum over local tokens and experts of f_i p_i; p [b, s local, E], whole [b, s, k] the choices of
    all tokens.
    """
    b, s, k = whole.shape
    chosen = p.new_zeros(b, config.experts).scatter_add_(1, whole.flatten(1), p.new_ones(b, s * k))
    return (chosen * p.sum(1)).sum() * (config.aux_loss * config.experts / (s * k))


class AddToGradient(torch.autograd.Function):
    """x passes; backward also starts from `aux`, with the seed that the loss's backward starts from (None:
    1).
    """

    @staticmethod
    def forward(ctx, x: Tensor, aux: Tensor, seed: Tensor | None) -> Tensor:
        ctx.save_for_backward(seed)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d_out: Tensor):
        (seed,) = ctx.saved_tensors
        return d_out, d_out.new_ones(()) if seed is None else seed.to(d_out.dtype), None


# ---- who goes where ----------------------------------------------------------------------------------------


def capacity(config: ModelConfig, tokens: int) -> int:
    """C: how many of a sequence's tokens an expert takes. The factor is read as the decimal number that was
    written.
    """
    return ceil(Fraction(str(config.capacity_factor)) * config.top_k * tokens / config.experts)


def places(whole: Tensor, config: ModelConfig) -> Tensor:
    """True [b, s, k] for those that find a place with their expert."""
    b, s, k = whole.shape
    queue = whole.transpose(1, 2).flatten(1)  # first choices of all tokens, then second ones
    arrivals = (queue.unsqueeze(-1) == torch.arange(config.experts, device=whole.device)).cumsum(
        1, dtype=torch.int32
    )
    place = arrivals.gather(-1, queue.unsqueeze(-1)).squeeze(-1)
    return (place <= capacity(config, s)).view(b, k, s).transpose(1, 2)


def by_expert(
    choices: Tensor, kept: Tensor | None, tokens: int, config: ModelConfig
) -> tuple[Tensor, list[int], list[int]]:
    """The assignments that are kept, sorted by expert: numbers [A] into [b·s·k]; how many each expert was
    wanted for, and kept.

    `tokens`: of a whole sequence.
    """
    E = config.experts
    keys = (
        choices if kept is None else torch.where(kept, choices, choices + E)
    ).flatten()  # what is dropped comes last
    order = keys.argsort(stable=True)
    counts = keys.new_zeros(2 * E).scatter_add_(0, keys, torch.ones_like(keys))
    if keys.device.type == "meta":
        wanted, counts_kept = balanced(keys.numel(), keys.numel() // config.top_k, tokens, config)
    else:
        tally = counts.tolist()
        wanted, counts_kept = [a + b for a, b in zip(tally[:E], tally[E:], strict=True)], tally[:E]
    return order[: sum(counts_kept)], wanted, counts_kept


def balanced(assignments: int, local: int, tokens: int, config: ModelConfig) -> tuple[list[int], list[int]]:
    """Where there is no data: as equal as possible, the first experts one more; at most their places in so
    many local tokens.
    """
    each, more = divmod(assignments, config.experts)
    wanted = [each + (e < more) for e in range(config.experts)]
    most = -(-capacity(config, tokens) * local // tokens) if config.capacity_factor else assignments
    return wanted, [min(n, most) for n in wanted]


# ---- the experts -------------------------------------------------------------------------------------------


def apply_experts(block: Any, rows: Tensor, sources: list[list[int]]) -> Tensor:
    """Each local expert on its rows: [R, h] -> [R, h]. Rows lie by source and then by expert,
    sources[source][expert] of them.
    """
    here = len(sources[0])
    pieces = rows.split([n for counts in sources for n in counts])
    results: list[Tensor] = [rows] * len(pieces)
    up_all, down_all, linear = block.expert_up_weight, block.expert_down_weight, block.parallel.linear
    for e, (up, down) in enumerate(zip(up_all.unbind(), down_all.unbind(), strict=True)):
        mine = pieces[e::here]
        x = torch.cat(mine) if len(mine) > 1 else mine[0]
        y = linear(
            mlp.activate(linear(x, up, whole=up_all, index=e), block.config.activation),
            down,
            whole=down_all,
            index=e,
        )
        results[e::here] = y.split([counts[e] for counts in sources])
    return torch.cat(results)


def weighted_sum(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """y = sum_j w_j · (row of the token's j-th choice; zero if dropped): rows [A, h], weights [b, s, k] ->
    [b, s, h].
    """
    slots = (
        rows.new_zeros(weights.numel(), rows.shape[-1]).index_copy_(0, order, rows).view(*weights.shape, -1)
    )
    return (
        (slots * weights.unsqueeze(-1)).sum(2).to(rows.dtype)
    )  # the weights' type is that of the accumulators


# ---- theory ------------------------------------------------------------------------------------------------


def predict_aux(config: ModelConfig, shares: list[float], means: list[float]) -> float:
    """Eq 27: α E · sum_i f_i P_i of a sequence; α when either is uniform."""
    return config.aux_loss * config.experts * sum(f * p for f, p in zip(shares, means, strict=True))


def predict_dropped(config: ModelConfig, wanted: list[int], tokens: int) -> int:
    """Eq 27: assignments of one sequence that find no place, given how many want each expert."""
    return sum(max(0, n - capacity(config, tokens)) for n in wanted) if config.capacity_factor else 0
