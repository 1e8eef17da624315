"""Write README.md and README.zh.md from docs/readme.both.txt: `python docs/make_readme.py`.

Both pages have one skeleton, so neither can lag: headings, commands, programs, tables and links stand there
once, and what people read stands in both languages, side by side:

    make test     # ⟦the whole suite‖全部测试⟧

What is outside ⟦…‖…⟧ is the same in both pages. With --check nothing is written, and the exit code says
whether both are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "readme.both.txt"
PAGES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}
BOTH = re.compile(r"⟦([^⟦⟧‖]*)‖([^⟦⟧‖]*)⟧")


def page(source: str, language: str) -> str:
    """A page in one language.

    Raises:
        ValueError: a text lacks a language, or a bracket is left over.
    """

    def chosen(both: re.Match[str]) -> str:
        texts = {"en": both[1].strip("\n"), "zh": both[2].strip("\n")}
        if empty := [name for name, text in texts.items() if not text.strip()]:
            raise ValueError(
                f"readme.both.txt, line {line(both.start())}: no text in {empty[0]}: {both[0][:60]}"
            )
        return texts[language]

    def line(at: int) -> int:
        return source.count("\n", 0, at) + 1

    made = BOTH.sub(chosen, source)
    if left := re.search(r"[⟦⟧‖]", made):
        raise ValueError(
            f"a text that is not ⟦English‖中文⟧: {made[max(0, left.start() - 30) : left.end() + 30]}"
        )
    return made


def main() -> int:
    source = SOURCE.read_text(encoding="utf-8")
    old = 0
    for language, path in PAGES.items():
        text = page(source, language)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            print(f"{path.name} is not what docs/readme.both.txt says: python docs/make_readme.py")
            old = 1
    return old


if __name__ == "__main__":
    sys.exit(main())
