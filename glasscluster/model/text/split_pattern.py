r"""The regular expressions of tokenizer files, as Python's `re` reads them.

A file says where a text is cut by an expression in the syntax of Oniguruma, as `tokenizers` does. Llama 3:

    (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|...

Python's `re` knows no \p{L}, and means other characters by \s, so these become ranges (pre_tokens.py). What
both read alike is copied. Everything else is refused: an expression that `re` reads otherwise gives other
tokens, and nothing would show it.

    alternatives  one|two          sequence  ab          repeated  ? * + {2} {1,3} {2,}, and ?? *? +? ?+ *+ ++
    groups        (..) (?:..) (?i:..) (?=..) (?!..)      class     [a-z\p{L}\s] [^..]
    characters    themselves, \r \n \t, \s \S, \p{L} \P{Lu}, and punctuation behind a backslash

`re` goes back and tries again where the rest of an expression does not match, and nothing can stop it: it
has no time limit, no other thread runs meanwhile, and a signal reaches the main thread alone. `(?:a|aa)+b` on
sixty letters a would take hours. So it is judged beforehand how many steps an expression can take from one
place of a long text:

    \s*[\r\n]+      spaces are given back one by one          n steps      read
    [a-z]*[0-9]*_   what is given back is no digit            2n steps     read
    a*a*b           two share the same letters out            n² steps     refused
    (?:a|aa)+b      each letter is alone, or one of two       2ⁿ steps     refused

But: it can be so from each place of a text: n² in all for the first. No ^ $ . \w \d, no classes inside
classes. Where case is ignored, ASCII alone, and not the pairs that one character spells too (ss is ß, fi is a
ligature).
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple, NoReturn

from glasscluster.model.text.pre_tokens import CATEGORIES, SPACE, category_ranges, ranges_outside

LONG = 10_000  # characters of a text for which steps are counted
MOST_STEPS = 1_000_000  # from one place: for one repetition without an end, and some small ones
COUNTED_TO = 10**9  # ways and steps, above which they are not counted
DEEPEST = 32  # groups inside each other
SPELLED_BY_ONE = ("ss", "ff", "fi", "fl", "st")
CONTROLS = {"r": r"\r", "n": r"\n", "t": r"\t"}
REPEATED = re.compile(r"\{(\d{1,4})(?:,(\d{0,4}))?\}(?![?+*{])|([?*+])([?+]?)(?![?*+{])")


class TooManySteps(ValueError):
    """It could be tried for too long."""


class Part(NamedTuple):
    """A piece of an expression in Python's syntax.

    least: the fewest characters that it matches.
    ways: in how many it can match from one place: so often `re` comes back to it if the rest does not match.
    tries: steps until all of these have been tried.
    fails: steps until it is found not to match at all.
    sure: it matches in any case, nothing at least.
    one: the character, or the class, that it is or repeats; "" for anything else.
    first: the class of its first character; "" where it is not so simple.
    """

    text: str
    least: int
    ways: int = 1
    tries: int = 1
    fails: int = 1
    sure: bool = False
    one: str = ""
    first: str = ""


def translated(pattern: str) -> re.Pattern[str]:
    """The expression, compiled. It has no groups, so `findall` gives the matches.

    Raises:
        ValueError: it has something that Python might read otherwise, it can match nothing at all, or it can
            take too long.
    """
    try:
        reader = _Reader(pattern)
        whole = reader.alternatives(0, False)
    except TooManySteps:  # perhaps fewer: which classes have characters in common takes a second to find out
        reader = _Reader(pattern, compares=True)
        whole = reader.alternatives(0, False)
    if reader.at < len(pattern):
        reader.refuse("is closed and was never opened")
    if not whole.least:
        raise ValueError("it can match an empty text")
    try:
        return re.compile(whole.text)
    except (re.error, OverflowError) as problem:
        raise ValueError(str(problem)) from None


def one_character(text: str, any_case: bool) -> Part:
    """A character or a class."""
    one = f"(?i:{text})" if any_case else text
    return Part(text, 1, one=one, first=one)


def to_the(ways: int, times: int) -> int:
    """ways ** times, up to COUNTED_TO."""
    return min(ways ** min(times, 30), COUNTED_TO)


def decided(part: Part, rest: Sequence[Part]) -> bool:
    """Whether a repeated character, given back, cannot be what follows: then nothing further is tried."""
    for following in rest:
        if not part.one or not following.first or meet(part.one, following.first):
            return False
        if not following.sure:
            return True
    return False


@cache
def meet(one: str, other: str) -> bool:
    """Whether two classes have a character in common."""
    rest = iter(spans(other))
    first, after = next(rest, (0, 0))
    for start, end in spans(one):
        while after <= start and after:
            first, after = next(rest, (0, 0))
        if after and first < end:
            return True
    return False


@cache
def spans(characters: str) -> list[tuple[int, int]]:
    """The codes of a class's characters, from the first of a run to the one behind its last."""
    return [match.span() for match in re.finditer(f"(?:{characters})+", every_character())]


