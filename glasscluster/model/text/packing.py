"""Documents of any length in rows of equal length, with as little filling as can be.

    documents   ████████████│█████   ██████   ███   ██            rows of s = 12 tokens
    pieces      ████████████  █████  ██████  ███  ██              a document longer than a row is cut
    packed      [████████████]  [██████·█████▒]  [███·██▒▒▒▒▒▒▒]  ▒ filling

Best fit, longest first: each piece goes to the row where it leaves least room (Ding et al., "Fewer
truncations improve language modeling", 2404.10830; at most 11/9 of the fewest rows, and 4: Johnson 1973).
Only what is longer than a row is ever cut.

No token sees another document: attention is one triangle a document (kernels/flash/parts.py), and learned
positions start at 0 in each. A token's target is the next token of its own document, so a document's last
token has none (IGNORE); neither has filling, which is a document of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens [start, stop) of a document."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many tokens the piece has."""
        return self.stop - self.start


class Packed(NamedTuple):
    """Rows of pieces, each at most `row` tokens together."""

    rows: list[list[Piece]]
    row: int

    @property
    def tokens(self) -> int:
        """How many tokens the documents have together."""
        return sum(piece.length for row in self.rows for piece in row)

    @property
    def waste(self) -> float:
        """The share of all rows that is filling."""
        return 1 - self.tokens / (len(self.rows) * self.row) if self.rows else 0.0

    def lengths(self, number: int) -> tuple[int, ...]:
        """The lengths of what lies in a row, in order, the filling last; they add up to the row."""
        lengths = [piece.length for piece in self.rows[number]]
        filling = self.row - sum(lengths)
        return (*lengths, filling) if filling else tuple(lengths)


def pieces_of(lengths: Sequence[int], row: int) -> Iterator[Piece]:
    """Documents cut where they are longer than a row. Empty ones have no piece."""
    for document, length in enumerate(lengths):
        for start in range(0, length, row):
            yield Piece(document, start, min(start + row, length))


def best_fit(lengths: Sequence[int], row: int) -> Packed:
    """Pack documents of these lengths, longest piece first; equal ones in the order of the documents."""
    rows: list[list[Piece]] = []
    open_: list[tuple[int, int]] = []  # (room, row), sorted: the first with enough room has the least
    for piece in sorted(pieces_of(lengths, row), key=lambda p: -p.length):
        at = bisect_left(open_, (piece.length, -1))
        if at < len(open_):
            room, number = open_.pop(at)
        else:
            room, number = row, len(rows)
            rows.append([])
        rows[number].append(piece)
        if room > piece.length:
            insort(open_, (room - piece.length, number))
    return Packed(rows, row)


def positions(lengths: Sequence[int]) -> list[int]:
    """The position of each token of a row within its own document."""
    return [i for length in lengths for i in range(length)]
