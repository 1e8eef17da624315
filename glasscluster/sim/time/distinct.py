"""Distinct whole numbers, and the place of each among them."""

from __future__ import annotations

import numpy as np


def distinct(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in order, and each key's place among them, without sorting while tables are small.

    Args:
        keys: whole numbers from 0, [n].
        bound: all keys are smaller.

    Returns:
        The distinct keys, [k]; and for each key a position in them, [n].
    """
    if bound > 8 * len(keys) + 1_000_000:
        ordered, place = np.unique(keys, return_inverse=True)
        return ordered, place.reshape(-1)
    there = np.zeros(bound, dtype=bool)
    there[keys] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[keys]
