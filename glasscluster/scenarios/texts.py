"""What a scenario says, in a data file beside its program: `text.toml`.

A text stands there in both languages, with named blanks as in `str.format`:

    [tell.every_rank_sent]
    en = \"\"\"
    Every rank sent {sent:,} bytes for a buffer of {size:,}: {ratio:.4g} S,
    in {steps} steps.\"\"\"
    zh = "缓冲区 {size:,} 字节，每个 rank 发送 {sent:,} 字节：{ratio:.4g} S，共 {steps} 步。"

A long text is wrapped where it is easy to read. A line break is read as a space; between two Chinese
characters it is read as nothing. A blank that itself is said in two languages takes a `Said`.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import LANGUAGES, Said

Text = Said | tuple[str, str]  # a pair is English, 中文


def said(text: Text) -> Said:
    """A text of a scenario that has no data file: a `Said`, or the pair of both languages."""
    return text if isinstance(text, Said) else Said(*text)


@dataclass(frozen=True)
class Texts:
    """The content of one text.toml.

    Args:
        path: where it was read from, for error messages.
        content: the tables of the file; a text is a table with `en` and `zh`.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Texts:
        """The texts of a file.

        Raises:
            InputError: there is no such file, or it is not TOML.
        """
        if not path.is_file():
            raise InputError(
                "text", str(path), "there is no such file: a lesson needs a text.toml beside its program.py"
            )
        try:
            return cls(path, tomllib.loads(path.read_text(encoding="utf-8")))
        except tomllib.TOMLDecodeError as problem:
            raise InputError("text", str(path), f"is not TOML: {problem}") from None

    def table(self, *names: str) -> Any:
        """The value under these names, one inside the other.

        Raises InputError where there is none, with the nearest name.
        """
        here: Any = self.content
        for name in names:
            if not isinstance(here, dict) or name not in here:
                choices = list(here) if isinstance(here, dict) else []
                raise InputError(".".join(names), name, f"is not in {self.path}", choices)
            here = here[name]
        return here

    def plain(self, *names: str) -> Said:
        """The text under these names, which has no blanks."""
        return self.text_of(self.table(*names), ".".join(names))

    def filled(self, *names: str, blanks: dict[str, Any]) -> Said:
        """A text with its blanks filled.

        Raises:
            InputError: the text has a blank that was given no value.
        """
        return self.filled_text(self.plain(*names), ".".join(names), blanks)

    def filled_text(self, text: Said, where: str, blanks: dict[str, Any]) -> Said:
        """A text of this file with its blanks filled.

        Raises:
            InputError: the text has a blank that was given no value; `where` names the text.
        """
        try:
            return Said(*(text.in_(lang).format_map(_in(lang, blanks)) for lang in LANGUAGES))
        except KeyError as missing:
            raise InputError(
                where, missing.args[0], f"a blank of {self.path} that got no value", list(blanks)
            ) from None

    def points(self, blanks: dict[str, Any]) -> list[Said]:
        """What a good explanation says, for the reader to tick off."""
        points = self.table("explain").get("points", [])
        texts = [self.text_of(point, "explain.points") for point in points]
        return [self.filled_text(text, "explain.points", blanks) for text in texts]

    def text_of(self, table: Any, where: str) -> Said:
        """The text that a table of this file holds as `en` and `zh`.

        Raises:
            InputError: it holds none, or in one language only; `where` names it.
        """
        if not isinstance(table, dict) or any(not isinstance(table.get(lang), str) for lang in LANGUAGES):
            raise InputError(where, table, f"must be a text with en and zh in {self.path}")
        return Said(*(unwrap(table[lang]) for lang in LANGUAGES))


def _in(lang: str, blanks: dict[str, Any]) -> dict[str, Any]:
    return {name: value.in_(lang) if isinstance(value, Said) else value for name, value in blanks.items()}


def unwrap(text: str) -> str:
    """Join a wrapped text into one line: breaks become spaces, or nothing between two wide characters."""
    lines = text.strip("\n").split("\n")
    joined = lines[0]
    for line in lines[1:]:
        joined += ("" if joined and line and _is_wide(joined[-1]) and _is_wide(line[0]) else " ") + line
    return joined


def _is_wide(character: str) -> bool:
    """Whether a character is Chinese or its punctuation; quotation marks and the ellipsis are shared with
    English.
    """
    return unicodedata.east_asian_width(character) in "WF" or character in "“”‘’…"


BLANK = re.compile(r"\{(\w+)[^{}]*\}")  # of a text, by the name of what fills it


def blanks_of(text: Said) -> set[str]:
    """The names of the blanks that a text has in either language."""
    return {name for lang in LANGUAGES for name in BLANK.findall(text.in_(lang))}


def left_open(text: Said) -> Said:
    """A text before a run: every blank is an ellipsis, a doubled brace is one."""
    shown = (BLANK.sub("…", text.in_(lang).replace("{{", "\0").replace("}}", "\1")) for lang in LANGUAGES)
    return Said(*(t.replace("\0", "{").replace("\1", "}") for t in shown))


def listed(values: Iterable[object]) -> Said:
    """Join several values: with commas in English, with enumeration commas in Chinese."""
    words = [str(value) for value in values]
    return Said(", ".join(words), "、".join(words))
