"""Whether an algorithm of somebody's own does what its operation promises, tried on numbers.

`glass collective` records shapes alone, so an algorithm with a wrong sum, or one that hangs, would get a
time. Here it runs once on threads, on a few whole numbers, beside an algorithm of ours.
But: one size and one number of ranks; `glass train` holds every gradient against one device.
"""

from __future__ import annotations

from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import counted
from glasscluster.sim.ranks.collectives import ALGORITHMS
from glasscluster.sim.ranks.collectives.own import is_own
from glasscluster.sim.ranks.collectives.registry import DEFAULTS
from glasscluster.sim.run import Cluster

MOST_RANKS = 64  # that are tried as threads
EACH = 3  # elements of a chunk


def try_out(operation: str, algorithm: str, gpus: int, even: bool) -> None:
    """Run an algorithm of somebody's own on numbers and compare every rank's result with one of ours.

    Nothing is done for an algorithm of this package, a barrier, or more ranks than can be tried.

    Args:
        operation: as a method of communicators, such as all_reduce.
        algorithm: its registered name.
        gpus: ranks.
        even: whether the buffer is divided into equal chunks.

    Raises:
        InputError: for a wrong result, or steps that are none; exit code 1 where the result is wrong.
        GlassError: what the algorithm ended with.
    """
    steps = ALGORITHMS[operation].get(algorithm)
    if steps is None or not is_own(steps) or operation == "barrier" or gpus > MOST_RANKS:
        return
    ours = DEFAULTS.get(operation, "ring")
    numel = gpus * EACH + (0 if even or operation == "all_to_all" else 1)
    cluster = Cluster("classroom", gpus, "threads", memory_bytes=None)
    right, results = (
        cluster.run(one_result, operation, name, numel, record=False).results for name in (ours, algorithm)
    )
    for rank, (wanted, got) in enumerate(zip(right, results, strict=True)):
        wrong = [i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b]
        if wrong:
            first = wrong[0]
            rule = (
                f"a wrong result of {operation} on {counted(gpus, 'rank')}: rank {rank} has {got[first]:g} "
                f"in element {first} of {len(got)}, and {ours} {wanted[first]:g}"
            )
            refused = InputError("algorithm", algorithm, rule)
            refused.exit_code = 1
            raise refused


def one_result(gpu: Any, operation: str, algorithm: str, numel: int) -> list[float]:
    """Run a collective on whole numbers that differ on every rank; return what the operation promises."""
    import torch

    x = torch.arange(numel, dtype=torch.float64) * 10 + gpu.rank
    if operation == "all_to_all":
        out = torch.zeros(numel, dtype=torch.float64)
        gpu.comm.all_to_all(x, out, algorithm=algorithm)
        return out.tolist()
    getattr(gpu.comm, operation)(x, algorithm=algorithm)
    if operation in ("reduce_scatter", "scatter"):
        return gpu.comm.chunk(x).tolist()
    return x.tolist() if operation not in ("reduce", "gather") or gpu.rank == 0 else []
