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
    edges = np.sort(
        target * n + source
    )  # np.unique hashes, many times as slow on keys that are nearly sorted
    edges = edges[np.concatenate([[True], edges[1:] != edges[:-1]])]
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


@njit(cache=True, nogil=True)
def longest_chain(dep_ptr, dep_idx, match, stream, message, sends):
    """How many sends the longest chain of rows has in which each waits for the one before.

    Args:
        dep_ptr, dep_idx: each row's predecessors, in compressed rows; they stand before it.
        match: of a receive its send's row, else -1, [n].
        stream: the number of a row's lane among those of all ranks, [n].
        message: whether a row is a send or a receive: it does not count as waiting for the row before it in
            its own lane, [n].
        sends: whether a row is a send, [n].
    """
    n = match.shape[0]
    depth = np.zeros(n, dtype=np.int64)
    most = 0
    for row in range(n):
        longest = 0
        for k in range(dep_ptr[row], dep_ptr[row + 1]):
            before = dep_idx[k]
            if not (message[row] and stream[before] == stream[row]):
                longest = max(longest, depth[before])
        if match[row] >= 0:
            longest = max(longest, depth[match[row]])
        depth[row] = longest + (1 if sends[row] else 0)
        most = max(most, depth[row])
    return most
