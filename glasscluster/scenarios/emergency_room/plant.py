"""The base class of the emergency room's planted faults."""

from __future__ import annotations

from glasscluster.strategies.observer import Observer
from glasscluster.strategies.trainer import Trainer


class Plant(Observer):
    """An observer that changes what it is shown; it knows its rank's trainer."""

    def assembled(self, trainer: Trainer) -> None:
        """Remember the trainer."""
        self.trainer = trainer


class Healthy(Plant):
    """Nothing is broken."""


def masters_follow(trainer: Trainer) -> None:
    """Copy the current weights into the optimizer's fp32 master copies."""
    for manager in trainer.manager.all:
        for unit, state in zip(manager.units, manager.optimizer.state, strict=True):
            if state.master is not None:
                state.master.copy_(unit.owned_parameters)
