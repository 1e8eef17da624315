"""What a rank holds for a role: a model that only answers, or one that learns too.

    frozen    parameters                                                              bf16: 2 bytes an element
    learns    parameters, gradients, Adam's two moments, and in bf16 an fp32 master   2 + 2 + 4 + 4 + 4 = 16

The parameters of a role are one flat buffer, so that they travel in one message. In fp32: 4, and 4 + 4 + 8 =
16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.layout.units import make_unit
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.preference.job import LEARNS, Tuning, Weights
from glasscluster.strategies.preference.sequences import ScalarModel


def make_model(
    role: str, job: Tuning, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """A role's model with its first weights: a critic and a reward model have a scalar head."""
    kind = ScalarModel if role in ("critic", "reward") else GPTStage
    model = kind(job.model, seed=job.seed, dtype=dtype or DTYPES[job.precision], device=device)
    fill(model, job.reward_weights or job.weights if role in ("critic", "reward") else job.weights)
    return model


def fill(model: Any, weights: Weights | None) -> None:
    """Take over the weights that have a name here; the others (a scalar head that starts from a policy) stay
    as drawn.
    """
    given = weights or {}
    with torch.no_grad():
        for name, (parameter, _) in model.full_names().items():
            if name in given and parameter.device.type != "meta":
                parameter.copy_(given[name])


class Held:
    """A role's model on this rank.

    `flat` [Ψ]: its parameters; the memory ledger knows each tensor by role and category.
    """

    def __init__(self, gpu: GPU, job: Tuning, role: str) -> None:
        self.gpu, self.job, self.role = gpu, job, role
        self.model = make_model(role, job, gpu.device)
        for part in self.model.parts():
            part.register_forward_pre_hook(
                lambda module, _args: gpu.recorder.enter_layer(getattr(module, "index", -1))
            )
        unit = make_unit(role, [(n, p, s) for n, (p, s) in self.model.full_names().items()], 1)
        self.members, self.flat = unit.members, self.remember(unit.flat, "parameters")
        if not self.learns:
            self.model.requires_grad_(False)

    @property
    def learns(self) -> bool:
        """Whether it has an optimizer."""
        return self.role in LEARNS[self.job.method]

    def remember(self, tensor: Tensor, category: str) -> Tensor:
        """Tell the ledger whose it is."""
        return self.gpu.memory.register(tensor, category, f"{self.role} {category}")

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the role's state by category, as the ledger counted them."""
        return {
            c: self.gpu.memory.named(f"{self.role} {c}") for c in ("parameters", "gradients", "optimizer")
        }

    def weights(self) -> dict[str, Tensor]:
        """By full name, copied to the CPU."""
        with self.gpu.unrecorded():
            return {
                m.name: self.flat[m.start : m.stop].view(m.parameter.shape).cpu().clone()
                for m in self.members
            }


class Learner(Held):
    """A role that learns."""

    def __init__(self, gpu: GPU, job: Tuning, role: str) -> None:
        super().__init__(gpu, job, role)
        self.optimizer, self.steps = job.optimizer(role), 0
        self.grad = self.remember(torch.zeros_like(self.flat), "gradients")
        for m in self.members:
            m.parameter.grad = self.grad[m.start : m.stop].view(m.parameter.shape)
        master = job.precision == "bf16"
        self.wide = self.remember(self.flat.float(), "optimizer") if master else self.flat
        self.moments = [
            self.remember(torch.zeros_like(self.wide), "optimizer") for _ in range(self.optimizer.moments)
        ]

    def step(self, loss: Tensor) -> None:
        """Backward, clip by the gradient's norm, update, and gradients at zero again."""
        with self.gpu.region("backward"):
            loss.backward()
        with self.gpu.region("optimizer", layer=-1), torch.no_grad():
            self.steps += 1
            gradient = self.grad.to(self.wide.dtype)
            if self.job.max_norm:
                norm = torch.linalg.vector_norm(gradient)
                gradient = gradient * (self.job.max_norm / (norm + 1e-6)).clamp(max=1.0)
            self.optimizer.update(self.wide, gradient, self.moments, self.steps)
            if self.wide is not self.flat:
                self.flat.copy_(self.wide)
            self.grad.zero_()
