"""Optimizers written out, on flat tensors. State lives with the caller.

AdamW: Loshchilov and Hutter, 1711.05101, Algorithm 2. Symbols: gradient g, moments m and v, step t.

    m = b1 m + (1 - b1) g            p = p (1 - lr wd)
    v = b2 v + (1 - b2) g^2          p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

lr is the peak rate times the schedule's share at step t (rate.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glasscluster.model.rate import CONSTANT, RateSchedule


@dataclass(frozen=True)
class Optimizer:
    """`adamw` or `sgd` with its constants. Elementwise, so a flat shard is as good as a tensor."""

    name: str = "adamw"
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: RateSchedule = CONSTANT

    @property
    def moments(self) -> int:
        """State tensors the size of the parameters."""
        return 2 if self.name == "adamw" else 0

    def update(self, p: Tensor, g: Tensor, state: list[Tensor], step: int) -> None:
        """One step in place; `step` counts from 1."""
        lr = self.lr * self.schedule.factor(step)
        if self.name == "sgd":
            p.add_(g, alpha=-lr)
            return
        m, v = state
        m.mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        p.mul_(1 - lr * self.weight_decay)
        denominator = (v / (1 - self.beta2**step)).sqrt_().add_(self.eps)
        p.addcdiv_(m, denominator, value=-lr / (1 - self.beta1**step))
