"""The plants of curves.py: three faults that change a loss curve, or do not."""

from __future__ import annotations

import numpy as np
import torch

from glasscluster.model.text.texts import documents
from glasscluster.scenarios.emergency_room.plant import Plant
from glasscluster.strategies.layout.units import Unit
from glasscluster.strategies.step import Batch


class LabelsNotShifted(Plant):
    """The shift by one token was forgotten: each position learns the token that it is shown."""

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """Put the inputs in the place of the targets."""
        return Batch(batch.inputs, [x.clone() for x in batch.inputs], batch.counted)


class NotDivided(Plant):
    """Gradients of the micro-batches are added up, and the division by their number was forgotten."""

    def gradient_complete(self, unit: Unit) -> bool:
        """Multiply the rank's gradient by its number of micro-batches."""
        plan = self.trainer.plan
        if unit.grad is not None:
            unit.grad.mul_(plan.global_batch // plan.data_ranks // plan.micro_batch)
        return False


class SortedText(Plant):
    """The loader was not shuffled: in the second half of the run all text is Chinese."""

    def batch_loaded(self, number: int, batch: Batch) -> Batch:
        """In the second half, draw other rows of the same shapes; bytes are taken modulo the vocabulary."""
        job, place = self.trainer.job, self.trainer.place
        if number < job.steps // 2:
            return batch
        text = np.frombuffer(b"\n".join(documents("chinese")), dtype=np.uint8)
        draw = np.random.default_rng([job.seed, number, place.dp_rank])
        inputs, targets = [], []
        for x in batch.inputs:
            starts = draw.integers(0, len(text) - x.shape[1] - 1, size=len(x))
            rows = text[starts[:, None] + np.arange(x.shape[1] + 1)].astype(np.int64) % job.model.vocab
            inputs.append(torch.from_numpy(rows[:, :-1].copy()))
            targets.append(torch.from_numpy(rows[:, 1:].copy()))
        return Batch(inputs, targets, batch.counted)


CURVE_PLANTS: dict[str, type[Plant]] = {
    "labels_not_shifted": LabelsNotShifted,
    "not_divided": NotDivided,
    "sorted_text": SortedText,
}
