"""Orders of a graph's rows: dependencies in compressed rows (CSR), and a topological order by Kahn's
algorithm.
"""

from __future__ import annotations

import numpy as np
from numba import njit


def csr(n: int, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's predecessors without repeats, in compressed rows.

    Numbers are narrow, as replay is bound by memory reads.
    """
    if not len(source):
        return np.zeros(n + 1, np.int32), np.empty(0, np.int32)
    edges = np.unique(target * n + source)
    target, source = edges // n, edges % n
    narrow = np.int32 if len(edges) < np.iinfo(np.int32).max else np.int64
    pointer = np.zeros(n + 1, dtype=narrow)
    np.cumsum(np.bincount(target, minlength=n), out=pointer[1:])
    return pointer, source.astype(narrow)


class Cycle(AssertionError):
    """An error: recordings whose events wait for each other in a cycle, so they belong to no run."""


@njit(cache=True, nogil=True)
def kahn(n, out_ptr, out_idx, missing, first):
    """A topological order, first in, first out; where there is a cycle it is shorter than n."""
    order = np.empty(n, dtype=np.int64)
    filled = 0
    for i in first:
        if missing[i] == 0:
            order[filled] = i
            filled += 1
    done = 0
    while done < filled:
        row = order[done]
        done += 1
        for k in range(out_ptr[row], out_ptr[row + 1]):
            follower = out_idx[k]
            missing[follower] -= 1
            if missing[follower] == 0:
                order[filled] = follower
                filled += 1
    return order[:filled]


def topological_order(n: int, source: np.ndarray, target: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Kahn's order, which begins with the rows in the order of `first`; a cycle is an internal error."""
    by_source = np.argsort(source, kind="stable")
    pointer = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(source, minlength=n), out=pointer[1:])
    order = kahn(n, pointer, target[by_source], np.bincount(target, minlength=n), first)
    if len(order) != n:
        raise Cycle("the recorded events depend on each other in a cycle")
    return order
