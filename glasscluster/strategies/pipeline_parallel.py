"""Pipeline parallelism: one executor for any schedule. A rank does its list of actions, in order.

Follows GPipe (1811.06965) and PyTorch's pipelining runtime: a received activation is a leaf that requires grad;
(input, output) are kept per micro-batch until its backward; the loss is on the last stage.

    F i:  receive x_i from the stage before · y_i = stage(x_i) · send y_i on
    B i:  receive dy_i from the stage after · backward(y_i, dy_i) · send dx_i back

Sends are launched, not waited for: an activation's buffer is released when its gradient comes back (so it has
surely arrived), a gradient's when the next one is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from glasscluster.model.dropout import Draw
from glasscluster.sim.communicator import Communicator, Work
from glasscluster.sim.gpu import GPU
from glasscluster.strategies.schedules.base import Action


class Gradients(Protocol):
    """What the executor tells whoever reduces gradients."""

    def backward_begins(self, last: bool) -> None:
        """A micro-batch's backward starts; `last` of the step."""

    def backward_ends(self) -> None:
        """It is over."""


class PipelineExecutor:
    """Runs one stage's actions. `shape` and `dtype` are those of an activation between stages, [b, s, h]."""

    def __init__(
        self, gpu: GPU, comm: Communicator, stage: nn.Module, shape: Sequence[int], dtype: torch.dtype, gradients: Gradients
    ) -> None:
        self.gpu, self.comm, self.stage, self.gradients = gpu, comm, stage, gradients
        self.shape, self.dtype = tuple(shape), dtype
        self.first, self.last = comm.rank == 0, comm.rank == comm.size - 1
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.sent: dict[int, Work] = {}
        self.gradient_sent: Work | None = None
        self.seed: Tensor | None = None
        self.more: list[dict[str, Draw]] = []

    def run(
        self,
        actions: Sequence[Action],
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        loss: Tensor,
        seed: Tensor | None = None,
        draws: Sequence[Draw] | None = None,
    ) -> None:
        """One step's actions; micro-batch i reads inputs[i], targets[i]; losses are added to `loss` on the last stage.

        `seed` is the gradient that backward starts from there (1); draws[i] tells a stage with dropout what micro-batch i is.
        """
        self.seed = seed
        self.more = [{"draw": d} for d in draws] if draws else [{}] * len(inputs)
        backwards = [a for a in actions if a.kind == "B"]
        for action in actions:
            with self.gpu.region("forward" if action.kind == "F" else "backward", layer=-1, micro_batch=action.micro_batch):
                if action.kind == "F":
                    self.forward(action.micro_batch, inputs, targets, loss)
                else:
                    self.backward(action.micro_batch, last=action is backwards[-1])
        if self.gradient_sent is not None:
            self.gradient_sent.wait()
            self.gradient_sent = None

    def forward(self, i: int, inputs: Sequence[Tensor], targets: Sequence[Tensor], loss: Tensor) -> None:
        """F i."""
        if self.first:
            x = inputs[i]
        else:
            x = torch.empty(self.shape, dtype=self.dtype, device=self.gpu.device)
            self.comm.recv(x, self.comm.rank - 1, tag=2 * i, purpose="activations", label="activation")
            x.requires_grad_()
        if self.last:
            y = self.stage(x, targets[i], **self.more[i])
            loss.add_(y.detach())
        else:
            y = self.stage(x, **self.more[i])
            self.sent[i] = self.comm.isend(y.detach(), self.comm.rank + 1, tag=2 * i, purpose="activations", label="activation")
        self.kept[i] = (x, y)

    def backward(self, i: int, last: bool) -> None:
        """B i."""
        x, y = self.kept.pop(i)
        grad = self.seed
        if not self.last:
            grad = torch.empty(self.shape, dtype=self.dtype, device=self.gpu.device)
            self.comm.recv(grad, self.comm.rank + 1, tag=2 * i + 1, purpose="activations", label="activation gradient")
            self.sent.pop(i).wait()
        self.gradients.backward_begins(last)
        torch.autograd.backward(y, grad)
        self.gradients.backward_ends()
        if not self.first:
            assert x.grad is not None
            if self.gradient_sent is not None:
                self.gradient_sent.wait()
            self.gradient_sent = self.comm.isend(
                x.grad, self.comm.rank - 1, tag=2 * i + 1, purpose="activations", label="activation gradient"
            )


# ---- theory --------------------------------------------------------------------------------------------------------


def predict_traffic(p: int, m: int, tokens: int, hidden: int, width: int) -> int:
    """Activation and gradient bytes sent by all p stages together: 2 (p-1) m of b·s·h elements."""
    return 2 * (p - 1) * m * tokens * hidden * width