@cache
def every_character() -> str:
    """All of them, each at the place that is its code."""
    return "".join(map(chr, range(sys.maxunicode + 1)))


class _Reader:
    """Reads an expression from left to right."""

    def __init__(self, pattern: str, compares: bool = False) -> None:
        self.pattern, self.at, self.compares = pattern, 0, compares

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
        if len(read) == 1:
            return read[0]._replace(one="")
        firsts = [part.first for part in read]
        known = all(firsts)
        disjoint = (
            self.compares and known and not any(meet(one, other) for one, other in combinations(firsts, 2))
        )
        return Part(
            "|".join(part.text for part in read),
            min(part.least for part in read),
            max(part.ways for part in read) if disjoint else sum(part.ways for part in read),
            sum(part.tries for part in read),
            sum(part.fails for part in read),
            any(part.sure for part in read),
            first=f"(?:{'|'.join(firsts)})" if known else "",
        )

    def sequence(self, depth: int, any_case: bool) -> Part:
        start, parts = self.at, []
        while self.next() not in ("", "|", ")"):
            parts.append(self.repeated(depth, any_case))
        written = self.pattern[start : self.at].lower()
        if any_case and (pair := next((p for p in SPELLED_BY_ONE if p in written), None)):
            self.refuse(f"ends {pair!r} with case ignored, which one other character spells, too")
        last = max((i for i, part in enumerate(parts) if not part.sure), default=-1)  # that can fail
        ways, tries, fails = 1, 0, 0
        for i, part in enumerate(parts):
            tries += ways * part.tries
            if i <= last:
                fails += ways * (part.tries if i < last else part.fails)
            if not (self.compares and decided(part, parts[i + 1 :])):
                ways = min(ways * part.ways, COUNTED_TO)
        self.check_steps(fails, start)
        text, least = "".join(part.text for part in parts), sum(part.least for part in parts)
        first = parts[0].first if parts and not parts[0].sure else ""
        return Part(text, least, ways, min(max(tries, 1), COUNTED_TO), max(fails, 1), last < 0, first=first)

    def check_steps(self, steps: int, start: int) -> None:
        """Refuse what was read since `start` where so many steps would take too long."""
        if steps > MOST_STEPS:
            raise TooManySteps(
                f"{self.pattern[start : self.at][:40]!r} at character {start} can take more than "
                f"{MOST_STEPS:,} steps from one place of a text of {LONG:,} characters, and Python's `re` has "
                f"no time limit"
            )

    def repeated(self, depth: int, any_case: bool) -> Part:
        start = self.at
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
        most = 1 if times[3] == "?" else LONG
        if times[1]:
            most = least if times[2] is None else int(times[2] or LONG)
        repeats = most * one.tries if "(?=" in one.text or "(?!" in one.text else most + one.tries
        tries = repeats if one.ways == 1 else repeats * to_the(one.ways, most)
        fails = one.fails if least < 2 else least * one.tries * to_the(one.ways, least)
        self.check_steps(fails, start)
        ways = most - least + 1 if one.ways == 1 else to_the(one.ways, most)
        if times[4] == "+":  # what it has it does not give back
            ways = 1
        text = one.text + times[0]
        return Part(
            text, one.least * least, ways, min(tries, COUNTED_TO), fails, not least, one.one, one.first
        )

    def atom(self, depth: int, any_case: bool) -> Part:
        if self.next() == "(":
            return self.group(depth, any_case)
        if self.next() == "[":
            return one_character(self.character_class(any_case), any_case)
        if self.next() in ("^", "$", ".", "?", "*", "+", "{", "}", "]"):
            self.refuse("is not read here")
        text, is_set = self.character(any_case)
        return one_character(f"[{text}]" if is_set else text, any_case)

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
        text = f"{opened or '(?:'}{inside.text})"
        if ahead:  # it is decided once, and has no other way
            return Part(text, 0, tries=inside.tries, fails=inside.tries)
        return inside._replace(text=text)

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
