"""What is tuned, how, and which rank plays which role.

    sft, reward-model   one role that learns
    dpo                 actor, reference                                    16Ψ + 2Ψ
    grpo                actor, reference, rollout, reward model or rule     16Ψ + 2Ψ (+ 2Ψ)
    ppo                 actor, critic, reference, rollout, reward model     2 · 16Ψ + 2 · 2Ψ = 36Ψ     (Eq 39)

The rollout writes answers. On a rank of its own it has a copy of the actor's weights, which are sent to it
before every iteration; on the actor's rank it uses them as they are. Roles may share ranks in any way: a
message between two on one rank is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.uses import check_use
from glasscluster.strategies.preference.rewards import SortTask

Method = Literal["sft", "reward-model", "dpo", "ppo", "grpo"]
Weights = Mapping[str, Tensor]
LEARNS = {
    "sft": ("actor",),
    "reward-model": ("reward",),
    "dpo": ("actor",),
    "ppo": ("actor", "critic"),
    "grpo": ("actor",),
}
ONLINE = ("ppo", "grpo")  # answers are written while training


def roles_of(method: str, reward: str) -> tuple[str, ...]:
    """Every role of a method, those that learn first."""
    judge = ("reward",) if reward == "model" and method in ONLINE else ()
    frozen = {
        "dpo": ("reference",),
        "ppo": ("reference", *judge, "rollout"),
        "grpo": ("reference", *judge, "rollout"),
    }
    return (*LEARNS[method], *frozen.get(method, ()))


def place(method: str, reward: str, *together: Sequence[str]) -> dict[str, int]:
    """Role -> rank: each group of `together` on one rank; every other role on a rank of its own."""
    roles = roles_of(method, reward)
    unknown = [r for group in together for r in group if r not in roles]
    if unknown:
        raise InputError("placement", unknown[0], f"{method} has no such role", roles)
    named = {role for group in together for role in group}
    groups = [tuple(g) for g in together] + [(r,) for r in roles if r not in named]
    groups.sort(key=lambda g: min(roles.index(r) for r in g))
    return {role: rank for rank, group in enumerate(groups) for role in group}


@dataclass(frozen=True)
class Tuning:
    """Everything a rank needs.

    Sizes: `prompts` x `group` answers an iteration, each trained on `epochs` times.

    `weights` start the policy and `reward_weights` the reward model (and the critic), by full parameter name;
    None: drawn from the seed.
    `pairs`: (preferred [N, S], rejected [N, S]) for dpo and the reward model. A DPO or reward-model iteration
    takes `prompts` of them.
    """

    method: Method
    model: ModelConfig
    task: SortTask = field(default_factory=SortTask)
    iterations: int = 1
    prompts: int = 32
    group: int = 1
    epochs: int = 1
    lr: float = 1e-3
    critic_lr: float = 1e-3
    beta: float = 0.05  # pull to the reference
    imitation: float = 0.0  # dpo: weight of the preferred answers' own SFT loss
    clip: float = 0.2  # of a ratio, and of how far a value moves
    gamma: float = 1.0
    lam: float = 0.95
    max_norm: float = 1.0  # of a gradient; 0: as it is
    reward: Literal["model", "rule"] = "rule"
    precision: str = "fp32"
    seed: int = 0
    placement: Mapping[str, int] | None = None
    weights: Weights | None = None
    reward_weights: Weights | None = None
    pairs: tuple[Tensor, Tensor] | None = None
    capture: bool = False

    def __post_init__(self) -> None:
        check_use(self.model, "tune")
        for name in ("prompts", "group", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be at least 1")
        if self.method == "grpo" and self.group < 2:
            raise InputError(
                "group", self.group, "grpo compares answers to one prompt: it needs at least 2", range(2, 17)
            )
        if self.method in ("dpo", "reward-model") and (self.pairs is None or not len(self.pairs[0])):
            raise InputError(
                "pairs",
                "none",
                f"{self.method} learns from comparisons: a policy that is never right gives none",
            )
        if self.model.seq < self.task.length or self.model.vocab < 64:
            raise InputError(
                "model",
                (self.model.seq, self.model.vocab),
                f"the task needs seq >= {self.task.length} and vocab >= 64",
            )
        if self.precision not in ("fp64", "fp32", "bf16"):
            raise InputError(
                "precision", self.precision, "fp16 would need a loss scale", ["fp64", "fp32", "bf16"]
            )
        missing = set(self.roles) - set(self.where)
        if missing:
            raise InputError("placement", dict(self.where), f"has no rank for {', '.join(sorted(missing))}")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that the method has."""
        return roles_of(self.method, self.reward)

    @property
    def where(self) -> Mapping[str, int]:
        """Role -> rank."""
        return self.placement if self.placement is not None else place(self.method, self.reward)

    @property
    def ranks(self) -> int:
        """How many it takes."""
        return max(self.where.values()) + 1

    @property
    def answers(self) -> int:
        """Sequences an iteration."""
        return self.prompts * self.group

    def optimizer(self, role: str) -> Optimizer:
        """AdamW without weight decay: the pull is to the reference, not to zero."""
        return Optimizer("adamw", lr=self.critic_lr if role == "critic" else self.lr, weight_decay=0.0)

    def sampling_seed(self, iteration: int) -> int:
        """The seed of an iteration's prompts and answers."""
        return self.seed * 1_000_003 + iteration
