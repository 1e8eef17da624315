"""Ways in which ranks can disagree about a collective or a message: the same list for every backend."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch

ODD = 1  # the rank that does something else than the others
RANKS = 4


def _reduce(numel: int = 8, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return lambda gpu: gpu.comm.all_reduce(torch.ones(numel, dtype=dtype), **options)


# Calls that are all different: each pair of them is a disagreement.
CALLS = {
    "sum": _reduce(),
    "max": _reduce(op="max"),
    "longer": _reduce(9),
    "float64": _reduce(dtype=torch.float64),
    "int32": _reduce(dtype=torch.int32),
    "tree": _reduce(algorithm="tree"),
    "all-gather": lambda gpu: gpu.comm.all_gather(torch.ones(8)),
    "root 0": lambda gpu: gpu.comm.broadcast(torch.ones(8), src=0),
    "root 2": lambda gpu: gpu.comm.broadcast(torch.ones(8), src=2),
    "scatter": lambda gpu: gpu.comm.scatter(torch.ones(8)),
    "gather": lambda gpu: gpu.comm.gather(torch.ones(8)),
    "longer gather": lambda gpu: gpu.comm.gather(torch.ones(12)),
    "barrier": lambda gpu: gpu.comm.barrier(),
    "all-to-all": lambda gpu: gpu.comm.all_to_all(torch.ones(8), torch.ones(8)),
}


def differently(gpu: Any, others: str, odd: str) -> None:
    """All ranks make the call `others`, and one makes `odd`."""
    CALLS[odd if gpu.rank == ODD else others](gpu)


def in_another_order(gpu: Any) -> None:
    """Two collectives, in another order on one rank."""
    for name in ("root 0", "sum") if gpu.rank == ODD else ("sum", "root 0"):
        CALLS[name](gpu)


def in_a_larger_group(gpu: Any) -> None:
    """One rank leaves out rank 3, which the others count among the group."""
    ranks = [0, 1, 2] if gpu.rank == ODD else [0, 1, 2, 3]
    gpu.comm.subgroup(ranks, "some", 100).all_reduce(torch.ones(8))


def without_the_first(gpu: Any) -> None:
    """One rank leaves out rank 0, by whose number groups are told apart."""
    ranks = [1, 2, 3] if gpu.rank == ODD else [0, 1, 2, 3]
    gpu.comm.subgroup(ranks, "some", 100).all_reduce(torch.ones(8))


def with_other_splits(gpu: Any) -> None:
    """Rank 1 sends rank 2 three elements, which expects two."""
    sends = [2, 2, 3, 2] if gpu.rank == ODD else [2] * 4
    gpu.comm.all_to_all(torch.ones(sum(sends)), torch.ones(8), sends, [2] * 4)


def _message(gpu: Any, sent: torch.Tensor, expected: torch.Tensor) -> None:
    if gpu.rank == 0:
        gpu.comm.send(sent, dst=ODD)
    if gpu.rank == ODD:
        gpu.comm.recv(expected, src=0)


def a_message_of_another_length(gpu: Any) -> None:
    """Rank 0 sends eight elements, of which rank 1 expects seven."""
    _message(gpu, torch.ones(8), torch.ones(7))


def a_message_of_another_dtype(gpu: Any) -> None:
    """Rank 0 sends float32, rank 1 expects int32."""
    _message(gpu, torch.ones(8), torch.ones(8, dtype=torch.int32))


PAIRS = list(permutations(CALLS, 2))
SPECIAL = (
    in_another_order,
    in_a_larger_group,
    without_the_first,
    with_other_splits,
    a_message_of_another_length,
    a_message_of_another_dtype,
)
EVERY: list[tuple[Any, ...]] = [*((differently, *pair) for pair in PAIRS), *((one,) for one in SPECIAL)]
# One of each kind, where every case costs the start of processes.
KINDS: dict[str, tuple[Any, ...]] = {
    "op": (differently, "sum", "max"),
    "operation": (differently, "sum", "all-gather"),
    "root": (differently, "root 0", "root 2"),
    "length": (differently, "gather", "longer gather"),
    "dtype": (differently, "sum", "int32"),
    "algorithm": (differently, "sum", "tree"),
    **{program.__name__: (program,) for program in SPECIAL},
}
