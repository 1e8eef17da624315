"""Ring attention: each rank has some tokens of every sequence; keys and values travel round a ring of ranks.

Follows Liu et al., "Ring attention with blockwise transformers" (2310.01889). Symbols: N ranks, B sequences,
s tokens, n = s/N on a rank, a query heads, n_kv key heads of d elements, w bytes an element, w' bytes of the
accumulators' type (fp32 for 16-bit types).

    rank r  step 0: Q_r with K_r, V_r  step 1: with those of r-1  step 2: r-2 ...  while the next ones arrive

    merge  share = sigmoid(L_block - L)    O += share (O_block - O)    L = log(e^L + e^L_block)    (Eq 6)
    back   P of a block follows from the final L, so each block's backward needs no other block: K and V go
           round again, followed by dK and dV, to which every rank adds its part; after N hops they are back

There are three ways to share out the tokens. The pictures show which part of each block (row: the rank with
the queries, column: the rank that the keys came from) a causal mask leaves:

    keys of     0 1 2 3             0 1 2 3            0 1 2 3  #  all of the block           .  nothing
    ring     0  ◣ . . .  striped 0  ◣ ◺ ◺ ◺  zigzag 0  ◣ ▄ ▄ ▄  ◣  a triangle with its diagonal
             1  # ◣ . .          1  ◣ ◣ ◺ ◺         1  ▌ ◣ ▄ ▄  ◺  one without it: query j sees keys before j
             2  # # ◣ .          2  ◣ ◣ ◣ ◺         2  ▌ ▌ ◣ ▄  ▌  all queries, the first half of the keys
             3  # # # ◣          3  ◣ ◣ ◣ ◣         3  ▌ ▌ ▌ ◣  ▄  the second half of the queries, all keys

    ring      rank r has the r-th of N equal pieces
    striped   rank i mod N has token i (Brandon et al., 2311.09431)
    zigzag    rank r has pieces r and 2N-1-r of 2N (Megatron-LM; Llama 3, 2407.21783, section 3.3.2)

Striped and zigzag give every rank the same work (striped up to one row of each block). What is masked is
neither computed nor allocated.

But: every block travels the whole ring, even past ranks that mask all of it; a rank's own dK and dV could be
added without a message (one hop less). Each block's output and gradients are rounded to the tensors' type;
their sums are in the accumulators' type. Flash attention only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from glasscluster.model.kernels.flash.operators import backward_part, flash_attention, forward_part
from glasscluster.model.kernels.flash.parts import Rectangle, distances, merge
from glasscluster.model.kernels.scores import PLAIN, Scores, add_sink, sink_gradient
from glasscluster.model.parallel import WholeSequence
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.layout.tokens import KINDS, parts, tokens_of

_KEYS, _GRADIENTS = 0, 1  # tags


class RingContext(WholeSequence):
    """Ring attention for a model's blocks, which get it as `parallel.context`.

    `kind` says how tokens are shared out: "ring", "striped" or "zigzag".
    """

    def __init__(self, kind: str, comm: Communicator, algorithm: str = "ring") -> None:
        assert kind in KINDS, kind
        self.kind, self.comm, self.algorithm = kind, comm, algorithm
        self.size, self.rank = comm.size, comm.rank

    # ---- which tokens are whose ----------------------------------------------------------------------------
    def positions(self, tokens: int) -> Sequence[int]:
        """The positions of this rank's tokens in a sequence of `tokens` tokens, in ascending order."""
        return tokens_of(self.kind, self.rank, self.size, tokens)

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's tokens of a whole sequence along `dim`."""
        if self.kind == "striped":
            return x.unflatten(dim, (-1, self.size)).select(dim + 1, self.rank)
        if self.kind == "ring":
            return x.chunk(self.size, dim)[self.rank]
        chunks = x.chunk(2 * self.size, dim)
        return torch.cat([chunks[self.rank], chunks[2 * self.size - 1 - self.rank]], dim)

    def whole(self, x: Tensor) -> Tensor:
        """Gather all tokens, in the sequence's order, without gradient: [b, n, ...] -> [b, s, ...]."""
        pieces = gather(x, self.comm, self.algorithm)  # [N, b, n, ...]
        if self.kind == "striped":
            return pieces.movedim(0, 2).flatten(1, 2)
        if self.kind == "zigzag":
            first, second = pieces.chunk(2, 2)
            pieces = torch.cat([first, second.flip(0)])  # pieces 0 to N-1, then N (last rank) to 2N-1 (first)
        return pieces.transpose(0, 1).flatten(1, 2)

    # ---- attention -----------------------------------------------------------------------------------------
    def attend(
        self,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = True,
        prefix: int = 0,
        bias: Tensor | None = None,
        how: Scores = PLAIN,
        sink: Tensor | None = None,
    ) -> Tensor:
        """Attention of this rank's tokens to all tokens.

        q [b, a, n, d], k and v [b, n_kv, n, d]; `bias` [a, 2s - 1] by distance; `prefix`: tokens at the
        beginning that all tokens see. Returns [b, a, n, d].
        """
        assert attention is flash_attention, "a ring merges blocks by flash attention's log-sum-exp"
        return RingAttention.apply(q, k, v, bias, sink, self, causal, prefix, how)

    def parts(
        self, source: int, tokens: int, causal: bool, prefix: int, window: int, bias: Tensor | None
    ) -> Iterator[tuple[Rectangle, Tensor | None]]:
        """The parts that this rank computes with the keys of rank `source`, each with its part of the bias.

        Both ranks have `tokens` tokens.
        """
        everything = tokens * self.size
        mine, theirs = (tokens_of(self.kind, r, self.size, everything) for r in (self.rank, source))
        mask = causal, prefix, bias is not None, window
        for part in parts(self.kind, self.rank, source, self.size, tokens, *mask):
            yield part, None if bias is None else bias[:, distances(part, mine, theirs, everything)]

    def merge(self, out: Tensor, lse: Tensor, block: Tensor, block_lse: Tensor) -> None:
        """Merge a block's output and log-sum-exp into those of the blocks before it, in place (Eq 6)."""
        merge(out, lse, block, block_lse)

    def travelling(self, kv: Tensor, label: str) -> Iterator[tuple[int, Tensor]]:
        """Iterate over all ranks' keys and values [2, b, n_kv, n, d]; yields (rank, keys and values)."""
        return self.comm.ring_rotate(kv, _KEYS, purpose="activations", label=label)


