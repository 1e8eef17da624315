"""Where rows and formulas come from: papers by their arXiv number, who wrote them and what they are called;
and what a row names as its source, in both languages.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from glasscluster.base.text import Said

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


PLACES = [  # where in a paper, by rule
    (re.compile(r" sections (\d[\d.]*), (\d[\d.]*)"), r" 第 \1、\2 节"),
    (re.compile(r",? section (\d[\d.]*\d|\d)"), r" 第 \1 节"),
    (re.compile(r",? §(\d[\d.]*\d|\d)"), r" 第 \1 节"),
    (re.compile(r",? appendix ([A-Z])"), r" 附录 \1"),
    (re.compile(r",? algorithm (\d+)"), r" 算法 \1"),
    (re.compile(r" Table (\d+)"), r" 表 \1"),
    (re.compile(r" \(nearest\)"), "（最接近）"),
]


@cache
def _chinese() -> dict[str, str]:
    """English source -> Chinese."""
    return tomllib.loads((files("glasscluster.base") / "sources_zh.toml").read_text(encoding="utf-8"))


def source_said(source: str) -> Said:
    """What a row names as its source, in both languages: by sources_zh.toml, else by rule.

    Args:
        source: in English, as a row has it.

    Example:
        >>> source_said("Korthikanti 2205.05198 section 4.2.2").zh
        'Korthikanti 2205.05198 第 4.2.2 节'
        >>> source_said("one device, same seed").zh
        '单卡，同一个种子'
    """
    chinese = _chinese().get(source)
    if chinese is None:
        chinese = source
        for place, words in PLACES:
            chinese = place.sub(words, chinese)
    return Said(source, chinese)
