"""One replica of a model, with its parameters and gradients in two flat buffers.

Parameter servers, backup workers and local SGD are built on it: they do not all-reduce gradients at every
step. A replica computes the gradient of its part of a batch, divided by the number of tokens of the whole
batch, so that the gradients of all parts add up to the batch's mean gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.units import make_unit
from glasscluster.strategies.numerics.formats import DTYPES


class Replica:
    """A whole model on this rank; `job.plan` must ask for nothing else.

    `flat` [Ψ] holds its parameters and `grad` [Ψ] their gradients, both in the order of the model's names;
    `losses` has the loss of every call of `gradient`.
    """

    def __init__(self, gpu: GPU, job: Job) -> None:
        job.plan.check_replica(job.model)
        self.gpu, self.job, self.losses = gpu, job, list[Tensor]()
        with gpu.unrecorded():
            self.stage = GPTStage(
                job.model, seed=job.seed, dtype=DTYPES[job.plan.precision], device=gpu.device
            )
            for part in self.stage.parts():
                part.register_forward_pre_hook(
                    lambda module, _args: gpu.recorder.enter_layer(getattr(module, "index", -1))
                )
            unit = make_unit("model", [(n, p, s) for n, (p, s) in self.stage.full_names().items()], 1)
            self.members, self.flat = unit.members, gpu.memory.register(unit.flat, "parameters", "model")
            self.grad = gpu.memory.register(torch.zeros_like(self.flat), "gradients", "model")
            for m in self.members:
                m.parameter.grad = self.grad[m.start : m.stop].view(m.parameter.shape)

    def gradient(self, step: int, part: int, parts: int, *, whole: bool = True, divide: bool = True) -> None:
        """Compute the gradient of part number `part`, of `parts` equal parts, of a step's batch into `grad`.

        It is divided by the number of tokens of the whole batch; with `whole=False` by that of the part; with
        `divide=False` by nothing. The loss, divided likewise, is added to `losses`.
        """
        gpu, region = self.gpu, self.gpu.region
        with gpu.unrecorded():
            batches, tokens = self.load(step, part, parts, whole)
            count = tokens if divide else 1
            loss = torch.zeros(
                (),
                dtype=torch.float64 if self.flat.dtype == torch.float64 else torch.float32,
                device=gpu.device,
            )
        with region("backward"):
            self.grad.zero_()
        for i, (inputs, targets) in enumerate(batches):
            with region("forward", micro_batch=i):
                out = self.stage(inputs, targets)
            with region("backward", micro_batch=i):
                out.backward()
            with gpu.unrecorded():
                loss += out.detach()
        if divide:
            with region("backward", layer=-1):
                self.grad.mul_(1.0 / count)
        with gpu.unrecorded():
            self.losses.append(loss / count)
        gpu.check_finite(self.losses[-1], "loss", step)

    def load(self, step: int, part: int, parts: int, whole: bool) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """The (tokens, targets) of each micro-batch of a part, and the number of tokens to divide by."""
        plan, device = self.job.plan, self.gpu.device
        each = plan.global_batch // parts
        if device.type == "meta":
            one = torch.empty(plan.micro_batch, self.job.model.columns, dtype=torch.int64, device=device)
            return [(one, one[:, : self.job.model.seq])] * (each // plan.micro_batch), 1
        tokens, targets = self.job.batch(step)
        mine = slice(part * each, (part + 1) * each)
        count = count_targets(targets if whole else targets[mine])
        pieces = (t[mine].to(device).split(plan.micro_batch) for t in (tokens, targets))
        return list(zip(*pieces, strict=True)), count

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Copies of a flat tensor's parts, in the shapes of the parameters, by full name."""
        with self.gpu.unrecorded():
            return {m.name: flat[m.start : m.stop].view(m.parameter.shape).clone() for m in self.members}
