"""The roles of one rank, and the messages by which a role's results reach another role.

Every rank runs the same list of steps and computes only those of its own roles. Roles that share a rank run
one after the other and send each other nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.preference.held import Held, Learner
from glasscluster.strategies.preference.job import LEARNS, Tuning

Made = Any  # what a role computed: a tensor on the rank that has it, None on the others


@dataclass
class Tuned:
    """What a rank brings back of a tuning.

    Attributes:
        losses: role -> the loss of every update.
        state_bytes: role -> category of memory -> bytes.
        cache_bytes: the most that the key-value cache of a rollout took.
        weights: with `capture`: role -> weights at the end, of the roles that learn on this rank.
        rewards: on the actor's rank, of every iteration: the mean reward of its answers by the task's rule.
        scores: on the actor's rank, of every iteration: the mean of what the policy is rewarded with, which
            is the reward model's score or the rule's reward.
        kl: on the actor's rank, of every iteration: the mean of log π_old − log π_ref over whole answers.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    state_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    cache_bytes: int = 0
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)


class Cast:
    """The roles of one rank, with their models in `held`, and what the rank brings back in `out`."""

    def __init__(self, gpu: GPU, job: Tuning) -> None:
        self.gpu, self.job, self.comm = gpu, job, gpu.make_mesh({"dp": gpu.size})["dp"]
        self.out, self.held = Tuned(), dict[str, Any]()
        self.wide = torch.promote_types(DTYPES[job.precision], torch.float32)
        with gpu.unrecorded():
            for role in job.roles:
                if self.has_role(role) and not (role == "rollout" and self.shares):
                    self.held[role] = (Learner if role in LEARNS[job.method] else Held)(gpu, job, role)
            self.mask = torch.ones(job.answers, job.task.answer, dtype=self.wide, device=gpu.device)

    @property
    def shares(self) -> bool:
        """Whether the rollout uses the actor's own weights."""
        return self.job.where["rollout"] == self.job.where["actor"]

    def has_role(self, role: str) -> bool:
        """Whether this rank has the role."""
        return self.job.where.get(role) == self.gpu.rank

    def on(self, role: str, step: int, work: Callable[[Any], Tensor]) -> Made:
        """Compute `work(model)` with a role's model and without gradients; None on ranks without the role.

        Recorded as micro-batch `step`.
        """
        if not self.has_role(role):
            return None
        with self.gpu.region("forward", micro_batch=step), torch.no_grad():
            return work(self.held[role].model)

    def hand(self, made: Made, shape: tuple[int, ...], src: str, dst: str, label: str) -> Made:
        """Send what role `src` computed, a tensor of the given shape, to the rank of role `dst`.

        Returns the tensor on the rank of `dst`, None on all others. Nothing is sent if both are one rank.
        """
        a, b = self.job.where[src], self.job.where[dst]
        if self.gpu.rank == a and made is not None and a != b:
            self.comm.send(made.contiguous(), b, label=label)
        if self.gpu.rank != b:
            return None
        return (
            made
            if a == b
            else self.comm.recv(torch.empty(shape, dtype=self.wide, device=self.gpu.device), a, label=label)
        )

    def learn(self, role: str, step: int, loss: Callable[[Any], Tensor]) -> None:
        """Update a role that learns by the gradient of `loss(model)`; ranks without the role do nothing."""
        if not self.has_role(role):
            return
        learner: Learner = self.held[role]
        with self.gpu.region(micro_batch=step):
            with self.gpu.region("forward"):
                made = loss(learner.model)
            learner.step(made)
        with self.gpu.unrecorded():
            self.out.losses.setdefault(role, []).append(number_of(made))

    def bring_back(self) -> Tuned:
        """What the rank brings back: losses, bytes counted, and with `capture` weights."""
        out = self.out
        out.state_bytes = {role: held.state_bytes() for role, held in self.held.items()}
        if self.job.capture and self.gpu.device.type != "meta":
            out.weights = {role: held.weights() for role, held in self.held.items() if held.learns}
        return out


def number_of(x: Tensor) -> float:
    """The value of a scalar tensor; 0 on the dry backend, where tensors have no data."""
    return 0.0 if x.device.type == "meta" else float(x.detach())
