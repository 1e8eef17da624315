"""What a rank trains on: its sequences of the global batch, or its tokens of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glasscluster.model.layers.dropout import Draw
from glasscluster.model.parallel import IGNORE
from glasscluster.strategies.job import Job
from glasscluster.strategies.step import Batch


class Loader:
    """`cut(x, dim)`: this rank's tokens of whole sequences; `has_loss`: it is on the last stage."""

    def __init__(
        self,
        job: Job,
        device: torch.device,
        dp_rank: int,
        cut: Callable[[Tensor, int], Tensor],
        has_loss: bool,
    ) -> None:
        self.job, self.device, self.dp_rank, self.cut, self.has_loss = job, device, dp_rank, cut, has_loss

    def load(self, number: int) -> Batch:
        """This rank's sequences, or its tokens of them, as micro-batches, and how many of its targets count.

        Targets are counted on the last stage; elsewhere the count is 0.
        """
        plan, m, device = self.job.plan, self.job.plan.micro_batches, self.device
        if device.type == "meta":
            one, target = (
                torch.empty(plan.micro_batch, columns // plan.cp, dtype=torch.int64, device=device)
                for columns in (self.job.model.columns, self.job.model.seq)
            )
            return Batch([one] * m, [target] * m, torch.empty((), dtype=torch.int64, device=device))
        tokens, targets = self.job.batch(number)
        first, each, cut = self.dp_rank * m * plan.micro_batch, m * plan.micro_batch, self.cut
        tokens, targets = (cut(x[first : first + each], 1).contiguous().to(device) for x in (tokens, targets))
        has_loss = self.has_loss
        count = (targets != IGNORE).sum() if has_loss else torch.zeros((), dtype=torch.int64, device=device)
        return Batch(list(tokens.split(plan.micro_batch)), list(targets.split(plan.micro_batch)), count)

    def draws(self, number: int) -> list[Draw]:
        """What each micro-batch is: its sequences' numbers in the global batch, and their documents.

        A dry run reads no documents.
        """
        b, m = self.job.plan.micro_batch, self.job.plan.micro_batches
        first = self.dp_rank * m * b
        documents = None if self.device.type == "meta" else self.job.documents(number)
        seed, spans = self.job.seed, [range(first + i * b, first + (i + 1) * b) for i in range(m)]
        return [Draw(seed, number, tuple(s), documents and documents[s.start : s.stop]) for s in spans]
