"""Optimizer offload: moments and master weights live in the host's memory, and the CPU updates them there.

Follows ZeRO-Offload (Ren et al., 2101.06840), sections 3 and 4. Symbols: Ψ parameters, n ranks that share out
the optimizer state, w bytes of a parameter or gradient on the GPU, s bytes of a number of optimizer state, k
moments of each parameter (Adam: 2).

    GPU   gradients ─────────┐                              ┌─► parameters
    link                     └─ down: Ψ/n·w      up: Ψ/n·w ─┘
    CPU                               └─► update ─┘            reads w + (1+k)s, writes (1+k)s + w a parameter

Units are pipelined through the three steps: one goes up while the next one is updated. The GPU keeps no
optimizer state, so that of w + w + (1+k)s bytes a parameter only 2w stay there (with 16-bit numbers 4 bytes
of 16). The host always holds a master copy, because the CPU updates parameters in its own memory.

But: gradients go down after all of them are reduced, not bucket by bucket during backward; there is no
delayed parameter update.
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
    """The optimizer state of a unit's owned slice.

    `moments`: Adam's two tensors of the slice's shape. `master`: a copy of the parameters, in fp32 for 16-bit
    ones, and on the host for offloaded ones; None where there is none.
    """

    moments: list[Tensor]
    master: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The moments and, if there is one, the master copy."""
        return [*self.moments, self.master] if self.master is not None else self.moments


class HostOptimizer:
    """An optimizer whose state is in the host's memory, and which the CPU computes."""

    def __init__(self, gpu: GPU, optimizer: Optimizer) -> None:
        self.gpu, self.host, self.optimizer = gpu, gpu.host, optimizer

    def make_state(self, parameters: Tensor, dtype: torch.dtype, name: str) -> State:
        """Allocate moments of zero and a master copy of the owned parameters in host memory."""
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
        """Move gradients down, take step `number` on the CPU, and move parameters up.

        Returns a `Work`; the parameters are up to date when its `wait()` has returned.
        """
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
    """Bytes of an offloaded optimizer step, for `parameters` owned elements.

    Args:
        parameters: elements of the owned slices.
        width: bytes of a parameter on the GPU.
        gradient_width: bytes of a gradient element.
        state_width: bytes of a number of the optimizer state.
        moments: numbers of moments that the optimizer has of each parameter.

    Returns:
        Bytes moved "down" to and "up" from the host, read and written by the "update", and "held" there.
    """
    held, down, up = (1 + moments) * state_width * parameters, gradient_width * parameters, width * parameters
    return {"down": down, "up": up, "update": down + 2 * held + up, "held": held}
