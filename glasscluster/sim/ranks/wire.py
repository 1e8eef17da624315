"""The wire: the two primitives that a backend gives each rank, send and receive, and one way to block.

Groups, collectives, checks and recording are written once, above these primitives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from glasscluster.sim.ranks.agreement import Call

TAGS_PER_GROUP = 1 << 16
_NOTHING = nullcontext()


class Ticket:
    """One message under way on a wire. `done` becomes True when its buffer may be used again.

    `line` is where an algorithm of somebody's own has posted it, and empty for any other.
    """

    __slots__ = ("done", "handle", "kind", "line", "peer", "row", "tag", "tensor", "what")

    def __init__(self, kind: str, peer: int, tag: int, tensor: torch.Tensor | None, what: str) -> None:
        self.done = False
        self.kind, self.peer, self.tag, self.tensor, self.what = kind, peer, tag, tensor, what
        self.handle: object = None
        self.row = -1
        self.line = ""


class Wire(ABC):
    """What a backend implements, per rank. Ranks and tags are the cluster's own."""

    rank: int
    size: int
    device: torch.device
    operate: Callable[[Any, tuple, dict[str, Any]], Any] | None = (
        None  # runs an operator with its arguments; None: the operator is called directly
    )
    repeats = (
        False  # whether an action that repeats may be recorded without being run (sim/recording/repeated.py)
    )

    @abstractmethod
    def isend(self, tensor: torch.Tensor, dst: int, tag: int, what: str) -> Ticket:
        """Post a send to the cluster's rank `dst`; returns at once.

        `what` names the operation in error messages.
        """

    @abstractmethod
    def irecv(self, out: torch.Tensor, src: int, tag: int, what: str) -> Ticket:
        """Post a receive from the cluster's rank `src` into `out`; returns at once."""

    def expect(self, out: torch.Tensor, src: int, tag: int, what: str) -> None:  # noqa: B027
        """Announce a receive that will be posted later, which costs less where a sender waits for it.

        Receives from one sender with one tag are posted in the order in which they were announced, and before
        any other.
        """

    @abstractmethod
    def block(self, tickets: Sequence[Ticket], together: bool) -> None:
        """Return when at least one of the tickets is done; a wait that cannot end raises a named error.

        `together`: the program needs all of them before it can go on, so they may be waited for one after the
        other.
        """

    @abstractmethod
    def native(
        self, operation: str, tensor: torch.Tensor, group: Sequence[int], root: int, op: str = "sum"
    ) -> None:
        """Hand a whole collective to the library underneath (gloo, NCCL)."""

    def agree(  # noqa: B027
        self, call: Call, ranks: Sequence[int], sends: Sequence[int] = (), receives: Sequence[int] = ()
    ) -> None:
        """Compare this rank's collective with what the group's other ranks say of it (agreement.py).

        sends, receives: of an all-to-all, in elements, one length a rank. Where there is one rank to ask (the
        dry backend), nothing is compared.

        Raises:
            CollectiveMismatch: they differ.
        """

    def start_run(self) -> None:  # noqa: B027
        """Begin to number collectives and messages anew."""

    def unmatched(self) -> dict[tuple[int, int, int], int]:
        """By (sender, receiver, tag): messages that this rank has sent in this run less those that it has
        received. Empty where the backend itself knows.
        """
        return {}

    # ---- only a device with streams overrides these --------------------------------------------------------
    def group(self) -> AbstractContextManager[object]:
        """A context manager: the messages posted inside start together (with NCCL they would deadlock
        otherwise).
        """
        return _NOTHING

    def lane(self, group: int) -> AbstractContextManager[object]:
        """A context manager: what is enqueued inside goes to the stream of the communicator `group`."""
        return _NOTHING

    def join(self, group: int) -> None:  # noqa: B027
        """Let the program's stream wait for the stream of the communicator `group`."""
