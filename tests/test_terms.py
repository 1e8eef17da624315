"""One Chinese term for a thing: the variants that docs/terms.md forbids stand in no text that people read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "terms.md"
ROW = re.compile(r"^\| (?P<english>[^|]+) \| (?P<chinese>[^|]+) \| (?P<forbidden>[^|]+) \|$", re.MULTILINE)
CORPUS = "bilingual.json"  # a text to learn from, and not one of ours to read


def terms() -> dict[str, tuple[str, list[str]]]:
    """English -> the Chinese term, and the expressions that are not written."""
    rows = [row for row in ROW.finditer(PAGE.read_text(encoding="utf-8")) if row["english"] != "English"]
    return {row["english"]: (row["chinese"], row["forbidden"].split(", ")) for row in rows}


def texts() -> dict[str, str]:
    """Path -> text of every file that says something in Chinese to a reader."""
    files = [ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.zh.md"))]
    for ending in ("py", "toml", "html", "js"):
        files += sorted((ROOT / "glasscluster").rglob(f"*.{ending}"))
    read = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    return {name: text for name, text in read.items() if re.search("[一-鿿]", text)}


def written(text: str, forbidden: str) -> list[str]:
    """The lines of a text in which a forbidden expression stands; a wrapped text is looked at as one line."""
    joined = re.sub(r"(?<=[一-鿿，。；：、])\n(?=[一-鿿])", "", text)
    return [line.strip() for line in joined.split("\n") if re.search(forbidden, line)]


def test_the_page_has_terms_and_no_english_word_twice():
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) - 1 == len(terms()) > 25  # without the heading
    assert all(forbidden for _, forbidden in terms().values())


@pytest.mark.parametrize("english", terms())
def test_no_text_has_another_chinese_term(english):
    chinese, forbidden = terms()[english]
    found = [
        f"{name}: {line[:90]}"
        for expression in forbidden
        for name, text in texts().items()
        if "vendor" not in name
        for line in written(text, expression)
    ]
    assert not found, f"{english} is {chinese}:\n" + "\n".join(found)


def test_a_mixed_term_would_be_seen_also_across_a_line_break():
    _, forbidden = terms()["micro-batch"]
    assert written("每个微批次。\n\n每个微批的损失", forbidden[-1]) == ["每个微批的损失"]
    assert written("每个微\n批的损失", forbidden[-1]) == ["每个微批的损失"]
    assert not written("每个微\n批次的损失", forbidden[-1])
