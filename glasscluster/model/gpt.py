"""A small transformer: GPT-2's shape (learned positions, pre-LayerNorm, GELU), and by its switches Llama's
and others.

Dims in shape suffixes: B sequences, S tokens, H hidden, A local heads, D head size, F local ffn, V local
vocabulary. A model is cut into stages of consecutive layers; the first has the embedding, the last the final
norm and the head. A whole model is the stage that has everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.flash.parts import by_document
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.kernels.rope import rope
from glasscluster.model.kernels.scores import Scores
from glasscluster.model.layers import latent, mlp, moe, norms
from glasscluster.model.layers.attention import ATTENTION
from glasscluster.model.layers.dropout import Draw, dropout
from glasscluster.model.layers.position import alibi, buckets, sinusoidal
from glasscluster.model.parallel import KeepAll, Shard, Unsharded, local_parameter, plus, runs
from glasscluster.model.text.packing import positions as positions_in


class Module(nn.Module):
    """A part of the model: parameters by full name, each cut for this rank.

    `shards` says how each parameter is cut; None: it is whole on every rank.
    """

    def __init__(
        self, prefix: str, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor
    ) -> None:
        super().__init__()
        self.prefix, self.config, self.parallel, self.seed, self.like = prefix, config, parallel, seed, like
        self.shards: dict[str, Shard | None] = {}
        self.constants: list[str] = []  # full names of what is saved beside the parameters
        self.partial: set[str] = (
            set()
        )  # whole on every rank, but used for its own heads: the ranks' gradients add up

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def weight(
        self,
        name: str,
        *shape: int,
        std: float,
        mean: float = 0.0,
        shard: Shard | None = None,
        partial: bool = False,
    ) -> None:
        """Create parameter `name`.

        partial: it is whole on every tensor rank, and each rank gets a part of its gradient.
        """
        full_name = f"{self.prefix}{name}"
        self.register_parameter(
            name, local_parameter(full_name, shape, std, mean, shard, self.parallel, self.seed, self.like)
        )
        self.shards[full_name] = shard
        if partial:
            self.partial.add(full_name)

    def bias(
        self,
        name: str,
        size: int,
        shard: Shard | None = None,
        partial: bool = False,
        wanted: bool | None = None,
    ) -> None:
        """Create a bias if it is wanted; None: in a model that has biases.

        Biases start small and random instead of at zero, because a zero hides mistakes.
        """
        if self.config.bias if wanted is None else wanted:
            self.weight(name, size, std=self.config.init_std, shard=shard, partial=partial)

    def constant(self, name: str, size: int, std: float) -> None:
        """Create numbers that belong to the weights and are not trained, in the accumulators' type.

        They are no parameters, but are saved and loaded, and whole on every rank.
        """
        full_name = f"{self.prefix}{name}"
        wide = self.like.to(accumulation_dtype(self.like.dtype))
        made = local_parameter(full_name, (size,), std, 0.0, None, self.parallel, self.seed, wide)
        self.register_buffer(name, made.detach())
        self.constants.append(full_name)

    def get(self, name: str) -> Tensor | None:
        """A parameter or constant, or None where the model has no such thing."""
        return getattr(self, name, None)


class Block(Module):
    """Two branches, attention and MLP, each added to the residual.

    Heads and ffn columns are shared out over tensor ranks.

        pre         x + f(norm(x))             GPT-2; Xiong et al., 2002.04745
        post        norm(x + f(x))             Vaswani et al., 1706.03762; BERT
        sandwich    x + norm(f(norm(x)))       Ding et al., 2105.13290

    Each branch's output goes through dropout, and so do the attention probabilities (2205.05198, figure 2);
    `keep` says what of the attention stays for backward. The second branch is an MLP (mlp.py) or a router and
    its experts (moe.py).
    """

    keep = KeepAll()

    def __init__(self, index: int, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor) -> None:
        super().__init__(f"layers.{index}.", config, parallel, seed, like)
        h, q, kv, std = config.hidden, config.query_width, config.key_width, config.init_std
        self.index = index
        norms.declare(self, "norm1", h)
        columns = {"qkv": (q, kv, kv)} if config.qkv == "fused" else {"q": (q,), "k": (kv,), "v": (kv,)}
        for name, blocks in columns.items() if not config.kv_latent else ():
            self.weight(f"{name}_weight", sum(blocks), h, std=std, shard=Shard(0, blocks))  # column parallel
            self.bias(f"{name}_bias", sum(blocks), shard=Shard(0, blocks), wanted=config.biased_qkv)
        if config.kv_latent:
            latent.declare(self)
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            norms.declare(self, name, config.head_dim, partial=True)
        self.declare_bias()
        if config.sinks:
            self.weight("sink", config.heads, std=std, shard=Shard(0))
        self.weight("out_weight", h, q, std=self.out_std, shard=Shard(1))  # row parallel
        self.bias("out_bias", h)
        norms.declare(self, "norm2", h)
        for name in ("after1", "after2") if config.norm_position == "sandwich" else ():
            norms.declare(self, name, h)
        routed = config.routed(index)
        self.mlp = moe.experts if routed else mlp.mlp
        (moe if routed else mlp).declare(self)

    @property
    def out_std(self) -> float:
        """The standard deviation with which matrices into the residual start.

        GPT-2 (section 2.3): 2L branches are added up, so each starts 1/√(2L) as large.
        """
        config = self.config
        return (
            config.init_std / (2 * config.layers) ** 0.5
            if config.residual_init == "scaled"
            else config.init_std
        )

    def forward(self, x_BSH: Tensor, draw: Draw | None = None) -> Tensor:
        """Compute the block: [B, S, H] -> [B, S, H]."""
        x_BSH = self.branch(
            x_BSH,
            1,
            lambda y: plus(self.parallel.row(self.attend(y, draw), self.out_weight), self.get("out_bias")),
            draw,
        )
        part = "moe" if self.mlp is moe.experts else "mlp"
        # a function and not a call: whoever holds its argument keeps it alive where nothing is saved
        return self.branch(x_BSH, 2, self.keep.branch(part, partial(self.mlp, self)), draw)

    def branch(self, x: Tensor, number: int, f: Callable[[Tensor], Tensor], draw: Draw | None) -> Tensor:
        """Add the branch f to x, with the norm where the model has it. number: 1 attention, 2 MLP."""
        where, place = self.config.norm_position, "attention output" if number == 1 else "mlp output"
        normed = partial(norms.norm, self, f"norm{number}")
        y = f(x) if where == "post" else self.keep.behind("norm", normed, f, x)
        if where == "sandwich":
            y = norms.norm(self, f"after{number}", y)
        spans = self.parallel.spans(x.shape[1] * self.parallel.pieces, x.shape[2])
        x = x + dropout(y, self.config.dropout, draw, self.index, place, spans=spans)
        return norms.norm(self, f"norm{number}", x) if where == "post" else x

    def attend(self, x_BSH: Tensor, draw: Draw | None) -> Tensor:
        """Compute this rank's heads of attention: [B, S, H] -> [B, S, A·D]."""
        if self.config.kv_latent and self.keep.discards("latent_up"):
            heads, up = partial(self.attend_heads, draw=draw), partial(latent.up, self)
            return self.keep.behind("latent_up", up, heads, latent.start(self, x_BSH))
        return self.attend_heads(self.queries_keys_values(x_BSH), draw)

    def attend_heads(self, qkv: tuple[Tensor, Tensor, Tensor], draw: Draw | None) -> Tensor:
        """Compute attention from this rank's queries, keys and values: [B, S, A, D] each -> [B, S, A·D]."""
        config, context = self.config, self.parallel.context
        q, k, v = qkv
        if self.parallel.observe is not None:
            self.parallel.observe("queries and keys", self.index, q, k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, A or key heads, S, D]
        attention: Any = ATTENTION[config.attention]
        if config.dropout and config.attention == "unfused":
            s = q.shape[2] * context.size
            local = q.shape[1] // context.heads_cut
            first = (
                self.parallel.rank * context.heads_cut + context.heads_rank
            ) * local  # these heads' place in the mask of all heads
            spans = (first * s * s, local * s * s)
            drop = partial(
                dropout,
                p=config.dropout,
                draw=draw,
                layer=self.index,
                place="attention probabilities",
                spans=spans,
            )
            attention = partial(attention, drop=drop)

        def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            how, sink, bias = self.scoring, self.get("sink"), self.score_bias(q.shape[2] * context.size)
            if draw is not None and draw.documents is not None:
                assert context.size == 1, "a document lies whole on one rank"
                assert config.causal, "documents are triangles of a causal mask"
                return by_document(partial(attention, how=how, sink=sink), q, k, v, draw.documents, bias)
            return context.attend(attention, q, k, v, config.causal, config.prefix, bias, how, sink)

        out = self.keep.core(core, q, k, v)
        return (out[..., : config.head_dim] if config.rotary else out).transpose(1, 2).flatten(2)

    @property
    def scoring(self) -> Scores:
        """How products of queries and keys become scores in this layer."""
        config = self.config
        return Scores(config.attention_scale, config.window_of(self.index), config.attention_cap)

    def declare_bias(self) -> None:
        """Declare what is added to scores by distance, for this rank's heads.

        It is a learned table (relative positions) or fixed numbers (ALiBi).
        """
        config, cut = self.config, Shard(1)
        if config.position == "relative":
            self.weight(
                "relative_table", config.relative_buckets, config.heads, std=config.init_std, shard=cut
            )
            numbers = buckets(config.seq, config.relative_buckets, config.relative_distance, config.both_ways)
            self.register_buffer("buckets", numbers.to(self.like.device), persistent=False)
        elif config.position == "alibi":
            mine = Shard(0).take(alibi(config.seq, config.heads), self.parallel.rank, self.parallel.size)
            self.register_buffer(
                "distances", mine.to(self.like.device, accumulation_dtype(self.like.dtype)), persistent=False
            )

    def score_bias(self, tokens: int) -> Tensor | None:
        """What is added to scores, by distance (position.py): [A, 2·tokens - 1] in the accumulators' type."""
        if self.config.position not in ("relative", "alibi"):
            return None
        here = slice(self.config.seq - tokens, self.config.seq + tokens - 1)
        if self.config.position == "alibi":
            return self.distances[:, here]
        return (
            self.relative_table.to(accumulation_dtype(self.relative_table.dtype))
            .index_select(0, self.buckets[here])
            .T.contiguous()
        )

    def rotate(self, x: Tensor) -> Tensor:
        """Apply rotary positions to [B, S, A, D].

        In generation every sequence has positions of its own.
        """
        context, rows = self.parallel.context, self.keep.positions
        if rows is None or all(row == rows[0] for row in rows):
            at = context.positions(x.shape[1] * context.size) if rows is None else rows[0]
            return rope(x, runs(tuple(at), 1), self.config)
        spans = runs(tuple(p for row in rows for p in row), 1)  # of one sequence of B·S tokens
        return rope(x.flatten(0, 1).unsqueeze(0), spans, self.config).view(x.shape)

    def queries_keys_values(self, x_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this rank's heads, as attention takes them.

        [B, S, H] -> [B, S, A, D] for queries, [B, S, key heads, D] for keys and for values.
        """
        config, parallel = self.config, self.parallel
        if config.kv_latent:
            return latent.queries_keys_values(self, x_BSH)
        q, k, v = self.columns(x_BSH)
        k, v = parallel.whole_heads(k, v)
        q, k, v = (x.unflatten(-1, (-1, config.head_dim)) for x in (q, k, v))
        if config.qk_norm:  # Dehghani et al., 2302.05442, section 2; with scalenorm: Henry et al., 2010.04245
            q, k = norms.norm(self, "q_norm", q), norms.norm(self, "k_norm", k)
        if config.position == "rope":
            q, k = self.rotate(q), self.rotate(k)
        if config.transforms_qk and (config.qkv == "fused" or parallel.size > config.key_heads):
            v = v.clone(
                memory_format=torch.contiguous_format
            )  # or backward would keep all that lies around it
        return q, k, v

    def columns(self, x_BSH: Tensor) -> Sequence[Tensor]:
        """This rank's columns of Q, K and V: [B, S, H] -> [B, S, columns], three times."""
        parallel, config = self.parallel, self.config
        if config.qkv == "fused":
            qkv = parallel.column(x_BSH, self.qkv_weight, self.get("qkv_bias"))
            return qkv.split(
                [n // parallel.size for n in (config.query_width, config.key_width, config.key_width)], -1
            )
        y = parallel.f(x_BSH)
        return [parallel.linear(y, getattr(self, f"{n}_weight"), self.get(f"{n}_bias")) for n in "qkv"]


class Embedding(Module):
    """Rows of a table for tokens, and for positions where these are learned or fixed sines.

    Rows for tokens can be multiplied by √h, as in the transformer's paper (1706.03762, section 3.4) and
    Gemma's files: a tied table then serves the head with small numbers and the layers with large ones.
    BERT (1810.04805, section 3) adds rows for token types, and a norm. Token types are those of a pair of
    sentences unless they are given: 0 in the first half of a sequence, 1 in the second.
    """

    def __init__(self, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor) -> None:
        super().__init__("embedding.", config, parallel, seed, like)
        self.weight("token", config.vocab, config.hidden, std=config.init_std, shard=Shard(0))
        if config.position == "learned":
            self.weight("position", config.seq, config.hidden, std=config.init_std)
        elif config.position == "sinusoidal":
            self.register_buffer("position", sinusoidal(config.seq, config.hidden).to(like), persistent=False)
        if config.patches:
            self.weight("patch_weight", config.hidden, config.patch_size, std=config.patch_size**-0.5)
            self.bias("patch_bias", config.hidden)
        if config.objective == "masked":
            self.weight("segment", 2, config.hidden, std=config.init_std)
            types = (torch.arange(config.seq) >= config.seq // 2).long()
            self.register_buffer("types", types.to(like.device), persistent=False)
            norms.declare(self, "norm", config.hidden)

    def forward(
        self,
        tokens_BS: Tensor,
        draw: Draw | None = None,
        types_BS: Tensor | None = None,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Look tokens up: [B, S] -> [B, S, H].

        Args:
            tokens: [B, S] of this rank; with patches, pixels and then tokens: [B, pixels + tokens]
                (captions.py).
            types: token types of this rank's tokens; None: those of a pair of sentences.
            positions: for each sequence the positions of its tokens, where they do not start at 0
                (generation).
        """
        config, parallel = self.config, self.parallel
        documents = draw.documents if draw is not None else None
        pixels = tokens_BS[:, : config.patches * config.patch_size]
        if config.patches:  # the first tokens' places are the patches'
            tokens_BS = nn.functional.pad(tokens_BS[:, pixels.shape[1] :], (config.patches, 0))
        x, tokens = parallel.embed(tokens_BS, self.token), tokens_BS.shape[1] * parallel.context.size
        if config.embedding_scale:
            x = x * config.hidden**0.5
        if config.patches:
            x = self.seen(x, pixels, tokens)
        if config.position in ("learned", "sinusoidal"):
            if documents is not None:
                rows = torch.tensor([positions_in(lengths) for lengths in documents], device=x.device)
                x = x + nn.functional.embedding(parallel.cut(rows.T).T, self.position)
            elif positions is None:
                x = x + parallel.cut(self.position[:tokens])
            else:
                x = x + nn.functional.embedding(
                    torch.tensor([list(p) for p in positions], device=x.device), self.position
                )
        if config.objective == "masked":
            x = x + nn.functional.embedding(
                parallel.cut(self.types[:tokens]) if types_BS is None else types_BS, self.segment
            )
            x = norms.norm(self, "norm", x)
            x = dropout(x, config.dropout, draw, -1, "embedding", spans=parallel.spans(tokens, config.hidden))
        return x

    def seen(self, x: Tensor, pixels: Tensor, tokens: int) -> Tensor:
        """Embeddings of this rank's tokens, [B, S, H], where the image's patches take the place of the first
        ones.

        pixels: [B, P·C], from 0 to 255.
        """
        config, parallel = self.config, self.parallel
        bright = (
            pixels.unflatten(1, (config.patches, config.patch_size)).to(accumulation_dtype(x.dtype)) / 255
        ).to(x.dtype)
        image = nn.functional.linear(bright, self.patch_weight, self.get("patch_bias"))
        image = nn.functional.pad(image, (0, 0, 0, tokens - config.patches))
        image = parallel.cut(image.transpose(0, 1)).transpose(0, 1)
        first = torch.tensor([p < config.patches for p in parallel.positions(tokens)], device=x.device)
        return torch.where(first[:, None], image, x)


class Head(Module):
    """The final norm, the logits, and the loss summed over tokens.

    `table` is the embedding's where it is tied and on this stage. Behind post-norm layers there is no final
    norm, as the last layer ends with one. A masked model has one more matrix, GELU and norm before the table,
    and a bias of the logits (google-research/bert, get_masked_lm_output). With a cap c, logits z become
    c·tanh(z/c), which lie between -c and c (Gemma 2, 2408.00118, section 2).
    """

    def __init__(
        self, config: ModelConfig, parallel: Unsharded, seed: int, like: Tensor, tied_to: nn.Parameter | None
    ) -> None:
        super().__init__("head.", config, parallel, seed, like)
        if config.norm_position != "post":
            norms.declare(self, "norm", config.hidden)
        if config.objective == "masked":
            self.weight("transform_weight", config.hidden, config.hidden, std=config.init_std)
            self.bias("transform_bias", config.hidden)
            norms.declare(self, "transform_norm", config.hidden)
            self.bias("logit_bias", config.vocab, shard=Shard(0))
        if tied_to is not None:
            self.table = tied_to
        else:
            # the last stage's own copy of a tied embedding starts equal to the first stage's: same name, same
            # values
            self.prefix = "embedding." if config.tied else "head."
            self.weight(
                "token" if config.tied else "table",
                config.vocab,
                config.hidden,
                std=config.init_std,
                shard=Shard(0),
            )
            self.table = self.token if config.tied else self.table

    def forward(self, x_BSH: Tensor, targets_BS: Tensor) -> Tensor:
        """The loss, a scalar: summed over tokens."""
        config, loss = self.config, self.parallel.cross_entropy
        if config.loss == "chunked":
            x, bias = self.hidden(x_BSH), self.get("logit_bias")
            return self.parallel.chunked_cross_entropy(x, self.table, bias, targets_BS, config)
        # the logits get no name here: the loss can let them go as soon as it has its own copy
        return loss(self.shown(self.scores(x_BSH)), targets_BS, config.vocab, config.z_loss)

    def shown(self, logits: Tensor) -> Tensor:
        """The logits as they are, after observers have seen them."""
        if self.parallel.observe is not None:
            self.parallel.observe("logits", -1, logits)
        return logits

    def scores(self, x_BSH: Tensor) -> Tensor:
        """This rank's columns of the logits, capped: [B, S, V]."""
        logits = self.parallel.column(self.hidden(x_BSH), self.table, self.get("logit_bias"))
        cap = self.config.logit_cap
        return (logits / cap).tanh() * cap if cap else logits

    def hidden(self, x_BSH: Tensor) -> Tensor:
        """What is multiplied by the table: [B, S, H], behind the last norm and a masked model's matrix."""
        x = x_BSH if self.config.norm_position == "post" else norms.norm(self, "norm", x_BSH)
        if self.config.objective == "masked":
            x = nn.functional.gelu(self.parallel.linear(x, self.transform_weight, self.get("transform_bias")))
            x = norms.norm(self, "transform_norm", x)
        return x

    def logits(self, x_BSH: Tensor) -> Tensor:
        """The whole logits, on every rank: [B, S, vocabulary]. They carry no gradient."""
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
        """Set the policy that says what of a layer is saved for backward; returns the stage."""
        self.keep = keep
        for block in self.layers.values():
            block.keep = keep
        return self

    def forward(
        self,
        x: Tensor,
        targets_BS: Tensor | None = None,
        draw: Draw | None = None,
        types_BS: Tensor | None = None,
    ) -> Tensor:
        """Compute the stage.

        The first stage takes tokens [B, S], and token types if they are not the usual ones; the others take
        activations [B, S, H]. Returns activations, or on the last stage the loss.
        """
        if self.embedding is not None:
            x = self.embedding(x, draw, types_BS)
        x = self.keep.layers(list(self.layers.values()), x, draw)
        if self.head is not None:
            assert targets_BS is not None
            x = self.head(x, targets_BS)
        return x

    def parts(self) -> list[Any]:
        """The embedding, the blocks and the head, in the order in which they run."""
        ends = (self.embedding, *self.layers.values(), self.head)
        return [p for p in ends if p is not None]

    def full_names(self) -> dict[str, tuple[nn.Parameter, Shard | None]]:
        """From a full name to the parameter and how it is cut.

        A tied table appears once, as embedding.token.
        """
        return {
            name: (getattr(part, name.split(".")[-1]), shard)
            for part in self.parts()
            for name, shard in part.shards.items()
        }

    def full_constants(self) -> dict[str, Tensor]:
        """What is saved beside the parameters, by full name: numbers that are not trained."""
        return {n: getattr(part, n.split(".")[-1]) for part in self.parts() for n in part.constants}
