"""A small GPT: learned positions, pre-LayerNorm, GELU, tied or untied head (GPT-2's shape).

Dims in shape suffixes: B sequences, S tokens, H hidden, A local heads, D head size, F local ffn, V local vocabulary.
A model is cut into stages of consecutive layers; the first has the embedding, the last the final norm and the head.
A whole model is the stage that has everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glasscluster.model import mlp, moe
from glasscluster.model.attention import ATTENTION
from glasscluster.model.config import ModelConfig
from glasscluster.model.dropout import Draw, dropout
from glasscluster.model.layer_norm import layer_norm
from glasscluster.model.parallel import KeepAll, Shard, Unsharded, local_parameter


class Module(nn.Module):
    """Parameters by full name, cut for this rank. `shards` says how each one is cut (None: whole on every rank)."""

    def __init__(self, prefix: str, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor) -> None:
        super().__init__()
        self.prefix, self.config, self.parallel, self.seed, self.like = prefix, config, parallel, seed, like
        self.shards: dict[str, Shard | None] = {}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def weight(self, name: str, *shape: int, std: float, mean: float = 0.0, shard: Shard | None = None) -> None:
        """Create parameter `name`. Biases start small and random, not zero: a zero hides mistakes."""
        full_name = f"{self.prefix}{name}"
        self.register_parameter(name, local_parameter(full_name, shape, std, mean, shard, self.parallel, self.seed, self.like))
        self.shards[full_name] = shard


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Heads and ffn columns are shared out over tensor ranks.

    Each branch's output goes through dropout, and so do the attention probabilities (2205.05198, figure 2); `keep` says what
    of the attention stays for backward. The second branch is an MLP (mlp.py) or a router and its experts (moe.py).
    """

    keep = KeepAll()

    def __init__(self, index: int, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor) -> None:
        super().__init__(f"layers.{index}.", config, parallel, seed, like)
        h, kv, std = config.hidden, config.key_width, config.init_std
        self.index = index
        self.weight("norm1_weight", h, std=std, mean=1.0)
        self.weight("norm1_bias", h, std=std)
        for name, blocks in {"qkv": (h, kv, kv)}.items() if config.qkv == "fused" else {"q": (h,), "k": (kv,), "v": (kv,)}.items():
            self.weight(f"{name}_weight", sum(blocks), h, std=std, shard=Shard(0, blocks))  # column parallel
            self.weight(f"{name}_bias", sum(blocks), std=std, shard=Shard(0, blocks))
        self.weight("out_weight", h, h, std=self.out_std, shard=Shard(1))  # row parallel
        self.weight("out_bias", h, std=std)
        self.weight("norm2_weight", h, std=std, mean=1.0)
        self.weight("norm2_bias", h, std=std)
        self.mlp = moe.experts if config.experts else mlp.mlp
        (moe if config.experts else mlp).declare(self)

    @property
    def out_std(self) -> float:
        """GPT-2: residual outputs are scaled by depth."""
        return self.config.init_std / (2 * self.config.layers) ** 0.5

    def forward(self, x_BSH: Tensor, draw: Draw | None = None) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        eps, tokens = self.config.norm_eps, x_BSH.shape[1] * self.parallel.pieces
        drop = partial(dropout, p=self.config.dropout, draw=draw, layer=self.index, spans=self.parallel.spans(tokens, x_BSH.shape[2]))
        y = layer_norm(x_BSH, self.norm1_weight, self.norm1_bias, eps)
        y = self.parallel.row(self.attend(y, draw), self.out_weight) + self.out_bias
        x_BSH = x_BSH + drop(y, place="attention output")
        y = self.mlp(self, layer_norm(x_BSH, self.norm2_weight, self.norm2_bias, eps))
        return x_BSH + drop(y, place="mlp output")

    def attend(self, x_BSH: Tensor, draw: Draw | None) -> Tensor:
        """Local heads of multi-head attention: [B, S, H] -> [B, S, A·D]."""
        parallel, context, d = self.parallel, self.parallel.context, self.config.head_dim
        if self.config.qkv == "fused":
            qkv = parallel.column(x_BSH, self.qkv_weight, self.qkv_bias)
            columns = [n // parallel.size for n in (self.config.hidden, self.config.key_width, self.config.key_width)]
            q, k, v = qkv.split(columns, -1)
        else:
            y = parallel.f(x_BSH)
            q, k, v = (
                parallel.linear(y, w, b)
                for w, b in ((self.q_weight, self.q_bias), (self.k_weight, self.k_bias), (self.v_weight, self.v_bias))
            )
        k, v = parallel.whole_heads(k, v)
        q, k, v = (x.unflatten(-1, (-1, d)).transpose(1, 2) for x in (q, k, v))  # [B, A or key heads, S, D]
        attention: Any = ATTENTION[self.config.attention]
        if self.config.dropout and self.config.attention == "unfused":
            s = q.shape[2] * context.size
            local = q.shape[1] // context.heads_cut
            first = (parallel.rank * context.heads_cut + context.heads_rank) * local  # these heads' place in the mask of all heads
            spans = (first * s * s, local * s * s)
            drop = partial(dropout, p=self.config.dropout, draw=draw, layer=self.index, place="attention probabilities", spans=spans)
            attention = partial(attention, drop=drop)
        attention = partial(context.attend, attention) if context.size > 1 else attention
        return self.keep.core(attention, q, k, v).transpose(1, 2).flatten(2)


class Embedding(Module):
    """Token rows plus position rows."""

    def __init__(self, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor) -> None:
        super().__init__("embedding.", config, parallel, seed, like)
        self.weight("token", config.vocab, config.hidden, std=config.init_std, shard=Shard(0))
        self.weight("position", config.seq, config.hidden, std=config.init_std)

    def forward(self, tokens_BS: Tensor, positions: Sequence[Sequence[int]] | None = None) -> Tensor:
        """[B, S] -> [B, S, H]. Positions: of each sequence's tokens where they do not start at 0 (generation)."""
        x = self.parallel.embed(tokens_BS, self.token)
        if positions is not None:
            return x + F.embedding(torch.tensor(positions, device=x.device), self.position)
        return x + self.parallel.cut(self.position[: tokens_BS.shape[1] * self.parallel.context.size])


class Head(Module):
    """Final norm, logits, loss summed over tokens. `table` is the embedding's when tied and on this stage."""

    def __init__(self, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor, tied_to: nn.Parameter | None) -> None:
        super().__init__("head.", config, parallel, seed, like)
        self.weight("norm_weight", config.hidden, std=config.init_std, mean=1.0)
        self.weight("norm_bias", config.hidden, std=config.init_std)
        if tied_to is not None:
            self.table = tied_to
        else:
            # the last stage's own copy of a tied embedding starts equal to the first stage's: same name, same values
            self.prefix = "embedding." if config.tied else "head."
            self.weight("token" if config.tied else "table", config.vocab, config.hidden, std=config.init_std, shard=Shard(0))
            self.table = self.token if config.tied else self.table

    def forward(self, x_BSH: Tensor, targets_BS: Tensor) -> Tensor:
        """Loss: a scalar, summed over tokens."""
        return self.parallel.cross_entropy(self.scores(x_BSH), targets_BS, self.config.vocab)

    def scores(self, x_BSH: Tensor) -> Tensor:
        """This rank's logits: [B, S, V]."""
        return self.parallel.column(layer_norm(x_BSH, self.norm_weight, self.norm_bias, self.config.norm_eps), self.table)

    def logits(self, x_BSH: Tensor) -> Tensor:
        """All logits, on every rank: [B, S, vocabulary]. For what has no gradient."""
        return self.parallel.whole_logits(self.scores(x_BSH), self.config.vocab)


class GPTStage(nn.Module):
    """Consecutive layers of a GPT, with the embedding if `first` and the head if `last`."""

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[int] | None = None,
        first: bool = True,
        last: bool = True,
        parallel: Unsharded | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        parallel = parallel or Unsharded()
        self.layers: Any
        like = torch.empty(0, dtype=dtype, device=device)
        self.config, self.first, self.last, self.dtype = config, first, last, dtype
        self.embedding = Embedding(config, parallel, seed, like) if first else None
        indices = range(config.layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(i): Block(i, config, parallel, seed, like) for i in indices})
        tied_to = self.embedding.token if self.embedding is not None and config.tied else None
        self.head = Head(config, parallel, seed, like, tied_to) if last else None
        self.keep = KeepAll()

    def keeping(self, keep: KeepAll) -> GPTStage:
        """Let `keep` decide what stays for backward; returns the stage."""
        self.keep = keep
        for block in self.layers.values():
            block.keep = keep
        return self

    def forward(self, x: Tensor, targets_BS: Tensor | None = None, draw: Draw | None = None) -> Tensor:
        """First stage: tokens [B, S]; others: activations [B, S, H]. Returns activations, or on the last stage the loss."""
        if self.embedding is not None:
            x = self.embedding(x)
        x = self.keep.layers(list(self.layers.values()), x, draw)
        if self.head is not None:
            assert targets_BS is not None
            x = self.head(x, targets_BS)
        return x

    def parts(self) -> list[Any]:
        """Embedding, blocks, head: in the order they run."""
        ends = (self.embedding, *self.layers.values(), self.head)
        return [p for p in ends if p is not None]

    def full_names(self) -> dict[str, tuple[nn.Parameter, Shard | None]]:
        """Full name -> (parameter, how it is cut). The tied table appears once, as embedding.token."""
        return {name: (getattr(part, name.split(".")[-1]), shard) for part in self.parts() for name, shard in part.shards.items()}