def gather(x: Tensor, comm: Communicator, algorithm: str) -> Tensor:
    """Gather every rank's x, in rank order: [...] -> [N, ...]."""
    pieces = x.new_empty(comm.size, *x.shape)
    pieces[comm.rank].copy_(x)
    comm.all_gather(pieces, algorithm=algorithm, purpose="scalars", label="routing")
    return pieces


def beginning(q: Tensor, part: Rectangle, block: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of all queries after the first part, in the accumulators' type.

    Queries that are not in the part have output 0 and log-sum-exp minus infinity.
    """
    if part.queries == slice(0, q.shape[2]):
        return block.to(block_lse.dtype), block_lse
    out, lse = (
        torch.zeros_like(q, dtype=block_lse.dtype),
        torch.full_like(q[..., 0], -torch.inf, dtype=block_lse.dtype),
    )
    merge(out[:, :, part.queries], lse[:, :, part.queries], block, block_lse)
    return out, lse


class RingAttention(torch.autograd.Function):
    """softmax(scores of Q and K + bias) V over all ranks' keys, with a sink or without; forward and backward
    side by side.
    """

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        sink: Tensor | None,
        context: RingContext,
        causal: bool,
        prefix: int,
        how: Scores,
    ) -> Tensor:
        out: Tensor | None = None
        ctx.context, ctx.mask, ctx.how = context, (causal, prefix, how.window), how
        for source, (k_s, v_s) in context.travelling(torch.stack([k, v]), "keys and values"):
            for part, numbers in context.parts(source, q.shape[2], causal, prefix, how.window, bias):
                block, block_lse = forward_part(q, k_s, v_s, part, numbers, how)
                if out is None:
                    out, lse = beginning(q, part, block, block_lse)
                else:
                    context.merge(out[:, :, part.queries], lse[:, :, part.queries], block, block_lse)
        assert out is not None
        if sink is not None:
            add_sink(out, lse, sink)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, bias, sink)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        q, k, v, out, lse, bias, sink = ctx.saved_tensors
        context, wanted = ctx.context, ctx.needs_input_grad[3]
        # without a bias and a window no two parts have the same keys, so there is nothing to add to
        put = torch.Tensor.copy_ if bias is None and not ctx.how.window else torch.Tensor.add_
        dq, arriving, works = torch.zeros_like(q, dtype=lse.dtype), None, list[Work]()
        d_bias = torch.zeros_like(bias) if wanted else None
        for source, kv in context.travelling(torch.stack([k, v]), "keys and values again"):
            d_kv = torch.zeros_like(kv, dtype=lse.dtype)
            gradients = context.parts(source, q.shape[2], *ctx.mask, d_bias)
            for part, numbers in context.parts(source, q.shape[2], *ctx.mask, bias):
                d_q, d_k, d_v, d_numbers = backward_part(
                    (d_out, q, out, lse), kv[0], kv[1], part, numbers, wanted, ctx.how
                )
                for total, d in zip(d_kv, (d_k, d_v), strict=True):
                    put(total[:, :, part.keys], d)
                dq[:, :, part.queries] += d_q
                if d_numbers is not None:
                    into = next(gradients)[1]
                    assert into is not None
                    into += d_numbers
                del d_q, d_k, d_v, d, d_numbers  # else they would be in memory together with the next part's
            for work in works:
                work.wait()
            if arriving is not None:  # the sum over the ranks that had these keys before this one
                d_kv += arriving
            arriving, works = context.comm.ring_shift(
                d_kv, _GRADIENTS, purpose="activations", label="gradients of keys and values"
            )
        for work in works:  # this rank's own dK and dV are back
            work.wait()
        assert arriving is not None
        d_k, d_v = arriving.to(q.dtype)
        d_sink = None if sink is None else sink_gradient(d_out, out, lse, sink)
        return dq.to(q.dtype), d_k, d_v, d_bias, d_sink, None, None, None, None


# ---- theory ------------------------------------------------------------------------------------------------


def predict_traffic(
    ranks: int, batch: int, tokens: int, key_heads: int, head_dim: int, width: int
) -> dict[str, int]:
    """Eq 26: bytes that each rank sends for one attention, however tokens are shared out; tokens = s.

    forward   2B (N-1)(s/N) n_kv d w            K and V, N-1 hops
    backward  2B (s/N) n_kv d [(N-1) w + N w']  K and V again, N-1 hops;
                                                dK and dV, N hops in the accumulators' type

    Recomputation sends `forward` once more.
    """
    if ranks == 1:
        return {"forward": 0, "backward": 0}
    accumulator = max(width, 4)
    one = 2 * batch * (tokens // ranks) * key_heads * head_dim
    return {
        "forward": one * (ranks - 1) * width,
        "backward": one * ((ranks - 1) * width + ranks * accumulator),
    }


def hops_overlap(
    ranks: int,
    batch: int,
    tokens: int,
    heads: int,
    key_heads: int,
    head_dim: int,
    width: int,
    peak: float,
    bandwidth: float,
) -> bool:
    """Eq 26: whether messages are overlapped completely.

    They are if computing an unmasked block (4 B a n^2 d FLOPs) takes at least as long as the next block's
    keys and values need to arrive. `peak`: FLOPs a second; `bandwidth`: bytes a second of the link.
    """
    n = tokens // ranks
    return (
        4 * batch * heads * n * n * head_dim / peak
        >= 2 * batch * n * key_heads * head_dim * width / bandwidth
    )
