"""Mixture of experts: a router sends each token to k of E MLPs, and adds up what they say.

Follows Switch Transformers (Fedus et al., 2101.03961, section 2), the capacity of GShard (Lepikhin et al.,
2006.16668, section 2.2) and the weights of Mixtral (Jiang et al., 2401.04088, section 2.1). Symbols: E
experts, k of them a token, b sequences, s tokens, h hidden, f width of an expert, A assignments of a token to
an expert (k·b·s, less what is dropped).

        p = softmax(W x)  y = sum over the k largest p_i of w_i · expert_i(x)
            or sigmoid    w = scale · p, or scale · p over its sum of the k (where k > 1, unless it is said)

    choice    of the k largest p_i + c_i, c a correction that is not in the weights and is not trained
              (DeepSeek-V3, 2412.19437, section 2.1.2); with groups of experts, of those in the best groups
              alone: a group is as good as its best expert (softmax; DeepSeek-V2, 2405.04434, section 2.2.2) or
              its two best together (sigmoid; V3)
    biases    of router and experts, where the model has them (gpt-oss)

        tokens   a b c d           expert  0 │ 1 │ 2
        choices  2 0 2 1  ─sort─►  rows    b │ d │ a c  ─dispatch, expert, combine─►  a b c d, times w, added

    capacity  C = ⌈c·k·s/E⌉ tokens of a sequence an expert; places are taken by the first choices of all
              tokens, then by the second ones, in the order of the tokens. Who finds none is dropped: that
              expert adds nothing to that token.
    balance   aux = α E · sum_i f_i P_i a sequence: f_i expert i's share of the k·s choices, P_i its mean
              probability. α when uniform. It goes into the gradient, not into the loss that is reported.

The routing group is one sequence, so nothing here depends on how a batch is cut. Losses are summed over
tokens and divided once by their number, so a token's part is α E · sum_i f_i p_i, and a rank that has some
tokens of a sequence adds theirs: only f needs all. Scores of a sigmoid are shared out first, p_i over the sum
of all (V3, eq. 18). On shapes without data (`meta`) nobody knows the choices:
they are taken as balanced (`balanced`). But: no noise in the router and no router z-loss; nothing moves the
correction during training; places are counted with a [b, k·s, E] table.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.expert_sum import ExpertSum
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.layers import mlp
from glasscluster.model.parallel import Shard


def declare(block: Any) -> None:
    """The router, whole on every rank, and the experts, spread over ranks and each cut as an MLP is."""
    config, h, f = block.config, block.config.hidden, block.config.expert_width
    blocks = (f,) * config.gates
    block.weight("router_weight", config.experts, h, std=config.init_std)
    if config.expert_bias:
        declare_biases(block, blocks)
    if config.router_bias:
        block.constant("router_correction", config.experts, std=config.init_std)
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


def declare_biases(block: Any, blocks: tuple[int, ...]) -> None:
    """Biases of the router and of each expert.

    Each tensor rank has a part of the down matrix's too, and adds it to its columns of what is summed over ranks.
    """
    config, cut = block.config, {"std": block.config.init_std}
    block.weight("router_bias", config.experts, **cut)
    block.weight("expert_up_bias", config.experts, sum(blocks), **cut, shard=Shard(1, blocks, experts=True))
    block.weight("expert_down_bias", config.experts, config.hidden, **cut, shard=Shard(1, experts=True))


def experts(block: Any, x: Tensor) -> Tensor:
    """[b, s, h] -> [b, s, h], in the place of an MLP. Outside the matrices a rank may have some tokens only.

    Appends to `block.routing` how many assignments of this rank's tokens each expert was "wanted" for and
    "kept", and the "aux" loss.
    """
    parallel, config = block.parallel, block.config
    p, weights, choices = route(
        x, block.router_weight, config, block.get("router_bias"), block.get("router_correction")
    )
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
    y = parallel.g(ExpertSum.apply(rows, order, weights))
    if not block.keep.active:
        block.routing.append({"wanted": wanted, "kept": counts, "aux": None if aux is None else aux.detach()})
    if not config.shared_ffn:
        return y
    return y + block.keep.branch("shared", partial(mlp.mlp, block, name="shared_"))(x)


# ---- the router --------------------------------------------------------------------------------------------


def route(
    x: Tensor,
    router: Tensor,
    config: ModelConfig,
    bias: Tensor | None = None,
    correction: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the router says of every token.

    Args:
        x: tokens, [b, s, h].
        router: its matrix, [E, h].
        config: the model's shape.
        bias: added to the logits, [E]; None: none.
        correction: added to the scores where experts are chosen, [E]; None: none.

    Returns:
        Scores [b, s, E] (in fp32 for 16-bit x), and weights and numbers [b, s, k] of the experts
        chosen, best first.
    """
    wide = accumulation_dtype(x.dtype)
    narrow = x.dtype != wide
    logits = WideLinear.apply(x, router, bias) if narrow else F.linear(x, router, bias)
    if config.hot_expert:
        logits = logits + F.pad(logits.new_full((1,), config.hot_expert), (0, config.experts - 1))
    p = logits.sigmoid() if config.router == "sigmoid" else logits.softmax(-1)
    if correction is None and config.router_top_groups == config.router_groups:
        of_chosen, choices = p.topk(config.top_k, dim=-1)
    else:
        choices = best(p.detach(), config, correction)
        of_chosen = p.gather(-1, choices)
    weights = of_chosen / of_chosen.sum(-1, keepdim=True) if config.normalises else of_chosen
    return p, weights if config.router_scale == 1 else weights * config.router_scale, choices


