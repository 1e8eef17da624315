"""Where a text may be cut before any merge: GPT-2's rule, and its spelling of bytes as letters.

Radford et al. 2019 (GPT-2), section 2.2: byte-pair encoding works on bytes, and no merge crosses from one
category of characters to another, except that a word keeps one space before it. As a regular expression
(openai/gpt-2, src/encoder.py):

    's|'t|'re|'ve|'m|'ll|'d | ␣?\\p{L}+ | ␣?\\p{N}+ | ␣?[^\\s\\p{L}\\p{N}]+ | \\s+(?!\\S) | \\s+

      x = it's  42+1\\n  ─►  x │ ␣= │ ␣it │ 's │ ␣ │ ␣42 │ + │ 1 │ \\n
                             (the last of several spaces goes to the word)

Python's `re` has no \\p{L}, so the classes are written out as ranges from `unicodedata`; its \\s has four
control characters more than Unicode's White_Space, so that is written out too. Characters newer than this
Python's Unicode tables count as punctuation.

Bytes that are no valid UTF-8 become one character each (`surrogateescape`), which is neither letter, digit
nor space: they lie with punctuation. Every byte string so has exactly one cut, and its pieces joined are the
string again.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space, as ranges
ESCAPE = "surrogateescape"


CATEGORIES = re.findall("..", "LuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCoCn")


@cache
def category_ranges(name: str, outside: bool = False) -> str:
    """All characters of a category ("L" letters, "Lu" large ones, "N" numbers) as the inside of a regular
    expression's [...]; outside: all that are not of it.
    """
    letters = "".join(chr(ord("a") + i) for i, each in enumerate(CATEGORIES) if each.startswith(name))
    return _ranges(f"[{'^' if outside else ''}{letters}]+", _categories())


@cache
def ranges_outside(inside: str) -> str:
    """The characters that [inside] does not match, as the inside of [...]."""
    return _ranges(f"[^{inside}]+", "".join(map(chr, range(sys.maxunicode + 1))))


def _ranges(pattern: str, text: str) -> str:
    """Where a pattern matches a text of one letter for each character that there is."""
    spans = (span.span() for span in re.finditer(pattern, text))
    return "".join(f"\\U{first:08x}-\\U{after - 1:08x}" for first, after in spans)


@cache
def _categories() -> str:
    """Each character's category, as one letter: a for the first of CATEGORIES."""
    letters = {name: chr(ord("a") + i) for i, name in enumerate(CATEGORIES)}
    return "".join([letters[unicodedata.category(chr(code))] for code in range(sys.maxunicode + 1)])


@cache
def rule() -> re.Pattern[str]:
    """The regular expression above."""
    letter, number = category_ranges("L"), category_ranges("N")
    return re.compile(
        f"'(?:[stmd]|re|ve|ll)| ?[{letter}]+| ?[{number}]+| "
        f"?[^{SPACE}{letter}{number}]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
    )


def pre_tokens(text: bytes) -> list[str]:
    """The pieces of a text in order, as strings that `as_bytes` turns back; joined they are the text."""
    return rule().findall(text.decode("utf-8", ESCAPE))


def as_bytes(piece: str) -> bytes:
    """The bytes of a piece."""
    return piece.encode("utf-8", ESCAPE)


# ---- bytes as letters --------------------------------------------------------------------------------------
# In files a byte is one visible character: itself where Latin-1 has a visible one, else the next free one
# from U+0100 on.
# A byte's number as a token is its place in this order (openai/gpt-2, bytes_to_unicode), so "!" is 0 and the
# space is 220.

VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = bytes(VISIBLE + [b for b in range(256) if b not in VISIBLE])  # token number -> byte
BYTE_NUMBER = bytes(BYTE_ORDER.index(b) for b in range(256))  # byte -> token number
_LETTERS = [chr(b) for b in VISIBLE] + [chr(0x100 + i) for i in range(256 - len(VISIBLE))]
_LETTER = dict(zip(BYTE_ORDER, _LETTERS, strict=True))
_BYTE = {letter: b for b, letter in _LETTER.items()}


def spelled(token: bytes) -> str:
    """Bytes as they stand in a tokenizer file: " a" is "Ġa"."""
    return "".join(_LETTER[b] for b in token)


def unspelled(word: str) -> bytes:
    """The bytes that such a word stands for; KeyError for a character that stands for none."""
    return bytes(_BYTE[letter] for letter in word)
