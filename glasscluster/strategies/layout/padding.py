"""Padding: to what multiple a unit's buffer is filled up with zeros, so that it divides into equal shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glasscluster.model.parallel import Shard


@dataclass(frozen=True)
class Padding:
    """A unit is padded to a multiple of `shards` elements, a unit of experts to a multiple of `experts`.

    `experts` None: every rank holds all experts, and they share units with all other parameters.
    """

    shards: int = 1
    experts: int | None = None

    def is_expert(self, shard: Shard | None) -> bool:
        """Whether a parameter that is cut as `shard` says belongs to a unit of experts."""
        return self.experts is not None and shard is not None and shard.experts
