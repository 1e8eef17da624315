"""The parameter server as a collective: push to servers, pull the sum back.

Follows Li et al., "Scaling distributed machine learning with the parameter server" (OSDI 2014). Symbols: W =
N workers, K shards, S bytes of the full buffer. Server k stands on rank k (servers on the workers).

    K = 1: one server's port carries everything          K = N: every rank serves its own shard

        1 ─┐                                              0 ◄─► 1
        2 ─┼─► 0 ─► sum ─► back                           │  ╳  │      (as direct all-reduce)
        3 ─┘                                              3 ◄─► 2

Worker r pushes to server r+1 first, then to r+2, ...: if all began with server 0, everything would go through
its port at once. A server on a worker sends (N-1)·S/K and receives as much. Ranks are balanced when K = N:
then each sends 2S(N-1)/N (Eq 11).
"""

from __future__ import annotations

import torch

from glasscluster.base.link import Link
from glasscluster.sim.ranks.collectives.registry import collective, theory_of
from glasscluster.sim.ranks.collectives.theory import Theory, through_one_port
from glasscluster.sim.ranks.work import CollectiveWork, Steps


@collective("all_reduce", "parameter-server")
def all_reduce(work: CollectiveWork, x: torch.Tensor, op: str = "sum", servers: int | None = None) -> Steps:
    """`x`: flat [n]. Ends with the `op` over ranks, added by `servers` shards (default: one a rank)."""
    n, r = work.size, work.rank
    shards = torch.tensor_split(x, min(servers or n, n))
    serves = r < len(shards)
    mine = shards[r] if serves else x[:0]
    staging = work.stage((n - 1) * mine.numel(), x)

    def steps() -> Steps:
        workers = [w for w in range(n) if w != r]  # additions are in this order
        onwards = [(r + k) % n for k in range(1, n)]
        others = [
            k for k in ((r + 1 + i) % len(shards) for i in range(len(shards))) if k != r
        ]  # so that not all ranks send to server 0 first
        arrived = [staging[i * mine.numel() : (i + 1) * mine.numel()] for i in range(n - 1)]
        pushed = [t for k in others for t in work.send(shards[k], k)]
        yield [
            t for w, pushed_shard in zip(workers, arrived, strict=True) for t in work.recv(pushed_shard, w)
        ] + pushed
        for pushed_shard in arrived:
            work.reduce(mine, pushed_shard, op)
        pulled = [t for k in reversed(others) for t in work.recv(shards[k], k)]
        yield pulled + [t for w in onwards for t in work.send(mine, w)]

    return steps()


# ---- theory ------------------------------------------------------------------------------------------------
@theory_of("parameter-server")
def predict(
    operation: str, size: int, nbytes: int, link: Link | None = None, servers: int | None = None
) -> Theory:
    """2(N-1)·S bytes over all ranks, whatever the number of shards; with one a rank, twice (N-1)(o + S/(Nβ))
    + L.
    """
    del operation  # all-reduce is the only one
    push = through_one_port(link, size - 1, nbytes / size) if servers in (None, size) else None
    return Theory(2 * (size - 1) * nbytes, 2, None if push is None else 2 * push)
