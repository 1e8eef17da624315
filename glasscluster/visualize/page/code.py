"""Python source as HTML, with a class for each kind of word: keywords, strings, numbers, comments, names that
are defined.
"""

from __future__ import annotations

import io
import keyword
import token
import tokenize
from html import escape

CLASSES = {token.STRING: "s", token.NUMBER: "d", token.COMMENT: "c"}  # of report.css
F_STRING = "FSTRING"  # from Python 3.12 on the pieces of an f-string are tokens of their own


def highlighted(source: str, first: int, last: int) -> str:
    """Some lines of a file as HTML, moved to the left together.

    Args:
        source: the whole file, so that a string or a bracket that begins above is known.
        first: number of the first line, from 1. last: of the last, which belongs to it.

    Returns:
        One text with line breaks; everything in it is escaped.
    """
    lines = source.split("\n")[first - 1 : last]
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    marked: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    for (row, begin), (end_row, end), look in _looks(source):
        for number in range(max(row, first), min(end_row, last) + 1):
            line = lines[number - first]
            marked[number - first].append(
                (begin if number == row else 0, end if number == end_row else len(line), look)
            )
    return "\n".join(_line(line, spans, indent) for line, spans in zip(lines, marked, strict=True))


def _line(line: str, spans: list[tuple[int, int, str]], indent: int) -> str:
    out, at = "", min(indent, len(line))
    for begin, end, look in spans:
        begin = max(begin, at)
        out += escape(line[at:begin]) + f'<i class="{look}">{escape(line[begin:end])}</i>'
        at = max(at, end)
    return out + escape(line[at:])


def _looks(source: str):
    """(row, column) of the first character, that behind the last, and the class, of every word that has one."""
    defined = False
    for piece in tokenize.generate_tokens(io.StringIO(source).readline):
        if piece.type == token.NAME:
            if keyword.iskeyword(piece.string):
                yield piece.start, piece.end, "k"
            elif defined:
                yield piece.start, piece.end, "f"
            defined = piece.string in ("def", "class")
        elif piece.type in CLASSES or token.tok_name[piece.type].startswith(F_STRING):
            yield piece.start, piece.end, CLASSES.get(piece.type, "s")
