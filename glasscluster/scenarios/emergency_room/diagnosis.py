"""From probes to a cause: eleven signs of a run, and rules that are tried in order until one holds.

Causes that a sign proves come first (skipped steps, equal bits, a norm counted twice, repeated data), then
causes in the data, then those seen in the run's first step, then those seen as growth. A rule reads signs
alone: it knows neither what was done to the run nor its options. Limits and order were found on the eleven
cases that emergency_room.py breaks. Of ten other faults (held_out.py) the rules name five; those faults are
there to measure the rules, and the rules are not fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glasscluster.strategies.judge.vitals import Vitals

Text = tuple[str, str]  # English, 中文


@dataclass(frozen=True)
class Signs:
    """A run's probes, summarized in eleven numbers. "Late" means: over the last quarter of its steps."""

    skipped_fraction: float  # of all steps
    zero_fraction: float  # of the blocks' gradient elements that are exactly 0, median over steps
    replicas_differ: bool  # in any bit, after any step
    norm_ratio: float  # the norm that clipping used over the true one, where it is furthest from 1
    repeated_fraction: float  # late: of sequences that came before
    rank_gap: float  # late: largest less smallest loss of a data rank, over the mean loss, median
    first_excess: float  # the first loss over ln V (Eq 37)
    largest_update: float  # of a step and layer, over the size of the layer's weights
    first_update: float  # the same of the first step
    attention_logit: float  # largest of the run
    loss_jump: float  # most that a loss stood over the median of the five steps before

    @classmethod
    def of(cls, vitals: Sequence[Vitals], vocab: int) -> Signs:
        """Compute the signs from the vitals of every step."""
        late = vitals[-max(1, len(vitals) // 4) :]
        losses = [v.loss for v in vitals]
        updates = [max(v.update_ratio.values(), default=0.0) for v in vitals]
        ratios = [v.norm_ratio for v in vitals if math.isfinite(v.norm_ratio)]
        return cls(
            skipped_fraction=sum(v.skipped for v in vitals) / len(vitals),
            zero_fraction=median(v.zero_fraction for v in vitals),
            replicas_differ=not all(v.replicas_equal for v in vitals),
            norm_ratio=max(ratios, key=lambda r: abs(r - 1), default=1.0),
            repeated_fraction=sum(v.repeated_fraction for v in late) / len(late),
            rank_gap=median((max(v.rank_losses) - min(v.rank_losses)) / v.loss for v in late),
            first_excess=losses[0] - math.log(vocab),
            largest_update=max(updates),
            first_update=updates[0],
            attention_logit=max(v.attention_logit for v in vitals),
            loss_jump=max(
                (losses[i] - median(losses[i - 5 : i]) for i in range(5, len(losses))), default=0.0
            ),
        )


@dataclass(frozen=True)
class Rule:
    """A cause, and the sign that names it when it is beyond a limit and no earlier rule has held."""

    cause: str
    text: Text
    reading: Callable[[Signs], float]
    limit: float

    def holds(self, signs: Signs) -> bool:
        """Whether the sign is beyond its limit."""
        return self.reading(signs) > self.limit


RULES = (
    Rule(
        "loss-scale-too-large",
        ("over half of all steps are skipped", "超过一半的步被跳过"),
        lambda s: s.skipped_fraction,
        0.5,
    ),
    Rule(
        "norm-counted-twice",
        ("the norm that clips is off by over 1 %", "裁剪所用范数的偏差超过 1 %"),
        lambda s: abs(s.norm_ratio - 1),
        0.01,
    ),
    Rule(
        "missing-all-reduce",
        ("replicas differ in a bit", "副本间存在逐比特差异"),
        lambda s: float(s.replicas_differ),
        0.5,
    ),
    Rule(
        "repeated-data",
        ("over half of late sequences came before", "后期一半以上的序列以前出现过"),
        lambda s: s.repeated_fraction,
        0.5,
    ),
    Rule(
        "loss-scale-too-small",
        ("over half of gradients are exactly 0", "一半以上梯度恰为 0"),
        lambda s: s.zero_fraction,
        0.5,
    ),
    Rule(
        "init-too-large",
        ("the first loss is over ln V + 1", "初始损失超过 ln V + 1"),
        lambda s: s.first_excess,
        1.0,
    ),
    Rule(
        "rate-too-high",
        ("a step moves a layer by twice its size", "某一步某层权重的更新幅度达其大小的两倍"),
        lambda s: s.largest_update,
        2.0,
    ),
    Rule(
        "attention-logits",
        ("an attention logit is over 50", "注意力 logit 超过 50"),
        lambda s: s.attention_logit,
        50.0,
    ),
    Rule(
        "noisy-shard",
        ("ranks' losses stay a quarter apart", "各 rank 的损失持续相差四分之一"),
        lambda s: s.rank_gap,
        0.25,
    ),
    Rule(
        "bad-batch",
        ("the loss jumps by over 1.5 in a step", "损失一步跳升 1.5 以上"),
        lambda s: s.loss_jump,
        1.5,
    ),
    Rule(
        "no-warm-up",
        ("the first step moves a layer by a third", "第一步某层权重更新幅度达三分之一"),
        lambda s: s.first_update,
        1 / 3,
    ),
)
HEALTHY = "healthy"


def diagnose(signs: Signs) -> str:
    """Return the cause that the first rule to hold names, or `healthy` where none holds."""
    return next((rule.cause for rule in RULES if rule.holds(signs)), HEALTHY)
