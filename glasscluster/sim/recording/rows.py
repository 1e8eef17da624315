"""Rows that grow one by one, or by a whole block at once: what a recorder and a ledger write into.

    append   row ─► the tail, a list of tuples          a recording as it happens
    put      block ─► the blocks, arrays                what an action recorded, once more (repeated.py)

At the end all of it is one array. A row of a recording also has the rows that it follows, as many as there
are; they lie behind each other in one flat array, with how many each row has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Block(NamedTuple):
    """Rows as arrays.

    Attributes:
        table: the columns, [rows, width].
        counts: how many rows each one follows, [rows]; empty where rows follow nothing.
        follows: the rows that are followed, row by row, [sum of counts].
    """

    table: np.ndarray
    counts: np.ndarray
    follows: np.ndarray


class Rows:
    """Rows of `width` whole numbers, each with a tuple of the rows that it follows as its last element."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.tail: list[tuple[Any, ...]] = []
        self.blocks: list[Block] = []
        self.settled = 0  # rows in blocks

    def __len__(self) -> int:
        return self.settled + len(self.tail)

    def clear(self) -> None:
        """Forget all rows."""
        self.tail.clear()
        self.blocks.clear()
        self.settled = 0

    def put(self, block: Block) -> None:
        """Append a block behind what is there."""
        self.settle()
        self.blocks.append(block)
        self.settled += len(block.table)

    def settle(self) -> Block:
        """Make a block of the rows that came one by one since the last block; returns it."""
        block = self._block(self.tail)
        if self.tail:
            self.blocks.append(block)
            self.settled += len(self.tail)
            self.tail.clear()
        return block

    def all(self) -> Block:
        """All rows, as one block."""
        self.settle()
        if len(self.blocks) != 1:
            empty = self._block([])
            self.blocks = [Block(*(np.concatenate(parts) for parts in zip(empty, *self.blocks, strict=True)))]
        return self.blocks[0]

    def _block(self, rows: Sequence[tuple[Any, ...]]) -> Block:
        width = self.width
        table = np.array([r[:width] for r in rows], dtype=np.int64).reshape(len(rows), width)
        counts = np.array([len(r[width]) for r in rows], dtype=np.int64)
        return Block(table, counts, np.array([d for r in rows for d in r[width]], dtype=np.int64))


class Log:
    """Rows of `width` whole numbers that follow nothing."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.tail: list[tuple[int, ...]] = []
        self.blocks: list[np.ndarray] = []

    def clear(self) -> None:
        """Forget all rows."""
        self.tail.clear()
        self.blocks.clear()

    def append(self, row: tuple[int, ...]) -> None:
        """Append one row."""
        self.tail.append(row)

    def put(self, block: np.ndarray) -> None:
        """Append a block behind what is there."""
        self.settle()
        self.blocks.append(block)

    def settle(self) -> np.ndarray:
        """Make a block of the rows that came one by one since the last block; returns it, [rows, width]."""
        block = np.array(self.tail, dtype=np.int64).reshape(-1, self.width)
        if self.tail:
            self.blocks.append(block)
            self.tail.clear()
        return block

    def all(self) -> np.ndarray:
        """All rows, [rows, width]."""
        self.settle()
        if len(self.blocks) != 1:
            self.blocks = [np.concatenate([np.empty((0, self.width), np.int64), *self.blocks])]
        return self.blocks[0]