class WideLinear(torch.autograd.Function):
    """x W^T + bias in the accumulation type, of 16-bit x [b, s, h], W [E, h] and bias [E].

    Backward widens x and W anew: a wide copy of all tokens would otherwise be kept for it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        wide, ctx.bias = accumulation_dtype(x.dtype), None if bias is None else bias.dtype
        return F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))

    @staticmethod
    def backward(ctx, d_y: Tensor):
        x, weight = ctx.saved_tensors
        d = d_y.flatten(0, 1)
        d_x = (d @ weight.to(d.dtype)).to(x.dtype).view(x.shape)
        d_weight = (x.flatten(0, 1).to(d.dtype).t() @ d).t().to(weight.dtype)
        return d_x, d_weight, None if ctx.bias is None else d.sum(0).to(ctx.bias)


def best(scores: Tensor, config: ModelConfig, correction: Tensor | None) -> Tensor:
    """Numbers [b, s, k] of the experts chosen: by their corrected scores [b, s, E], in the best groups."""
    if correction is not None:
        scores = scores + correction
    if config.router_top_groups < config.router_groups:
        grouped = scores.unflatten(-1, (config.router_groups, -1))
        counted = 2 if config.router == "sigmoid" else 1
        of_group = grouped.topk(counted, dim=-1).values.sum(-1)
        chosen = of_group.topk(config.router_top_groups, dim=-1).indices
        outside = torch.ones_like(of_group, dtype=torch.bool).scatter(-1, chosen, False)
        scores = grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)
    return scores.topk(config.top_k, dim=-1).indices


def balance(p: Tensor, whole: Tensor, config: ModelConfig) -> Tensor:
    """α E · sum over local tokens and experts of f_i p_i; p [b, s local, E], whole [b, s, k] the choices of
    all tokens.
    """
    b, s, k = whole.shape
    p = p / p.sum(-1, keepdim=True) if config.router == "sigmoid" else p
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
    up_bias, down_bias = biases(block, here)
    for e, (up, down) in enumerate(zip(up_all.unbind(), down_all.unbind(), strict=True)):
        mine = pieces[e::here]
        x = torch.cat(mine) if len(mine) > 1 else mine[0]
        activate = partial(mlp.activate, activation=block.config.activation)
        second = partial(linear, weight=down, bias=down_bias[e], whole=down_all, index=e)
        y = block.keep.behind("moe_act", activate, second, linear(x, up, up_bias[e], whole=up_all, index=e))
        results[e::here] = y.split([counts[e] for counts in sources])
    return torch.cat(results)


def biases(block: Any, here: int) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Each local expert's biases, of its first matrix and of its second; None where the model has none.

    Results are summed over tensor ranks, so each adds its own part of the second, and zeros beside it.
    """
    if not block.config.expert_bias:
        return [None] * here, [None] * here
    down, rank, size = block.expert_down_bias, block.parallel.rank, block.parallel.size
    if size > 1:
        each = down.shape[1]
        down = F.pad(down, (rank * each, (size - 1 - rank) * each))
    return block.expert_up_bias.unbind(), down.unbind()


# ---- theory ------------------------------------------------------------------------------------------------


def predict_aux(config: ModelConfig, shares: list[float], means: list[float]) -> float:
    """Eq 27: α E · sum_i f_i P_i of a sequence; α when either is uniform."""
    return config.aux_loss * config.experts * sum(f * p for f, p in zip(shares, means, strict=True))


def predict_dropped(config: ModelConfig, wanted: list[int], tokens: int) -> int:
    """Eq 27: assignments of one sequence that find no place, given how many want each expert."""
    return sum(max(0, n - capacity(config, tokens)) for n in wanted) if config.capacity_factor else 0
