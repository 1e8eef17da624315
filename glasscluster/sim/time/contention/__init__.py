"""Replay with contention: messages that are under way at the same time share the links of their routes.

The time of a message:

    wait for what it depends on, and for the sender's lane
    overhead       its sender's port is busy, no byte moves yet
    transfer       it is on all links of its route at once and moves at the same rate over all of them
    latency        the sender's lane is free; the receiver has the message when this is over

Rates are max-min fair: a link that is full divides itself equally among its messages, except that a message
which is slower because of another link takes only what it needs, and the rest goes to the others (rates.py
has the definition). A rate only changes when a transfer starts or ends somewhere. So time jumps from one such
event to the next:

    repeat:
        1. dependencies.py   time every row of the graph that waits for nothing any more
        2. event_queue.py    now = the earliest start or end of a transfer
        3. event_loop.py     transfers that end now leave their links; those that start now enter theirs
        4. rates.py          recompute the rates of the affected messages,
                             and repeat with every message whose bottleneck changed
        5. history.py        for each message with another rate: when it will end now; write the rate down

Two messages that share a link, worked out by hand. Three GPUs on a switch, links of 1 GB/s, latency 2 µs.
GPU 0 sends A, 3 MB, to GPU 2 at 0 ms; GPU 1 sends B, 1 MB, to GPU 2 at 1 ms. Both use the link from the
switch to GPU 2.

    GB/s
     1    |AAAAAAAAAA                    AAAAAAAAAA|
     0.5  |          AAAAAAAAAAAAAAAAAAAA          |
     0.5  |          BBBBBBBBBBBBBBBBBBBB          |
          0 ms       1 ms                3 ms      4 ms

    0 ms   A starts, alone on its links: 1 GB/s. It would end at 3 ms.
    1 ms   B starts. A has 2 MB left. Both get 0.5 GB/s: A would end at 5 ms, B at 3 ms.
    3 ms   B ends; GPU 2 has it at 3.002 ms. A has 1 MB left and is alone again: 1 GB/s, it would end at 4 ms.
    4 ms   A ends; GPU 2 has it at 4.002 ms.

tests/test_contention.py holds the code to these numbers.

Start reading with event_loop.py. replay.py is what the rest of the package calls; tables.py describes the
arrays that the loop works on, compiled.py how it is compiled. Nothing here knows what a collective is.
docs/contention.md compares the times with those of SimGrid.

But: a message has one route and no packets; no buffer fills up, nothing is dropped or sent again.
"""

from glasscluster.sim.time.contention.history import RateHistory
from glasscluster.sim.time.contention.messages import Messages, messages_of
from glasscluster.sim.time.contention.replay import ContendedReplay, replay_shared
from glasscluster.sim.time.contention.routes import Routes, routes_of

__all__ = [
    "ContendedReplay",
    "Messages",
    "RateHistory",
    "Routes",
    "messages_of",
    "replay_shared",
    "routes_of",
]
