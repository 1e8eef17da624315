"""Tokens that stand outside the merges: found in a text before it is cut, as `tokenizers` finds them.

Special ones (an end of text, the turns of a chat) say something about the text; a text of users must not make
them. The others are text as any other (Phi-2's runs of spaces), only written shorter. From left to right, the
longest that fits:

    "a  <mask>b"                  <mask> with lstrip takes the spaces before it:  a │  <mask> │ b
    1. tokens that are not `normalized` are found in the text as it is
    2. what lies between is normalised (NFC), and the others are found there, normalised too

A special token that the caller does not allow stays text; no shorter token is found inside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from glasscluster.model.text.pre_tokens import SPACE, category_ranges

Piece = str | int  # a text between added tokens, or the number of one
SYMBOLS_OF_WORDS = "\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"


class AddedToken(NamedTuple):
    """One entry of a file's `added_tokens`.

    single_word: only where no letter, digit or mark touches it. lstrip, rstrip: takes the white space before
    it, behind it. listed: the vocabulary of the merges has it, too.
    """

    content: str
    number: int
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    listed: bool = False

    def as_json(self) -> dict[str, Any]:
        """The entry of a file."""
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return {"id": self.number, "content": self.content} | {f: getattr(self, f) for f in flags}


class AddedTokens:
    """Finds added tokens in texts. `form`: the normal form of the texts, "NFC"; None: as they are."""

    def __init__(self, tokens: Sequence[AddedToken], form: str | None = None) -> None:
        self.form = form
        self.exact = [(t.content, t) for t in tokens if not t.normalized]
        self.normalised = [(self.normal(t.content), t) for t in tokens if t.normalized]
        self._patterns = [_any_of(text for text, _ in group) for group in (self.exact, self.normalised)]

    def normal(self, text: str) -> str:
        """A text in its normal form."""
        return text if self.form is None else unicodedata.normalize("NFC", text)

    def split(self, text: str, allowed: Collection[str]) -> Iterator[Piece]:
        """The numbers of added tokens, and the texts between them, normalised. allowed: special tokens that
        may be found.
        """

        def wanted(token: AddedToken) -> bool:
            return not token.special or token.content in allowed

        first, second = self._patterns
        for piece in _found(text, first, dict(self.exact), wanted):
            if isinstance(piece, int):
                yield piece
            else:
                yield from _found(self.normal(piece), second, dict(self.normalised), wanted)


def _any_of(contents: Iterator[str]) -> re.Pattern[str] | None:
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _found(
    text: str,
    pattern: re.Pattern[str] | None,
    tokens: dict[str, AddedToken],
    wanted: Callable[[AddedToken], bool],
) -> Iterator[Piece]:
    """A text cut at the tokens that a pattern finds in it."""
    done = 0
    for match in pattern.finditer(text) if pattern is not None else ():
        token, (start, stop) = tokens[match[0]], match.span()
        if not wanted(token) or (token.single_word and _touched(text, start, stop)):
            continue
        if token.lstrip:
            while start > done and text[start - 1] in _SPACES:
                start -= 1
            start = max(start, done)
        if token.rstrip:
            while stop < len(text) and text[stop] in _SPACES:
                stop += 1
        if done < start:
            yield text[done:start]
        if start < stop:  # else the token before took all of it as white space
            yield token.number
        done = stop
    if done < len(text):
        yield text[done:]


def _touched(text: str, start: int, stop: int) -> bool:
    """Whether a character of a word stands right before `start` or right at `stop`."""
    return any(_word().match(letter) for letter in (text[max(start - 1, 0) : start], text[stop : stop + 1]))


@cache
def _word() -> re.Pattern[str]:
    r"""A character of words, \w as Unicode's regular expressions define it (UTS 18)."""
    names = ("L", "M", "Nd", "Nl", "Pc")
    return re.compile(f"[{''.join(map(category_ranges, names))}{SYMBOLS_OF_WORDS}]")


_SPACES = frozenset(re.findall(f"[{SPACE}]", "".join(map(chr, range(0x3001)))))
