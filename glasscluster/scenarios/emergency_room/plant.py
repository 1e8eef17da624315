"""What every planted fault knows: the rank's trainer."""

from __future__ import annotations

from glasscluster.strategies.observer import Observer
from glasscluster.strategies.trainer import Trainer


class Plant(Observer):
    """What all plants know: the rank's trainer."""

    def assembled(self, trainer: Trainer) -> None:
        """Whom it is planted in."""
        self.trainer = trainer


class Healthy(Plant):
    """Nothing is broken."""


def masters_follow(trainer: Trainer) -> None:
    """The optimizer's fp32 copies are those of the weights as they stand."""
    for manager in trainer.manager.all:
        for unit, state in zip(manager.units, manager.optimizer.state, strict=True):
            if state.master is not None:
                state.master.copy_(unit.owned_parameters)
