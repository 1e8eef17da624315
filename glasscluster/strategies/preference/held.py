"""The model that a rank holds for a role: frozen, or with gradients and optimizer state.

    frozen    parameters                                                              bf16: 2 bytes an element
    learns    parameters, gradients, Adam's two moments, and in bf16 an fp32 master   2 + 2 + 4 + 4 + 4 = 16

In fp32 they are 4 bytes and 4 + 4 + 8 = 16 bytes. The parameters of a role lie in one flat buffer, so that
they are sent in one message.
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
    """A role's model with its initial weights; a critic and a reward model have a scalar head."""
    kind = ScalarModel if role in ("critic", "reward") else GPTStage
    model = kind(job.model, seed=job.seed, dtype=dtype or DTYPES[job.precision], device=device)
    fill(model, job.reward_weights or job.weights if role in ("critic", "reward") else job.weights)
    return model


def fill(model: Any, weights: Weights | None) -> None:
    """Copy the given weights into a model by full name.

    Parameters that `weights` does not have stay as they were drawn, as the scalar head of a critic that
    starts from a policy's weights.
    """
    given = weights or {}
    with torch.no_grad():
        for name, (parameter, _) in model.full_names().items():
            if name in given and parameter.device.type != "meta":
                parameter.copy_(given[name])


class Held:
    """A role's model on this rank.

    `flat` [Ψ] holds its parameters. Memory is counted by role and category.
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
        """Whether the role has an optimizer."""
        return self.role in LEARNS[self.job.method]

    def remember(self, tensor: Tensor, category: str) -> Tensor:
        """Register a tensor with the memory recorder as this role's, and return it."""
        return self.gpu.memory.register(tensor, category, f"{self.role} {category}")

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the role's state by category, as the memory recorder counted them."""
        return {
            c: self.gpu.memory.named(f"{self.role} {c}") for c in ("parameters", "gradients", "optimizer")
        }

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights on the CPU, by full name."""
        with self.gpu.unrecorded():
            return {
                m.name: self.flat[m.start : m.stop].view(m.parameter.shape).cpu().clone()
                for m in self.members
            }


class Learner(Held):
    """A role's model that learns: with a flat gradient, Adam's moments and, in bf16, an fp32 master copy."""

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
        """Run backward, clip the gradient by its norm, update, and set the gradient to zero."""
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
