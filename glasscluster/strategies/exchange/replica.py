"""One replica: a whole model whose parameters and gradients are two flat buffers, and the gradient of its
part of a batch.

What the strategies build on that exchange something else than gradients at every step: parameter servers,
backup workers, local SGD. Divided by the tokens of the whole batch, as is usual here, parts add up to the
batch's mean gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.units import make_unit
from glasscluster.strategies.numerics.formats import DTYPES


@contextmanager
def one_thread() -> Iterator[None]:
    """A reference computes like a rank: one thread, or sums differ in bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Replica:
    """`flat` [Ψ] are the parameters, `grad` [Ψ] their gradients, both in the order of the model's names."""

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
        """Fill `grad` from part `part` of `parts` of a step's batch, divided by the tokens of the whole
        batch.

        With `whole=False` divided by the part's own, with `divide=False` not at all. The loss goes to
        `losses` likewise.
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

    def load(self, step: int, part: int, parts: int, whole: bool) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """The part's micro-batches, and the number of tokens to divide by."""
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
        """A flat tensor cut into parameters by full name (copies)."""
        with self.gpu.unrecorded():
            return {m.name: flat[m.start : m.stop].view(m.parameter.shape).clone() for m in self.members}
