"""The papers that are cited by an arXiv number: who wrote them, and what they are called."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

ARXIV = re.compile(r"(?<![\d.])\d{4}\.\d{5}(?!\d)|(?<![\d.])1[0-4]\d{2}\.\d{4}(?!\d)")


@dataclass(frozen=True)
class Paper:
    """A paper by its arXiv number, such as 1706.03762."""

    id: str
    authors: str
    title: str

    @property
    def year(self) -> int:
        """When the number was given out."""
        return 2000 + int(self.id[:2])

    @property
    def said(self) -> str:
        """Authors, title and year in a line."""
        return f"{self.authors}: {self.title}, {self.year}"


@cache
def papers() -> dict[str, Paper]:
    """Every known paper by its number."""
    content = tomllib.loads((files("glasscluster.base") / "sources.toml").read_text(encoding="utf-8"))
    return {id_: Paper(id_, **about) for id_, about in content.items()}


def cited(text: str) -> list[str]:
    """The arXiv numbers in a text, each once, in their order."""
    return list(dict.fromkeys(ARXIV.findall(text)))
