"""The roles of one rank, and how what a role made gets to another.

Every rank runs the same list of steps and does those of its roles: roles that share a rank take turns and
send each other nothing.
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

Made = Any  # a tensor on the rank that has it, None on the others


@dataclass
class Tuned:
    """What a rank brings back: losses of every update by role, bytes by role and category, weights of what
    learned (with capture).
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    state_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    cache_bytes: int = 0  # most that a rollout's keys and values took
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)  # the actor's rank: mean of each iteration's answers
    scores: list[float] = field(
        default_factory=list
    )  # the same, of what the policy was rewarded with: the reward model, or the rule
    kl: list[float] = field(default_factory=list)  # the same: mean of log π_old − log π_ref of whole answers


class Cast:
    """The roles of one rank, and how what a role made gets to another."""

    def __init__(self, gpu: GPU, job: Tuning) -> None:
        self.gpu, self.job, self.comm = gpu, job, gpu.make_mesh({"dp": gpu.size})["dp"]
        self.out, self.held = Tuned(), dict[str, Any]()
        self.wide = torch.promote_types(DTYPES[job.precision], torch.float32)
        with gpu.unrecorded():
            for role in job.roles:
                if self.plays(role) and not (role == "rollout" and self.shares):
                    self.held[role] = (Learner if role in LEARNS[job.method] else Held)(gpu, job, role)
            self.mask = torch.ones(job.answers, job.task.answer, dtype=self.wide, device=gpu.device)

    @property
    def shares(self) -> bool:
        """Whether the rollout uses the actor's own weights."""
        return self.job.where["rollout"] == self.job.where["actor"]

    def plays(self, role: str) -> bool:
        """Whether a role is this rank's."""
        return self.job.where.get(role) == self.gpu.rank

    def on(self, role: str, step: int, work: Callable[[Any], Tensor]) -> Made:
        """What a role's model makes of something, without a gradient; None on other ranks."""
        if not self.plays(role):
            return None
        with self.gpu.region("forward", micro_batch=step), torch.no_grad():
            return work(self.held[role].model)

    def hand(self, made: Made, shape: tuple[int, ...], src: str, dst: str, label: str) -> Made:
        """What `src` made, on `dst`'s rank; None elsewhere."""
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
        """One update of a role that learns."""
        if not self.plays(role):
            return
        learner: Learner = self.held[role]
        with self.gpu.region(micro_batch=step):
            with self.gpu.region("forward"):
                made = loss(learner.model)
            learner.step(made)
        with self.gpu.unrecorded():
            self.out.losses.setdefault(role, []).append(number_of(made))

    def bring_back(self) -> Tuned:
        """Counts, and with `capture` weights."""
        out = self.out
        out.state_bytes = {role: held.state_bytes() for role, held in self.held.items()}
        if self.job.capture and self.gpu.device.type != "meta":
            out.weights = {role: held.weights() for role, held in self.held.items() if held.learns}
        return out


def number_of(x: Tensor) -> float:
    """A scalar, or 0 where there is no data."""
    return 0.0 if x.device.type == "meta" else float(x.detach())
