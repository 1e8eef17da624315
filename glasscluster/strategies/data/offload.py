"""Optimizer offload: moments and master weights live in the host's memory, and the CPU updates them there.

Follows ZeRO-Offload (Ren et al., 2101.06840), sections 3 and 4. Symbols: Ψ parameters, n ranks that share out
the optimizer, w bytes of a parameter or gradient on the GPU, s bytes of a number of the state, k moments
(Adam: 2).

    GPU   gradients ─────────┐                              ┌─► parameters
    link                     └─ down: Ψ/n·w      up: Ψ/n·w ─┘
    CPU                               └─► update ─┘            reads w + (1+k)s, writes (1+k)s + w a parameter

Units follow each other through the three, so a unit goes up while the next one is updated. The GPU keeps no
optimizer state: 2w bytes a parameter are left of w + w + (1+k)s (16 bytes become 4 with 16-bit numbers). The
host always holds a master copy, since the CPU can only update what it has. But: gradients go down when they
are all reduced (the CPU scales them), not bucket by bucket during backward; no delayed update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.work import Work


@dataclass
class State:
    """Of a unit's owned slice: Adam's moments, and the wide copy of narrow or offloaded parameters."""

    moments: list[Tensor]
    master: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of it."""
        return [*self.moments, self.master] if self.master is not None else self.moments


class HostOptimizer:
    """The optimizer on the other side of the link."""

    def __init__(self, gpu: GPU, optimizer: Optimizer) -> None:
        self.gpu, self.host, self.optimizer = gpu, gpu.host, optimizer

    def make_state(self, parameters: Tensor, dtype: torch.dtype, name: str) -> State:
        """Moments and a master copy of the owned parameters, in host memory."""
        master = parameters.detach().to(self.host.device, dtype, copy=True)
        moments = [torch.zeros_like(master) for _ in range(self.optimizer.moments)]
        for tensor in (master, *moments):
            self.host.store(tensor, name)
        return State(moments, master)

    def update(
        self,
        parameters: Tensor,
        gradients: Tensor,
        scale: Tensor,
        state: State,
        number: int,
        label: str,
    ) -> Work:
        """Gradients down, one step on the CPU, parameters up; `wait()` before the parameters are used."""
        master, moments = state.master, state.moments
        assert master is not None
        sent, returned = (
            gradients.numel() * gradients.element_size(),
            parameters.numel() * parameters.element_size(),
        )
        touched = sent + 2 * (1 + len(moments)) * master.numel() * master.element_size() + returned
        down = self.host.event("down", sent, purpose="gradients", label=label)
        done = self.host.event("update", touched, down, purpose="parameters", label=label)
        with self.gpu.unrecorded():
            wide = gradients.to(self.host.device, master.dtype, copy=True)
            self.optimizer.update(
                master, wide.mul_(scale.to(self.host.device, master.dtype)), moments, number
            )
            parameters.copy_(master)
        return self.host.event("up", returned, done, purpose="parameters", label=label)


# ---- theory ------------------------------------------------------------------------------------------------


def predict_host(
    parameters: int, width: int, gradient_width: int, state_width: int, moments: int
) -> dict[str, int]:
    """Bytes of a step for `parameters` owned elements: over the link each way, through host memory, and held
    there.
    """
    held, down, up = (1 + moments) * state_width * parameters, gradient_width * parameters, width * parameters
    return {"down": down, "up": up, "update": down + 2 * held + up, "held": held}
