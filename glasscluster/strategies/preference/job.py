"""What is tuned, by which method, and which rank has which role.

Bytes of model state in bf16, for Ψ parameters of the policy:

    sft, reward-model   one role that learns                                16Ψ
    dpo                 actor, reference                                    16Ψ + 2Ψ
    grpo                actor, reference, rollout, reward model or rule     16Ψ + 2Ψ (+ 2Ψ)
    ppo                 actor, critic, reference, rollout, reward model     2 · 16Ψ + 2 · 2Ψ = 36Ψ     (Eq 39)

The actor is the policy that is trained; the rollout samples answers from it. A rollout with a rank of its own
has a copy of the actor's weights (2Ψ more), which is sent to it before every iteration; on the actor's rank
it uses the actor's weights. Roles may share ranks in any way; between roles on one rank nothing is sent.
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
    """The roles of a method, those that learn first.

    `reward`: whether PPO and GRPO are rewarded by a "model" (a role of its own) or by the task's "rule".
    """
    judge = ("reward",) if reward == "model" and method in ONLINE else ()
    frozen = {
        "dpo": ("reference",),
        "ppo": ("reference", *judge, "rollout"),
        "grpo": ("reference", *judge, "rollout"),
    }
    return (*LEARNS[method], *frozen.get(method, ()))


def place(method: str, reward: str, *together: Sequence[str]) -> dict[str, int]:
    """Assign roles to ranks: each group in `together` shares one rank, every other role has its own.

    Raises:
        InputError: if a group names a role that the method does not have.
    """
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
    """Everything a rank needs to tune a model.

    An iteration samples `group` answers to each of `prompts` prompts, and trains on all of them `epochs`
    times. DPO and the reward model take `prompts` comparisons in an iteration instead.

    Attributes:
        weights: initial weights of the policy by full name; None: drawn from the seed.
        reward_weights: initial weights of the reward model and the critic; None: `weights`.
        pairs: comparisons for DPO and the reward model, (preferred [N, S], rejected [N, S]).
        placement: role -> rank; None: every role has a rank of its own.

    Raises:
        InputError: for sizes, a precision or a placement that the method cannot run with.
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
    beta: float = 0.05  # weight of the KL to the reference
    imitation: float = 0.0  # dpo: weight of the preferred answers' own SFT loss
    clip: float = 0.2  # clip range of a probability ratio, and of the change of a critic's value
    gamma: float = 1.0  # discount of rewards
    lam: float = 0.95  # λ of generalized advantage estimation
    max_norm: float = 1.0  # largest norm of a gradient; 0: no clipping
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
        """How many ranks the job runs on."""
        return max(self.where.values()) + 1

    @property
    def answers(self) -> int:
        """How many sequences an iteration trains on."""
        return self.prompts * self.group

    def optimizer(self, role: str) -> Optimizer:
        """The role's optimizer: AdamW without weight decay, as the KL keeps weights near the reference's."""
        return Optimizer("adamw", lr=self.critic_lr if role == "critic" else self.lr, weight_decay=0.0)

    def sampling_seed(self, iteration: int) -> int:
        """The seed of an iteration's prompts and answers."""
        return self.seed * 1_000_003 + iteration
