"""The model's shape. Presets are starting points; every field can be overridden."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """A GPT: L layers, hidden h, a heads, sequence s, vocabulary V. ffn defaults to 4h."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = Field(4, ge=1, description="transformer blocks")
    hidden: int = Field(64, ge=1, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads")
    ffn: int | None = Field(None, ge=1, description="inner width of the MLP (4 x hidden)")
    vocab: int = Field(256, ge=2, description="tokens in the vocabulary")
    seq: int = Field(64, ge=1, description="tokens in a sequence")
    tied: bool = Field(True, description="the head is the embedding table")
    attention: Literal["flash", "unfused"] = Field("flash", description="attention kernel")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the norms")
    dropout: float = Field(0.0, ge=0, lt=1, description="share dropped of each branch's output, and of unfused attention's probabilities")
    init_std: float = Field(0.02, ge=0, description="standard deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _default_ffn(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("ffn") is None and isinstance(values.get("hidden", 64), int):
            values = {**values, "ffn": 4 * values.get("hidden", 64)}
        return values

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden % self.heads:
            divisors = [d for d in range(1, self.hidden + 1) if self.hidden % d == 0]
            best = min(divisors, key=lambda d: abs(d - self.heads))
            raise ValueError(f"heads|{self.heads}|hidden = {self.hidden} must be a multiple of heads|{best}")
        return self

    @property
    def head_dim(self) -> int:
        """d = h / a."""
        return self.hidden // self.heads

    @property
    def width(self) -> int:
        """Inner size of the MLP."""
        return self.ffn or 4 * self.hidden

    def parameters(self) -> int:
        """Ψ, from the shapes (F1 is this for ffn = 4h)."""
        h, f = self.hidden, self.width
        layer = 2 * 2 * h + (3 * h * h + 3 * h) + (h * h + h) + (f * h + f) + (h * f + h)
        return self.layers * layer + (self.vocab + self.seq) * h + 2 * h + (0 if self.tied else self.vocab * h)

    def model_flops(self, tokens: int) -> int:
        """3 x forward matmul FLOPs of `tokens`, attention dense, head included, look-ups not (CONTRACT.md)."""
        h, f, s = self.hidden, self.width, self.seq
        per_layer = 2 * (3 * h * h + h * h + 2 * h * f) + 4 * s * h
        return 3 * tokens * (self.layers * per_layer + 2 * h * self.vocab)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 256, "seq": 64},
    "small": {"layers": 8, "hidden": 128, "heads": 8, "vocab": 256, "seq": 128},
    "gpt2-small": {"layers": 12, "hidden": 768, "heads": 12, "vocab": 50257, "seq": 1024},
    "gpt3-175b": {"layers": 96, "hidden": 12288, "heads": 96, "vocab": 51200, "seq": 2048},
}
