"""What a model can be used for, beside training: one table of what does not go with which use.

Every command asks here, and so does the code that they call, so that no two of them judge a model
differently. How a model is cut over ranks is judged by the plan's own rules (strategies/plan.py), also for
the other uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig

Use = Literal["generate", "serve", "evaluate", "speculate", "tune"]
DECODING: frozenset[Use] = frozenset({"generate", "serve", "evaluate", "speculate"})


@dataclass(frozen=True)
class Rule:
    """A field that must have one value in some uses, and why."""

    field: str
    fits: Any
    uses: frozenset[Use]
    why: str


RULES = (
    Rule("dropout", 0, DECODING, "is for training"),
    Rule("patches", 0, DECODING | {"tune"}, "a text has no pixels; `glass run captions` has"),
    Rule("objective", "causal", DECODING | {"tune"}, "a masked model fills in, it does not generate"),
    Rule(
        "prefix",
        0,
        frozenset({"serve", "speculate"}),
        "is seen at once, a step with tokens of many sequences is causal",
    ),
    Rule(
        "prefix",
        0,
        frozenset({"evaluate"}),
        "its tokens see each other, so those that are scored would already have been seen",
    ),
    Rule("router_bias", False, frozenset({"tune"}), "roles hand each other parameters alone"),
    Rule(
        "capacity_factor",
        0,
        DECODING | {"tune"},
        "drops tokens according to what else is in the forward (padding, other sequences, tokens that are not "
        "cached): texts would change each other's scores",
    ),
)


def check_use(config: ModelConfig, use: Use) -> None:
    """Check that a model can be used so.

    Args:
        config: the model's shape.
        use: what for; training and predicting a training are judged by `Plan.check` alone.

    Raises:
        InputError: naming the first field that does not fit, its value, why, and the value that fits.
    """
    for rule in RULES:
        value = getattr(config, rule.field)
        if use in rule.uses and value != rule.fits:
            raise InputError(rule.field, value, rule.why, [rule.fits])
