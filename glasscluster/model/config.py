"""The model's shape. Presets are starting points; every field can be overridden."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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

    model_config = ConfigDict(extra="forbid", frozen=True)
    groups: ClassVar[dict[str, tuple[str, ...]]] = {  # what stands together in a list of options
        "sizes": ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq"),
        "attention": ("attention", "qkv", "kv_latent", "q_latent", "rope_dim", "qk_norm"),
        "positions": (
            *("position", "relative_buckets", "relative_distance", "rope_layout", "rope_theta"),
            *("rope_scaling", "rope_factor", "rope_trained"),
        ),
        "MLP and experts": (
            *("activation", "experts", "top_k", "capacity_factor"),
            *("aux_loss", "shared_ffn", "hot_expert"),
        ),
        "norms, biases and initial weights": (
            *("norm", "norm_eps", "norm_position", "bias", "tied", "dropout", "init_std", "residual_init"),
        ),
        "what it learns from": ("objective", "prefix", "patches", "patch_size"),
        "loss": ("z_loss", "loss", "loss_chunks"),
    }

    layers: int = Field(4, ge=1, description="transformer blocks")
    hidden: int = Field(64, ge=1, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads")
    kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values, each shared by heads / kv-heads queries (= heads)"
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
        None, ge=2, description="rotary elements beside a head's own, with kv-latent (half a head's)"
    )
    ffn: int | None = Field(None, ge=1, description="inner width of the MLP, or of each expert (4 x hidden)")
    activation: Literal["gelu", "gelu-tanh", "relu", "swiglu"] = Field(
        "gelu", description="of the MLP; swiglu has a gate of the same width"
    )
    experts: int = Field(0, ge=0, description="experts in the place of each MLP; 0: none")
    top_k: int = Field(2, ge=1, description="experts that a token is sent to")
    capacity_factor: float = Field(
        0.0, ge=0, description="an expert takes factor x k x seq / experts tokens of a sequence; 0: all"
    )
    aux_loss: float = Field(0.01, ge=0, description="weight of the load-balancing loss")
    shared_ffn: int = Field(0, ge=0, description="inner width of the expert that every token passes; 0: none")
    hot_expert: float = Field(0.0, description="added to the first expert's router logits")
    vocab: int = Field(256, ge=2, description="tokens in the vocabulary")
    seq: int = Field(64, ge=1, description="tokens in a sequence")
    tied: bool = Field(
        True,
        description="the head is the embedding table",
        json_schema_extra={"off": "untied"},
    )
    attention: Literal["flash", "unfused"] = Field("flash", description="attention kernel")
    norm: Literal["layernorm", "rmsnorm", "scalenorm"] = Field(
        "layernorm", description="layer norm, without a mean, with one weight"
    )
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the norms")
    norm_position: Literal["pre", "post", "sandwich"] = Field(
        "pre", description="before a branch, behind its residual, or before the branch and behind it"
    )
    qk_norm: bool = Field(False, description="queries and keys pass a norm head by head")
    bias: bool = Field(True, description="matrices and layer norms have biases")
    position: Literal["learned", "sinusoidal", "relative", "alibi", "rope", "none"] = Field(
        "learned", description="how tokens know where they stand"
    )
    relative_buckets: int = Field(32, ge=4, description="rows of the table of relative positions")
    relative_distance: int = Field(128, ge=2, description="distance from which all share the last bucket")
    rope_layout: Literal["half", "interleaved"] = Field(
        "half", description="which columns rope pairs: i and i + d/2, or neighbours"
    )
    rope_theta: float = Field(10000.0, gt=1, description="base of rope's frequencies")
    rope_scaling: Literal["none", "interpolation", "ntk", "yarn"] = Field(
        "none", description="how rope reaches beyond the trained length"
    )
    rope_factor: float = Field(1.0, ge=1, description="how many times as long as trained")
    rope_trained: int | None = Field(None, ge=1, description="trained length, for yarn (seq / rope-factor)")
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
        return values

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden % self.heads:
            divisors = [d for d in range(1, self.hidden + 1) if self.hidden % d == 0]
            best = min(divisors, key=lambda d: abs(d - self.heads))
            raise ValueError(f"heads|{self.heads}|hidden = {self.hidden} must be a multiple of heads|{best}")
        if self.heads % self.key_heads:
            divisors = [d for d in range(1, self.heads + 1) if self.heads % d == 0]
            best = min(divisors, key=lambda d: abs(d - self.key_heads))
            raise ValueError(
                f"kv_heads|{self.key_heads}|heads = {self.heads} must be a multiple of kv-heads|{best}"
            )
        if self.position == "rope" and not self.kv_latent and self.head_dim % 2:
            raise ValueError(
                f"position|rope|turns pairs, and the head size hidden / heads = {self.head_dim} is "
                f"odd|learned"
            )
        self._latents_fit()
        if self.rope_scaling != "none" and self.position != "rope":
            raise ValueError(f"rope_scaling|{self.rope_scaling}|needs --position rope|none")
        if self.position == "relative" and self.relative_distance <= self.relative_buckets // (
            4 if self.both_ways else 2
        ):
            rule = "must be larger than the distances that have a bucket each"
            raise ValueError(f"relative_distance|{self.relative_distance}|{rule}|{self.relative_buckets}")
        if self.prefix and self.objective == "masked":
            raise ValueError(f"prefix|{self.prefix}|all tokens of a masked model see each other|0")
        if self.patches and self.objective == "masked":
            raise ValueError(
                f"patches|{self.patches}|a caption is predicted token by token, by a causal model|0"
            )
        if self.patches >= self.seq:
            raise ValueError(
                f"patches|{self.patches}|must leave room for text: fewer than seq = {self.seq}|{self.seq - 1}"
            )
        if self.prefix >= self.seq:
            raise ValueError(f"prefix|{self.prefix}|must be shorter than seq = {self.seq}|{self.seq - 1}")
        if self.experts and self.top_k > self.experts:
            raise ValueError(f"top_k|{self.top_k}|there are {self.experts} experts|{self.experts}")
        return self

    def _latents_fit(self) -> None:
        if not self.kv_latent:
            for field in ("q_latent", "rope_dim"):
                if getattr(self, field):
                    raise ValueError(
                        f"{field}|{getattr(self, field)}|needs "
                        f"--kv-latent|{0 if field == 'q_latent' else None}"
                    )
            return
        if self.key_heads != self.heads:
            raise ValueError(
                f"kv_heads|{self.key_heads}|with kv-latent every head has keys of its own|{self.heads}"
            )
        if self.qk_norm:
            raise ValueError("qk_norm|True|with kv-latent it is the latents that have norms|False")
        if self.rotary % 2:
            raise ValueError(f"rope_dim|{self.rotary}|turns pairs|{self.rotary + 1}")

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

    @property
    def score_dim(self) -> int:
        """Elements of a query, a key and (filled up) a value inside attention."""
        return self.head_dim + self.rotary

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
    def head_products(self) -> int:
        """How many weights the matrices of attention have that are cut over heads."""
        h, a, d = self.hidden, self.heads, self.head_dim
        if not self.kv_latent:
            return (h + 2 * self.key_width) * h + h * h
        return a * 2 * d * self.kv_latent + a * self.score_dim * (self.q_latent or h) + h * h

    @property
    def head_dim(self) -> int:
        """d = h / a."""
        return self.hidden // self.heads

    @property
    def width(self) -> int:
        """The inner width of the MLP."""
        return self.ffn or 4 * self.hidden

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
        """Matrices into the MLP: with SwiGLU the gate and the value."""
        return 2 if self.activation == "swiglu" else 1

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
        attention = self.head_products + self.down * (h + one) + one * (h + (h + 2 * k))
        if self.kv_latent:
            attention += self.norm_size(self.kv_latent) + (
                self.norm_size(self.q_latent) if self.q_latent else 0
            )
            attention += one * (self.heads * (2 * self.head_dim + self.score_dim) - (h + 2 * k))
        attention += self.relative_buckets * self.heads if self.position == "relative" else 0
        attention += 2 * self.norm_size(self.head_dim) if self.qk_norm else 0

        def mlp(f: int) -> int:
            return u * f * (h + one) + h * (f + one)

        inside = mlp(f)
        if self.experts:
            inside = self.experts * h * (1 + (u + 1) * f) + (mlp(self.shared_ffn) if self.shared_ffn else 0)
        layer = (4 if self.norm_position == "sandwich" else 2) * self.norm_size(h) + attention + inside
        ends = self.vocab * h * (1 if self.tied else 2) + (self.seq * h if self.position == "learned" else 0)
        if self.objective == "masked":
            # token types and their norm; the head's transform, its norm and the logits' bias
            ends += 2 * h + self.norm_size(h) + h * (h + one) + self.norm_size(h) + self.vocab * one
        ends += h * (self.patch_size + one) if self.patches else 0
        return self.layers * layer + ends + (self.norm_size(h) if self.norm_position != "post" else 0)

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
        h, f, s, u = self.hidden, self.width, self.seq, self.gates
        inside = 2 * (u + 1) * h * f
        if self.experts:
            inside = 2 * (u + 1) * h * (f * self.top_k + self.shared_ffn) + 2 * h * self.experts
        products = 2 * (self.head_products + self.down * h)
        per_layer = products + inside + 2 * s * self.heads * (self.score_dim + self.head_dim)
        head = 2 * h * (self.vocab + (h if self.objective == "masked" else 0))
        return 3 * tokens * (self.layers * per_layer + head)

    @property
    def seen_pairs(self) -> int:
        """Pairs of a query and a key in a sequence that the mask lets see each other, of s² pairs."""
        s, p = self.seq, self.prefix
        return s * (s + 1) // 2 + p * (p - 1) // 2 if self.causal else s * s

    def causal_flops(self, tokens: int) -> int:
        """Eq 30 with the pairs of tokens that the mask lets see each other in the place of all s².

        Causal MFU is made of them.

        Args:
            tokens: in the step.

        Returns:
            Floating-point operations, two for each multiply-add.
        """
        hidden = self.seq**2 - self.seen_pairs
        pair = 2 * self.layers * self.heads * (self.score_dim + self.head_dim)
        return self.model_flops(tokens) - 3 * tokens * hidden * pair // self.seq


_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "bias": False,
    "position": "rope",
    "activation": "swiglu",
    "tied": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 256, "seq": 64},
    "small": {"layers": 8, "hidden": 128, "heads": 8, "vocab": 256, "seq": 128},
    "gpt2-small": {"layers": 12, "hidden": 768, "heads": 12, "vocab": 50257, "seq": 1024},
    "gpt3-175b": {"layers": 96, "hidden": 12288, "heads": 96, "vocab": 51200, "seq": 2048},
    # 2307.09288 table 1; 2407.21783 table 3; 2401.04088 table 1
    "llama2-7b": {
        **_LLAMA,
        "layers": 32,
        "hidden": 4096,
        "heads": 32,
        "ffn": 11008,
        "vocab": 32000,
        "seq": 4096,
    },
    "llama3-8b": {
        **_LLAMA,
        "layers": 32,
        "hidden": 4096,
        "heads": 32,
        "kv_heads": 8,
        "ffn": 14336,
        "vocab": 128256,
        "seq": 8192,
        "rope_theta": 5e5,
    },
    "llama3-70b": {
        **_LLAMA,
        "layers": 80,
        "hidden": 8192,
        "heads": 64,
        "kv_heads": 8,
        "ffn": 28672,
        "vocab": 128256,
        "seq": 8192,
        "rope_theta": 5e5,
    },
    "llama3-405b": {
        **_LLAMA,
        "layers": 126,
        "hidden": 16384,
        "heads": 128,
        "kv_heads": 8,
        "ffn": 53248,
        "vocab": 128256,
        "seq": 8192,
        "rope_theta": 5e5,
    },
    "mixtral-8x7b": {
        **_LLAMA,
        "layers": 32,
        "hidden": 4096,
        "heads": 32,
        "kv_heads": 8,
        "ffn": 14336,
        "vocab": 32000,
        "seq": 4096,
        "rope_theta": 1e6,
        "experts": 8,
        "top_k": 2,
    },
    "bert-base": {  # 1810.04805 section 3
        "layers": 12,
        "hidden": 768,
        "heads": 12,
        "vocab": 30522,
        "seq": 512,
        "objective": "masked",
        "norm_position": "post",
        "norm_eps": 1e-12,
        "dropout": 0.1,
    },
}
