"""Dynamic loss scaling: the loss is multiplied by S, so that small fp16 gradients do not become zero.

Follows Micikevicius et al., "Mixed precision training" (1710.03740, section 3.2) with the constants of
torch's GradScaler.

    backward from S · loss                           fp16 gradients, reduced as usual
    overflow on any rank?   yes  S ← S/2, and no optimizer step (nor is one counted)
                            no   gradients ÷ S in fp32, clip by their true norm, step;
                                 after 2000 steps in a row without overflow S ← 2S

How many ranks overflowed is one scalar, summed in the message that sums the gradient norm, over dp, tp and
pp; so all ranks decide the same. The rest of mixed precision is in data/optimizer.py: the optimizer updates
an fp32 master copy, from which fp16 weights are rounded.

But: bf16 has fp32's range and needs no scale; fp8 needs a scale for each tensor, which is not implemented.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ScaleRule:
    """How the loss scale S changes (Eq 28). The defaults are those of torch.amp.GradScaler.

    Attributes:
        initial: S at the first step.
        growth: factor by which S grows.
        backoff: factor by which S shrinks after an overflow.
        interval: steps in a row without overflow after which S grows.
    """

    initial: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000


@dataclass
class LossScaler:
    """The scale S of the next step in `scale`, and in `clean` the steps in a row without overflow."""

    rule: ScaleRule = field(default_factory=ScaleRule)
    scale: float = 0.0
    clean: int = 0

    def __post_init__(self) -> None:
        self.scale = self.scale or self.rule.initial

    def takes(self, _norm: Tensor, overflow: Tensor | None) -> bool:
        """Decide whether a step is taken: not if a rank overflowed (`overflow` [] counts them).

        Then adapt the scale.
        """
        overflowed = overflow is not None and overflow.device.type != "meta" and bool(overflow)
        self.update(overflowed)
        return not overflowed

    def update(self, overflow: bool) -> None:
        """Adapt the scale after a step, taken or skipped. `overflow`: whether a rank overflowed."""
        self.clean = 0 if overflow else self.clean + 1
        if overflow:
            self.scale *= self.rule.backoff
        elif self.clean == self.rule.interval:
            self.scale, self.clean = self.scale * self.rule.growth, 0


# ---- theory ------------------------------------------------------------------------------------------------

# fp16: numbers below the first lose digits, numbers up to half the second become 0
SMALLEST_NORMAL, SMALLEST = 2.0**-14, 2.0**-24


def predict_rounded(x: float) -> float:
    """Eq 28: a magnitude below fp16's normal numbers as fp16 rounds it.

    It becomes the nearest multiple of 2^-24; of two equally near ones the even one.
    """
    return round(x / SMALLEST) * SMALLEST
