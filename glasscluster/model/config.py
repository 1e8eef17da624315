"""The model's shape: its fields are options of the commands, and what follows from them. presets.py has
names.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glasscluster.base.errors import InputError


class ModelConfig(BaseModel):
    """The shape of a transformer: L layers, hidden h, a heads, sequence s, vocabulary V.

    Without other switches it is GPT-2's. Every field is an option of `glass train`; ffn is 4h and kv_heads is
    a unless they are given. `strategies.plan.make_model` makes one from a preset, with errors that name the
    nearest choice.

    Example:
        >>> from glasscluster.model.config import ModelConfig
        >>> gpt2 = ModelConfig(layers=12, hidden=768, heads=12, vocab=50257, seq=1024)
        >>> gpt2.head_dim, gpt2.ffn, gpt2.parameters()
        (64, 3072, 124439808)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    groups: ClassVar[dict[str, tuple[str, ...]]] = {  # what stands together in a list of options
        "sizes": ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "seq"),
        "attention": (
            *("attention", "qkv", "kv_latent", "q_latent", "rope_dim", "qk_norm"),
            *("window", "window_layers", "attention_scale", "attention_cap", "sinks"),
        ),
        "positions": (
            *("position", "relative_buckets", "relative_distance", "rope_layout", "rope_theta"),
            *("rope_scaling", "rope_factor", "rope_trained", "rope_low_factor", "rope_high_factor"),
            *("rope_beta_fast", "rope_beta_slow", "rope_truncate", "rope_attention_factor"),
        ),
        "MLP and experts": (
            *("activation", "experts", "top_k", "capacity_factor"),
            *("aux_loss", "shared_ffn", "hot_expert", "expert_ffn", "dense_layers", "expert_bias"),
            *("router", "router_bias", "router_groups", "router_top_groups", "router_scale"),
            "router_normalised",
        ),
        "norms, biases and initial weights": (
            *("norm", "norm_eps", "norm_position", "bias", "qkv_bias", "tied"),
            *("dropout", "init_std", "residual_init"),
        ),
        "embeddings and logits": ("embedding_scale", "logit_cap"),
        "what it learns from": ("objective", "prefix", "patches", "patch_size"),
        "loss": ("z_loss", "loss", "loss_chunks"),
    }

    layers: int = Field(4, ge=1, description="transformer blocks")
    hidden: int = Field(64, ge=1, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads")
    kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values, each shared by heads / kv-heads queries (= heads)"
    )
    head_dim: int = Field(
        0, ge=0, description="elements of a query, a key and a value of each head; 0: hidden / heads"
    )
    qkv: Literal["fused", "separate"] = Field(
        "fused", description="queries, keys and values from one matrix or from three"
    )
    kv_latent: int = Field(
        0,
        ge=0,
        description="size of the vector that keys and values of all heads are made from (MLA); 0: none",
    )
    q_latent: int = Field(0, ge=0, description="the same of queries, of a model with kv-latent; 0: none")
    rope_dim: int | None = Field(
        None, ge=0, description="rotary elements beside a head's own, with kv-latent; 0: half a head's"
    )
    ffn: int | None = Field(None, ge=1, description="inner width of the MLP, or of each expert (4 x hidden)")
    activation: Literal["gelu", "gelu-tanh", "relu", "swiglu", "geglu", "swiglu-clamped"] = Field(
        "gelu", description="of the MLP; swiglu, geglu and swiglu-clamped have a gate of the same width"
    )
    experts: int = Field(0, ge=0, description="experts in the place of each MLP; 0: none")
    top_k: int = Field(2, ge=1, description="experts that a token is sent to")
    capacity_factor: float = Field(
        0.0, ge=0, description="an expert takes factor x k x seq / experts tokens of a sequence; 0: all"
    )
    aux_loss: float = Field(0.01, ge=0, description="weight of the load-balancing loss")
    shared_ffn: int = Field(0, ge=0, description="inner width of the expert that every token passes; 0: none")
    hot_expert: float = Field(0.0, description="added to the first expert's router logits")
    expert_ffn: int | None = Field(
        None, ge=1, description="inner width of each expert, where it is not the MLP's (ffn)"
    )
    dense_layers: int = Field(0, ge=0, description="first layers that have an MLP in place of experts")
    expert_bias: bool = Field(False, description="router and experts have biases")
    router: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="how logits become scores: shares of all experts, or each expert's own"
    )
    router_bias: bool = Field(
        False, description="a number an expert is added to its score, for the choice alone; it is not trained"
    )
    router_groups: int = Field(1, ge=1, description="groups of experts, of which the best are chosen first")
    router_top_groups: int = Field(1, ge=1, description="groups that a token's experts are chosen from")
    router_scale: float = Field(
        1.0, gt=0, description="the weights of a token's experts are multiplied by it"
    )
    router_normalised: bool | None = Field(
        None, description="weights are divided by their sum over a token's experts (where top-k > 1)"
    )
    vocab: int = Field(256, ge=2, description="tokens in the vocabulary")
    seq: int = Field(64, ge=1, description="tokens in a sequence")
    tied: bool = Field(
        True,
        description="the head is the embedding table",
        json_schema_extra={"off": "untied"},
    )
    attention: Literal["flash", "unfused"] = Field("flash", description="attention kernel")
    window: int = Field(
        0, ge=0, description="tokens that attention looks back, the query's own the last; 0: all"
    )
    window_layers: Literal["all", "alternate"] = Field(
        "all", description="which layers have the window: all, or the first, the third, ..."
    )
    attention_scale: float | None = Field(
        None,
        gt=0,
        description="what a query's product with a key is multiplied by (1 / sqrt of their elements)",
    )
    attention_cap: float = Field(
        0.0, ge=0, description="a soft cap of the scores: cap x tanh(score / cap); 0: none"
    )
    sinks: bool = Field(
        False, description="a learned number of each head joins the softmax's denominator, with no value"
    )
    norm: Literal["layernorm", "rmsnorm", "scalenorm"] = Field(
        "layernorm", description="layer norm, without a mean, with one weight"
    )
    norm_eps: float = Field(1e-5, gt=0, le=1, description="epsilon of the norms")
    norm_position: Literal["pre", "post", "sandwich"] = Field(
        "pre", description="before a branch, behind its residual, or before the branch and behind it"
    )
    qk_norm: bool = Field(False, description="queries and keys pass a norm head by head")
    bias: bool = Field(True, description="matrices and layer norms have biases")
    qkv_bias: bool | None = Field(None, description="queries, keys and values have biases (as bias)")
    position: Literal["learned", "sinusoidal", "relative", "alibi", "rope", "none"] = Field(
        "learned", description="how tokens know where they stand"
    )
    relative_buckets: int = Field(32, ge=4, description="rows of the table of relative positions")
    relative_distance: int = Field(128, ge=2, description="distance from which all share the last bucket")
    rope_layout: Literal["half", "interleaved"] = Field(
        "half", description="which columns rope pairs: i and i + d/2, or neighbours"
    )
    rope_theta: float = Field(10000.0, gt=1, description="base of rope's frequencies")
    rope_scaling: Literal["none", "interpolation", "ntk", "yarn", "llama3"] = Field(
        "none", description="how rope reaches beyond the trained length"
    )
    rope_factor: float = Field(1.0, ge=1, description="how many times as long as trained")
    rope_trained: int | None = Field(
        None, ge=1, description="trained length, for yarn and llama3 (seq / rope-factor)"
    )
    rope_low_factor: float = Field(
        1.0, gt=0, description="llama3: a pair that turns less often in the trained length is slowed down"
    )
    rope_high_factor: float = Field(
        4.0, gt=0, description="llama3: a pair that turns more often in the trained length is left alone"
    )
    rope_beta_fast: float = Field(
        32.0, gt=0, description="yarn: turns in the trained length from which a pair is left alone"
    )
    rope_beta_slow: float = Field(
        1.0, gt=0, description="yarn: turns in the trained length up to which a pair is slowed down"
    )
    rope_truncate: bool = Field(True, description="yarn: the ramp begins and ends at whole pairs")
    rope_attention_factor: float | None = Field(
        None, gt=0, description="yarn: queries and keys are multiplied by it (0.1 ln(rope-factor) + 1)"
    )
    objective: Literal["causal", "masked"] = Field(
        "causal", description="the next token (GPT), or hidden ones from both sides (BERT)"
    )
    patches: int = Field(
        0, ge=0, description="patches of an image at the beginning of every sequence, in place of tokens"
    )
    patch_size: int = Field(16, ge=1, description="pixels of a patch, each a number from 0 to 255")
    prefix: int = Field(
        0,
        ge=0,
        description="first tokens of a sequence that all see each other and carry no loss, of a causal model",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share dropped of each branch's output, and of unfused attention's probabilities",
    )
    init_std: float = Field(0.02, ge=0, description="standard deviation of the initial weights")
    residual_init: Literal["scaled", "plain"] = Field(
        "scaled",
        description="matrices into the residual start with init-std / sqrt(2 layers) (GPT-2), or with "
        "init-std",
    )
    z_loss: float = Field(
        0.0, ge=0, description="weight of log² Z in the gradient, Z the sum of a token's exponentiated logits"
    )
    loss: Literal["whole", "chunked"] = Field(
        "whole", description="logits of all tokens at once, or chunk by chunk with their gradients"
    )
    loss_chunks: int = Field(8, ge=1, description="chunks of a micro-batch's tokens, with --loss chunked")

    embedding_scale: bool = Field(False, description="embeddings of tokens are multiplied by sqrt(hidden)")
    logit_cap: float = Field(0.0, ge=0, description="logits become cap x tanh(logit / cap); 0: as they are")

    @model_validator(mode="before")
    @classmethod
    def _default_ffn(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("ffn") is None
            and isinstance(values.get("hidden", 64), int)
        ):
            values = {**values, "ffn": 4 * values.get("hidden", 64)}
        if isinstance(values, dict) and values.get("kv_heads") is None:
            values = {**values, "kv_heads": values.get("heads", 4)}
        if isinstance(values, dict) and not values.get("head_dim"):
            h, a = values.get("hidden", 64), values.get("heads", 4)
            divides = isinstance(h, int) and isinstance(a, int) and a > 0 and h % a == 0
            values = {**values, "head_dim": h // a if divides else 0}
        return values

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        h, a, k = self.hidden, self.heads, self.key_heads
        if not self.head_dim:
            rule = f"hidden = {h} must be a multiple of heads, or give head-dim"
            raise InputError("heads", a, rule, [d for d in range(1, h + 1) if h % d == 0])
        if a % k:
            rule = f"heads = {a} must be a multiple of kv-heads"
            raise InputError("kv_heads", k, rule, [d for d in range(1, a + 1) if a % d == 0])
        if self.position == "rope" and not self.kv_latent and self.head_dim % 2:
            rule = f"turns pairs, and head-dim = {self.head_dim} is odd"
            raise InputError("position", "rope", rule, ["learned"])
        self._latents_fit()
        self._window_fits()
        self._rope_fits()
        near = self.relative_buckets // (4 if self.both_ways else 2)  # distances that have a bucket each
        if self.position == "relative" and self.relative_distance <= near:
            rule = f"must be larger than the {near} distances that have a bucket each"
            raise InputError("relative_distance", self.relative_distance, rule, [near + 1])
        self._text_fits()
        self._experts_fit()
        return self

    def _window_fits(self) -> None:
        """A window is of a causal model, and looks back from each token alone."""
        if self.window_layers != "all" and not self.window:
            raise InputError("window_layers", self.window_layers, "needs --window", ["all"])
        if self.window and not self.causal:
            raise InputError("window", self.window, "a masked model looks ahead as well as back", [0])
        if self.window and self.prefix:
            rule = "tokens of a prefix all see each other, however far apart"
            raise InputError("window", self.window, rule, [0])

    def _text_fits(self) -> None:
        if self.objective == "masked":
            for field, rule in (
                ("prefix", "all tokens of a masked model see each other"),
                ("patches", "a caption is predicted token by token, by a causal model"),
            ):
                if getattr(self, field):
                    raise InputError(field, getattr(self, field), rule, [0])
        if self.patches >= self.seq:
            rule = f"must leave room for text: fewer than seq = {self.seq}"
            raise InputError("patches", self.patches, rule, [self.seq - 1])
        if self.prefix >= self.seq:
            raise InputError("prefix", self.prefix, f"must be shorter than seq = {self.seq}", [self.seq - 1])

    def _experts_fit(self) -> None:
        if not self.experts:
            for field, info in type(self).model_fields.items():
                value = getattr(self, field)
                if field.startswith(("router", "expert_", "dense_")) and value != info.default:
                    raise _needs("--experts", field, value, info.default)
            return
        if self.top_k > self.experts:
            raise InputError("top_k", self.top_k, f"there are {self.experts} experts", [self.experts])
        if self.dense_layers >= self.layers:
            rule = f"must leave one of {self.layers} layers to the experts"
            raise InputError("dense_layers", self.dense_layers, rule, [self.layers - 1])
        groups, chosen = self.router_groups, self.router_top_groups
        each = self.experts // groups
        if self.experts % groups or (groups > 1 and self.router == "sigmoid" and each < 2):
            least = 2 if self.router == "sigmoid" else 1  # a group's score is the sum of its two largest
            fits = [1, *(g for g in range(2, self.experts // least + 1) if self.experts % g == 0)]
            rule = f"must divide experts = {self.experts}" + (", two or more each" if least == 2 else "")
            raise InputError("router_groups", groups, rule, fits)
        if chosen > groups:
            raise InputError("router_top_groups", chosen, f"there are {groups} router-groups", [groups])
        if self.top_k > chosen * each:
            rule = f"{chosen} groups have {chosen * each} experts"
            raise InputError("top_k", self.top_k, rule, [chosen * each])

    def _rope_fits(self) -> None:
        if self.rope_scaling != "none" and self.position != "rope":
            raise InputError("rope_scaling", self.rope_scaling, "needs --position rope", ["none"])
        for scaling, fields in ROPE_FIELDS.items():
            for field in fields if self.rope_scaling != scaling else ():
                value, plain = getattr(self, field), type(self).model_fields[field].default
                if value != plain:
                    raise _needs(f"--rope-scaling {scaling}", field, value, plain)
        low, slow = self.rope_low_factor, self.rope_beta_slow
        if self.rope_scaling == "llama3" and self.rope_high_factor <= low:
            rule = f"must be larger than rope-low-factor = {low:g}"
            raise InputError("rope_high_factor", self.rope_high_factor, rule, [4 * low])
        if self.rope_scaling == "yarn" and self.rope_beta_fast <= slow:
            rule = f"must be larger than rope-beta-slow = {slow:g}"
            raise InputError("rope_beta_fast", self.rope_beta_fast, rule, [32 * slow])

    def _latents_fit(self) -> None:
        if not self.kv_latent:
            if self.q_latent:
                raise InputError("q_latent", self.q_latent, "needs --kv-latent", [0])
            if self.rope_dim:
                raise InputError("rope_dim", self.rope_dim, "needs --kv-latent", [0])
            return
        if self.key_heads != self.heads:
            rule = "with kv-latent every head has keys of its own"
            raise InputError("kv_heads", self.key_heads, rule, [self.heads])
        if self.qkv_bias is not None:
            rule = "with kv-latent the matrices of keys and values have biases as bias says: leave it out"
            raise InputError("qkv_bias", self.qkv_bias, rule)
        for field in ("attention_cap", "sinks") if self.bias else ():
            if getattr(self, field):
                rule = (
                    "with kv-latent needs --no-bias: a cached latent has lost its key's bias, and it counts"
                )
                raise InputError(field, getattr(self, field), rule, [type(self).model_fields[field].default])
        if self.qk_norm:
            rule = "with kv-latent it is the latents that have norms"
            raise InputError("qk_norm", True, rule, [False])
        if self.rotary % 2:
            raise InputError("rope_dim", self.rotary, "turns pairs", [self.rotary - 1, self.rotary + 1])

    @property
    def columns(self) -> int:
        """How many numbers a sequence comes in as: the pixels of its patches, then its tokens."""
        return self.seq + self.patches * (self.patch_size - 1)

    @property
    def rotary(self) -> int:
        """d_R: elements that each head of a latent model has beside its own, for rotary
        positions; 0 without.
        """
        if not self.kv_latent or self.position != "rope":
            return 0
        return self.rope_dim or max(2, self.head_dim // 4 * 2)

    def window_of(self, layer: int) -> int:
        """How far back a layer's attention looks.

        Args:
            layer: counted from 0.

        Returns:
            Keys that a query sees, of which its own is the last; 0: all.
        """
        return self.window if self.window_layers == "all" or layer % 2 == 0 else 0

    @property
    def windows(self) -> dict[int, int]:
        """The windows of all layers: size (0: none) -> how many layers have it."""
        each = [self.window_of(layer) for layer in range(self.layers)]
        return {window: each.count(window) for window in dict.fromkeys(each)}

    @property
    def score_dim(self) -> int:
        """Elements of a query and a key inside attention."""
        return self.head_dim + self.rotary

    def value_dim(self, cp: int) -> int:
        """Elements of a value inside attention: filled up to a key's where ranks cut a sequence.

        Args:
            cp: context-parallel ranks.

        Returns:
            The elements of a head's value.
        """
        return self.score_dim if cp > 1 else self.head_dim

    @property
    def one_gather(self) -> bool:
        """Whether queries, keys and values come from one matrix.

        Then entering the tensor-parallel region and that matrix are one operation.
        """
        return self.qkv == "fused" and not self.kv_latent

    @property
    def down(self) -> int:
        """Rows of a latent model's projections down to the latents; 0 without latents.

        They are whole on every tensor rank, and each computes them.
        """
        return self.kv_latent + self.rotary + self.q_latent if self.kv_latent else 0

    @property
    def biased_qkv(self) -> bool:
        """Whether the matrices of queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def head_products(self) -> int:
        """How many weights the matrices of attention have that are cut over heads."""
        h, a, q = self.hidden, self.heads, self.query_width
        if not self.kv_latent:
            return (q + 2 * self.key_width) * h + h * q
        return 2 * q * self.kv_latent + a * self.score_dim * (self.q_latent or h) + h * q

    @property
    def query_width(self) -> int:
        """Columns of Q, and of attention's output before its last matrix: heads x head size."""
        return self.heads * self.head_dim

    @property
    def width(self) -> int:
        """The inner width of the MLP."""
        return self.ffn or 4 * self.hidden

    @property
    def expert_width(self) -> int:
        """The inner width of each expert."""
        return self.expert_ffn or self.width

    @property
    def normalises(self) -> bool:
        """Whether the weights of a token's experts are divided by their sum."""
        return self.top_k > 1 if self.router_normalised is None else self.router_normalised

    @property
    def key_heads(self) -> int:
        """Heads of keys and values: a for multi-head, 1 for multi-query attention, between them for
        grouped-query.
        """
        return self.kv_heads or self.heads

    @property
    def key_width(self) -> int:
        """Columns of K, and of V: key heads x head size."""
        return self.key_heads * self.head_dim

    @property
    def gates(self) -> int:
        """Matrices into the MLP: two where it has a gate beside the value."""
        return 2 if self.activation in ("swiglu", "geglu", "swiglu-clamped") else 1

    def routed(self, layer: int) -> bool:
        """Whether a layer has a router and experts in the place of its MLP.

        Args:
            layer: which one, from 0.

        Returns:
            True for layers behind the first dense ones, of a model with experts.
        """
        return self.experts > 0 and layer >= self.dense_layers

    @property
    def routed_layers(self) -> int:
        """How many layers have a router and experts."""
        return sum(map(self.routed, range(self.layers)))

    def dense_width(self, layer: int) -> int:
        """The inner width of the MLP that every token of a layer passes.

        Args:
            layer: which one, from 0.

        Returns:
            Columns of the MLP, or of the shared expert; 0 where there is none.
        """
        return self.shared_ffn if self.routed(layer) else self.width

    def matrix_pairs(self, layer: int) -> int:
        """Pairs of matrices into and out of the tensor-parallel region that a layer has.

        They are attention, the MLP or the experts, and the expert that every token passes.

        Args:
            layer: which one, from 0.

        Returns:
            2, or 3 with a shared expert.
        """
        return 2 + (self.routed(layer) and self.shared_ffn > 0)

    @property
    def causal(self) -> bool:
        """Whether a query sees only the keys up to its own (and the prefix's); otherwise it sees all."""
        return self.objective == "causal"

    @property
    def both_ways(self) -> bool:
        """Whether some queries see keys that come after their own."""
        return not self.causal or self.prefix > 1

    @property
    def transforms_qk(self) -> bool:
        """Whether queries and keys are transformed behind their matrices: rotated, normalised or made from
        latents.

        Attention then keeps Q, K and V as tensors of their own.
        """
        return self.position == "rope" or self.qk_norm or self.kv_latent > 0

    def norm_size(self, width: int) -> int:
        """How many parameters a norm has.

        Args:
            width: elements that are normalised together.

        Returns:
            width for a gain, 2·width with a bias, 1 for scalenorm.
        """
        return {"layernorm": (1 + self.bias) * width, "rmsnorm": width, "scalenorm": 1}[self.norm]

    def parameters(self) -> int:
        """Ψ: how many parameters the model has, from its shapes.

        Eq 1 is this for ffn = 4h, as many key heads as heads, no gate, biases, layer norms and learned
        positions.
        """
        h, f, k, u, one = self.hidden, self.width, self.key_width, self.gates, int(self.bias)
        attention = self.head_products + self.down * (h + one) + one * h
        attention += self.biased_qkv * (self.query_width + 2 * k)
        if self.kv_latent:
            attention += self.norm_size(self.kv_latent) + (
                self.norm_size(self.q_latent) if self.q_latent else 0
            )
            attention += one * (self.heads * (self.head_dim + self.score_dim) - 2 * k)
        attention += self.relative_buckets * self.heads if self.position == "relative" else 0
        attention += 2 * self.norm_size(self.head_dim) if self.qk_norm else 0
        attention += self.heads if self.sinks else 0

        def mlp(f: int) -> int:
            return u * f * (h + one) + h * (f + one)

        wide = self.expert_width
        routed = self.experts * h * (1 + (u + 1) * wide) + (mlp(self.shared_ffn) if self.shared_ffn else 0)
        routed += self.experts * (1 + u * wide + h) if self.expert_bias else 0
        inside = self.routed_layers * routed + (self.layers - self.routed_layers) * mlp(f)
        layer = (4 if self.norm_position == "sandwich" else 2) * self.norm_size(h) + attention
        ends = self.vocab * h * (1 if self.tied else 2) + (self.seq * h if self.position == "learned" else 0)
        if self.objective == "masked":
            # token types and their norm; the head's transform, its norm and the logits' bias
            ends += 2 * h + self.norm_size(h) + h * (h + one) + self.norm_size(h) + self.vocab * one
        ends += h * (self.patch_size + one) if self.patches else 0
        return (
            self.layers * layer + inside + ends + (self.norm_size(h) if self.norm_position != "post" else 0)
        )

    def model_flops(self, tokens: int) -> int:
        """Eq 30: the FLOPs that training on some tokens needs, three times those of forward.

        MFU is made of them.

        Products of matrices count: attention as if no mask saved anything, k experts a token, the head;
        look-ups do not, and recomputation does not.

        Args:
            tokens: in the step.

        Returns:
            Floating-point operations, two for each multiply-add.
        """
        h, s, u, routed = self.hidden, self.seq, self.gates, self.routed_layers
        widths = sum(map(self.dense_width, range(self.layers))) + routed * self.top_k * self.expert_width
        inside = 2 * (u + 1) * h * widths + routed * 2 * h * self.experts
        products = 2 * (self.head_products + self.down * h)
        per_layer = products + 2 * s * self.heads * (self.score_dim + self.head_dim)
        head = 2 * h * (self.vocab + (h if self.objective == "masked" else 0))
        return 3 * tokens * (self.layers * per_layer + inside + head)

    def seen_pairs(self, layer: int) -> int:
        """Pairs of a query and a key in a sequence that a layer's mask lets see each other.

        Args:
            layer: which one, from 0.

        Returns:
            At most s².
        """
        if not self.causal:
            return self.seq**2
        far = min(self.window_of(layer) or self.seq, self.seq)  # keys that a query sees at most
        return far * (far + 1) // 2 + (self.seq - far) * far + self.prefix * (self.prefix - 1) // 2

    def causal_flops(self, tokens: int) -> int:
        """Eq 30 with the pairs of tokens that the mask lets see each other in the place of all s².

        Causal MFU is made of them.

        Args:
            tokens: in the step.

        Returns:
            Floating-point operations, two for each multiply-add.
        """
        hidden = sum(self.seq**2 - self.seen_pairs(layer) for layer in range(self.layers))
        pair = 2 * self.heads * (self.score_dim + self.head_dim)
        return self.model_flops(tokens) - 3 * tokens * hidden * pair // self.seq


# options of rope that only one scaling has
ROPE_FIELDS = {
    "llama3": ("rope_low_factor", "rope_high_factor"),
    "yarn": ("rope_beta_fast", "rope_beta_slow", "rope_truncate", "rope_attention_factor"),
}


def _needs(option: str, field: str, value: Any, default: Any) -> InputError:
    """The error for a field that means something only beside an option; its nearest value is its default."""
    if default is None:
        return InputError(field, value, f"needs {option}, or leave it out")
    return InputError(field, value, f"needs {option}", [default])
