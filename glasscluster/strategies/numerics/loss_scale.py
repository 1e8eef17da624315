"""Dynamic loss scaling: fp16 gradients are computed S times too large, so that the small ones do not vanish.

Follows Micikevicius et al., "Mixed precision training" (1710.03740, section 3.2) with the constants of
torch's GradScaler.

    backward from S · loss                           fp16 gradients, reduced as always
    overflow on any rank?   yes  S ← S/2, nothing else happens: no optimizer step, no step counted
                            no   gradients ÷ S in fp32, clip by their true norm, step;
                                 after 2000 clean ones in a row S ← 2S

"Any rank" is one scalar, summed in the message that sums the gradient norm: all ranks decide alike, over dp,
tp and pp. The rest of the recipe is in data/optimizer.py: the optimizer updates an fp32 master copy, from
which fp16 weights are rounded. But: bf16 has fp32's range and needs no scale; fp8 needs one a tensor, which
is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ScaleRule:
    """Eq 28. The defaults are torch.amp.GradScaler's."""

    initial: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000  # clean steps in a row before it grows


@dataclass
class LossScaler:
    """The scale of the step to come, and what came of the steps so far."""

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
        """After every step, skipped or not."""
        self.clean = 0 if overflow else self.clean + 1
        if overflow:
            self.scale *= self.rule.backoff
        elif self.clean == self.rule.interval:
            self.scale, self.clean = self.scale * self.rule.growth, 0


# ---- theory ------------------------------------------------------------------------------------------------

SMALLEST_NORMAL, SMALLEST = (
    2.0**-14,
    2.0**-24,
)  # fp16: below the first it loses digits; at half the second it becomes 0


def predict_rounded(x: float) -> float:
    """Eq 28: what fp16 makes of a magnitude below its normal numbers: the nearest multiple of 2^-24, ties to
    even.
    """
    return round(x / SMALLEST) * SMALLEST
