"""Where ranks in several processes meet: a store of torch.distributed, which has no authentication of its
own.

It listens on one address, and not on all of them as torch's would: on 127.0.0.1 when every rank is on this
machine, otherwise on the address that other nodes know this one by. Its keys stand under a random name.
"""

from __future__ import annotations

import secrets
import socket
from typing import Any, NamedTuple


class MeetingPoint(NamedTuple):
    """What a rank has to know to come there."""

    address: str
    port: int
    name: str  # random; of all keys

    def store(self, opened: Any = None) -> Any:
        """The store as a rank uses it. opened: the store itself, on the rank that has opened it."""
        import torch.distributed as dist

        return dist.PrefixStore(self.name, opened or dist.TCPStore(self.address, self.port, is_master=False))


def open_meeting_point(address: str) -> tuple[MeetingPoint, Any]:
    """Open a store on a free port of one address.

    Args:
        address: of this node, such as 127.0.0.1.

    Returns:
        The meeting point, and the store, which lives as long as it is kept.
    """
    import torch.distributed as dist

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family)
    port = listening.getsockname()[1]
    store = dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return MeetingPoint(address, port, secrets.token_hex(8)), store
