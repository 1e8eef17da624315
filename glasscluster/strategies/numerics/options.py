"""The options of number formats, and of the step that the optimizer takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.model.rate import RateSchedule
from glasscluster.strategies.layout.sizes import Layout
from glasscluster.strategies.numerics.bad_batch import SkipRule
from glasscluster.strategies.numerics.widths import TORCH, WIDTH

if TYPE_CHECKING:
    import torch

Precision = Literal["fp64", "fp32", "bf16", "fp16", "fp8"]
RUNS: tuple[Precision, ...] = ("fp64", "fp32", "bf16", "fp16")  # fp8 has a cost and does not run here


class PrecisionOptions(Options):
    """Number formats of weights, gradients and the optimizer's own copies."""

    model_config = ConfigDict(title="Number formats")

    precision: Precision = Field("fp32", description="number format of weights and activations")
    grad_dtype: Literal["same", "fp32"] = Field("same", description="number format of gradients")
    master_weights: Literal["auto", "none", "fp32"] = Field(
        "auto", description="fp32 copies of narrow weights"
    )

    @property
    def narrow(self) -> bool:
        """True for 16 bits or fewer."""
        return self.precision in ("bf16", "fp16", "fp8")

    @property
    def has_master(self) -> bool:
        """True when the optimizer has fp32 copies of the weights."""
        return self.narrow and self.master_weights != "none"

    @property
    def wide_gradients(self) -> bool:
        """True when 16-bit parameters have fp32 gradients, held and reduced separately from autograd's."""
        return self.narrow and self.grad_dtype == "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The type of parameters and activations."""
        import torch  # here: options are read without it

        return getattr(torch, TORCH[self.precision])

    @property
    def width(self) -> int:
        """Bytes of a parameter, or of an element of an activation."""
        return WIDTH[self.precision]

    @property
    def gradient_width(self) -> int:
        """Bytes of a gradient element as it is held and reduced."""
        return 4 if self.wide_gradients else {"fp64": 8, "fp32": 4}.get(self.precision, 2)

    def runs(self) -> None:
        """Check that the precision can be run. Raises InputError for one that can only be predicted."""
        if self.precision not in RUNS:
            rule = "has a cost (glass predict) but does not run"
            raise InputError("precision", self.precision, rule, RUNS)

    def rules(self, _model: ModelConfig, _layout: Layout) -> None:
        """fp16 needs fp32 master weights, because gradients are divided by the loss scale in fp32."""
        if self.precision == "fp16" and not self.has_master:
            rule = (
                "fp16 needs fp32 master weights: "
                "gradients divided by the loss scale in fp16 would vanish again"
            )
            raise InputError("master_weights", self.master_weights, rule, ["auto", "fp32"])


class StepOptions(Options):
    """The update rule, its learning rate over the run, and the steps that are not taken."""

    model_config = ConfigDict(title="Optimizer, learning rate and skipped steps")

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(1e-3, gt=0, description="learning rate, at its peak")
    warmup: int = Field(0, ge=0, description="updates over which the learning rate rises to its peak")
    decay: Literal["none", "cosine", "wsd"] = Field(
        "none", description="how the learning rate falls after that: at once or at the end"
    )
    decay_until: int = Field(0, ge=0, description="update at which the learning rate has reached its floor")
    decay_steps: int = Field(
        0, ge=0, description="updates the fall takes; 0: all after warm-up (cosine), the last tenth (wsd)"
    )
    lr_floor: float = Field(0.0, ge=0, le=1, description="share of the peak at which the learning rate ends")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 means no clipping")
    skip_norm: float = Field(
        0.0, ge=0, description="skip a step whose gradient norm is so many times its running median; 0: never"
    )
    skip_window: int = Field(
        16, ge=1, description="steps that this median is of; none is skipped for its size before so many"
    )
    rollback: int = Field(
        0, ge=0, description="skipped steps in a row after which to return to the last snapshot; 0: never"
    )
    snapshot_every: int = Field(10, ge=1, description="steps between snapshots, with --rollback")

    @property
    def rate(self) -> RateSchedule:
        """The learning rate over the run, as a share of its peak."""
        return RateSchedule(self.warmup, self.decay, self.decay_until, self.decay_steps, self.lr_floor)

    @property
    def skip_rule(self) -> SkipRule:
        """Which steps are not taken."""
        return SkipRule(self.skip_norm, self.skip_window, self.rollback, self.snapshot_every)

    def rules(self, _model: ModelConfig, _layout: Layout) -> None:
        """The learning rate falls after its warm-up; returning to a snapshot needs steps that are skipped."""
        if self.decay == "none":
            for field in ("decay_until", "decay_steps", "lr_floor"):
                if getattr(self, field):
                    raise InputError(field, getattr(self, field), "needs --decay cosine or wsd", [0])
        elif self.decay_until <= self.warmup:
            rule = f"must be behind warmup = {self.warmup}"
            raise InputError("decay_until", self.decay_until, rule, [self.warmup + 1])
        elif self.decay_steps > self.decay_until - self.warmup:
            rule = f"must fit between warmup = {self.warmup} and decay-until = {self.decay_until}"
            raise InputError("decay_steps", self.decay_steps, rule, [self.decay_until - self.warmup])
        if self.rollback and not self.skip_norm:
            raise InputError("rollback", self.rollback, "counts skipped steps: needs --skip-norm", [0])
