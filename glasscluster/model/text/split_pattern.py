r"""The regular expressions of tokenizer files, as Python's `re` reads them.

A file says where a text is cut by an expression in the syntax of Oniguruma, as `tokenizers` does. Llama 3:

    (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|...

Python's `re` knows no \p{L}, and means other characters by \s, so these become ranges (pre_tokens.py). What
both read alike is copied. Everything else is refused: an expression that `re` reads otherwise gives other
tokens, and nothing would show it.

    alternatives  one|two          sequence  ab          repeated  ? * + {2} {1,3} {2,}, and ?? *? +? ?+ *+ ++
    groups        (..) (?:..) (?i:..) (?=..) (?!..)      class     [a-z\p{L}\s] [^..]
    characters    themselves, \r \n \t, \s \S, \p{L} \P{Lu}, and punctuation behind a backslash

But: no ^ $ . \w \d, no classes inside classes. Where case is ignored, ASCII alone, and not the pairs that one
character spells too (ss is ß, fi is a ligature).
"""

from __future__ import annotations

import re
import string
from typing import NamedTuple, NoReturn

from glasscluster.model.text.pre_tokens import CATEGORIES, SPACE, category_ranges, ranges_outside

DEEPEST = 32  # groups inside each other
SPELLED_BY_ONE = ("ss", "ff", "fi", "fl", "st")
CONTROLS = {"r": r"\r", "n": r"\n", "t": r"\t"}
REPEATED = re.compile(r"\{(\d{1,4})(?:,(\d{0,4}))?\}(?![?+*{])|([?*+])([?+]?)(?![?*+{])")


class Part(NamedTuple):
    """A piece of an expression in Python's syntax, and the fewest characters that it matches."""

    text: str
    least: int


def translated(pattern: str) -> re.Pattern[str]:
    """The expression, compiled. It has no groups, so `findall` gives the matches.

    Raises:
        ValueError: it has something that Python might read otherwise, or it can match nothing at all.
    """
    reader = _Reader(pattern)
    whole = reader.alternatives(0, False)
    if reader.at < len(pattern):
        reader.refuse("is closed and was never opened")
    if not whole.least:
        raise ValueError("it can match an empty text")
    try:
        return re.compile(whole.text)
    except (re.error, OverflowError) as problem:
        raise ValueError(str(problem)) from None


class _Reader:
    """Reads an expression from left to right."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def refuse(self, rule: str) -> NoReturn:
        raise ValueError(f"{self.pattern[self.at : self.at + 8]!r} at character {self.at} {rule}")

    def take(self, text: str) -> bool:
        """Whether `text` comes next; then it is read."""
        there = self.pattern.startswith(text, self.at)
        self.at += len(text) if there else 0
        return there

    def next(self) -> str:
        """The next character; "" at the end."""
        return self.pattern[self.at : self.at + 1]

    # ---- structure -----------------------------------------------------------------------------------------
    def alternatives(self, depth: int, any_case: bool) -> Part:
        if depth > DEEPEST:
            self.refuse(f"has more than {DEEPEST} groups around it")
        read = [self.sequence(depth, any_case)]
        while self.take("|"):
            read.append(self.sequence(depth, any_case))
        return Part("|".join(part.text for part in read), min(part.least for part in read))

    def sequence(self, depth: int, any_case: bool) -> Part:
        start, parts = self.at, []
        while self.next() not in ("", "|", ")"):
            parts.append(self.repeated(depth, any_case))
        written = self.pattern[start : self.at].lower()
        if any_case and (pair := next((p for p in SPELLED_BY_ONE if p in written), None)):
            self.refuse(f"ends {pair!r} with case ignored, which one other character spells, too")
        return Part("".join(part.text for part in parts), sum(part.least for part in parts))

    def repeated(self, depth: int, any_case: bool) -> Part:
        one = self.atom(depth, any_case)
        if self.next() not in ("?", "*", "+", "{"):
            return one
        times = REPEATED.match(self.pattern, self.at)
        if times is None:
            self.refuse("is no repetition that is read here")
        if not one.least:
            self.refuse("repeats what can be empty")
        self.at = times.end()
        least = int(times[1]) if times[1] else int(times[3] == "+")
        return Part(one.text + times[0], one.least * least)

    def atom(self, depth: int, any_case: bool) -> Part:
        if self.next() == "(":
            return self.group(depth, any_case)
        if self.next() == "[":
            return Part(self.character_class(any_case), 1)
        if self.next() in ("^", "$", ".", "?", "*", "+", "{", "}", "]"):
            self.refuse("is not read here")
        text, is_set = self.character(any_case)
        return Part(f"[{text}]" if is_set else text, 1)

    def group(self, depth: int, any_case: bool) -> Part:
        kinds = {"(?:": "(?:", "(?i:": "(?i:", "(?=": "(?=", "(?!": "(?!"}
        opened = next((kind for kind in kinds if self.take(kind)), None)
        if opened is None and self.pattern.startswith("(?", self.at):
            self.refuse("is no group that is read here")
        if opened is None:
            self.take("(")
        inside = self.alternatives(depth + 1, any_case or opened == "(?i:")
        if not self.take(")"):
            self.refuse("is where a group is not closed")
        ahead = opened in ("(?=", "(?!")
        return Part(f"{opened or '(?:'}{inside.text})", 0 if ahead else inside.least)

    # ---- characters ----------------------------------------------------------------------------------------
    def character_class(self, any_case: bool) -> str:
        self.take("[")
        text, first = "[^" if self.take("^") else "[", True
        while first or self.next() != "]":
            if self.next() in ("", "[", "]") or self.pattern.startswith("&&", self.at):
                self.refuse("is not read in a class")
            one, is_set = self.character(any_case)
            text, first = text + one, False
            if self.next() == "-" and self.pattern[self.at + 1 : self.at + 2] != "]":
                if is_set or any_case:
                    self.refuse("is not read in a class: a range is from a character to another")
                self.take("-")
                if self.next() in ("", "[", "]"):
                    self.refuse("is where a range is not closed")
                last, is_set = self.character(any_case)
                if is_set:
                    self.refuse("stands behind a range that has no end")
                text += f"-{last}"
        self.take("]")
        return f"{text}]"

    def character(self, any_case: bool) -> tuple[str, bool]:
        """What one character, or a set such as \\s, is inside Python's [...], and whether it is a set."""
        if not self.take("\\"):
            letter = self.next()
            if any_case and letter not in string.printable:
                self.refuse("is not read where case is ignored")
            self.at += 1
            return re.escape(letter), False
        letter = self.next()
        if letter in CONTROLS:
            self.at += 1
            return CONTROLS[letter], False
        if letter in string.punctuation and letter:
            self.at += 1
            return re.escape(letter), False
        if letter in ("s", "S", "p", "P") and not any_case:
            return self.set(), True
        self.at -= 1
        self.refuse("is not read here")

    def set(self) -> str:
        """The characters of \\s, \\S, \\p{..} or \\P{..}, as the inside of [...]."""
        if self.take("s"):
            return SPACE
        if self.take("S"):
            return ranges_outside(SPACE)
        named = re.compile(r"([pP])\{(\w{1,2})\}").match(self.pattern, self.at)
        if named is None or not any(name.startswith(named[2]) for name in CATEGORIES):
            self.refuse(f"is no category of characters such as {CATEGORIES[0]} or {CATEGORIES[0][0]}")
        self.at = named.end()
        return category_ranges(named[2], named[1] == "P")
