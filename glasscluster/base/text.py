"""A text in two languages: everything that people read is said once, in English and in 中文, side by side."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Said:
    """A text in two languages."""

    en: str
    zh: str

    def in_(self, lang: str) -> str:
        """The text in a language: `en` or `zh`."""
        return self.zh if lang == "zh" else self.en

    def format(self, **values: object) -> Said:
        """The same text with its blanks filled: `Said("{n} GPUs", "{n} 块 GPU").format(n=8)`."""
        return Said(self.en.format(**values), self.zh.format(**values))

    def __str__(self) -> str:
        return self.en


def counted(number: int, noun: str) -> str:
    """A number of things in English: `counted(1, "GPU")` is 1 GPU, `counted(8, "GPU")` is 8 GPUs."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
