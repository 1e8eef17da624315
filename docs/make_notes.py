"""Write docs/interview-notes.md and docs/interview-notes.zh.md from docs/interview-notes.toml:
`python docs/make_notes.py`.

A statement is judged by numbers of a lesson's run; tests/test_interview_notes.py performs the lessons and
holds every number, every row and every comparison. With --check nothing is written, and the exit code says whether
both pages are up to date.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasscluster.base.text import LANGUAGES, Said
from glasscluster.scenarios.lesson import LESSONS, find_lesson

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "interview-notes.toml"
PAGES = {"en": HERE / "interview-notes.md", "zh": HERE / "interview-notes.zh.md"}
MADE = "<!-- Made by docs/make_notes.py of docs/interview-notes.toml: edit that file, not this one. -->"
VERDICTS = {
    "right": Said("Right", "对"),
    "half": Said("Half right", "对一半"),
    "wrong": Said("Wrong", "错"),
}
COMPARISON = re.compile(
    r"(\w+) ([<>=]) (-?[\d.e+-]+|\w+)"
)  # of a number by name with another or with a value
OPTIONS = ("row", "at", "blank", "per", "over", "side")  # of a number
CHINESE, STOP = re.compile("[\u4e00-\u9fff]{2}"), re.compile("[，。：；、（）“”？！]")
BLANK = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Number:
    """A number that shows a statement right or wrong, and where a lesson's run has it.

    Args:
        value: as it is printed.
        unit: in both languages.
        within: by how much the run's number may differ from `value`.
        row: key of a ledger row; None: `blank`.
        at: what of the rows with this key the English name of the meant one contains; ^ and $ are its ends.
        blank: name of a value that the lesson gives its card.
        per: what the run's number is divided by for the unit, such as 0.001 for ms.
        over: the number of the statement whose number in the run divides this one's; None: none does.
        side: predicted, counted or simulated; None: what is held against the prediction.
    """

    value: float
    unit: Said
    within: float
    row: str | None = None
    at: str = ""
    blank: str | None = None
    per: float = 1.0
    over: str | None = None
    side: str | None = None

    @property
    def printed(self) -> str:
        """The value as both pages print it."""
        return f"{self.value:,}".replace("-", "−")

    @property
    def how(self) -> Said:
        """Whether it is exact, rounded, or within so much."""
        if self.within <= 1e-8 * abs(self.value):
            return Said("exact", "精确")
        digits = str(self.value).partition(".")[2]
        if self.value and self.within <= 0.5001 * 10.0 ** -len(digits):
            return Said("rounded", "已舍入")
        return Said(f"± {self.within:g}", f"± {self.within:g}")

    def of(self, name: str) -> bool:
        """Whether a row with this English name is meant, among those that have the key."""
        wanted = re.escape(self.at.strip("^$"))
        begins, ends = self.at.startswith("^"), self.at.endswith("$")
        return bool(re.search(f"{'^' * begins}{wanted}{'$' * ends}", name))


@dataclass(frozen=True)
class Statement:
    """What notes say, what to think of it, and what shows that."""

    subject: str
    verdict: str
    lesson: str
    rows: tuple[str, ...]
    numbers: dict[str, Number]
    shows: tuple[str, ...]
    says: Said
    why: Said
    constants: tuple[str, ...] = ()

    def filled(self, lang: str) -> str:
        """The correction with its numbers, on one line."""
        text = unwrapped(self.why.in_(lang), lang)
        return BLANK.sub(lambda blank: self.numbers[blank[1]].printed, text)


@dataclass(frozen=True)
class Notes:
    """The whole file: subjects in their order, and the statements."""

    subjects: dict[str, Said]
    statements: tuple[Statement, ...]


def unwrapped(text: str, lang: str) -> str:
    """A text on one line. In Chinese a line's end is a space only between a character and a word or number,
    as within a line.
    """
    lines = text.strip().split("\n")
    joined = lines[0]
    for line in lines[1:]:
        touch = joined[-1] + line[0]
        chinese = lang == "zh" and (CHINESE.fullmatch(touch) or STOP.search(touch))
        joined += ("" if chinese else " ") + line
    return joined


def said(table: Any, where: str) -> Said:
    """A text in both languages.

    Raises:
        ValueError: one is missing or empty.
    """
    missing = [x for x in LANGUAGES if not isinstance(table, dict) or not str(table.get(x, "")).strip()]
    if missing:
        raise ValueError(f"{where}: no text in {missing[0]}")
    return Said(table["en"].strip(), table["zh"].strip())


def number(table: dict[str, Any], units: dict[str, str], where: str) -> Number:
    """A number of the file.

    Raises:
        ValueError: it does not say what it is, within what, or where a run has it.
    """
    known = {"is", "unit", "within", *OPTIONS}
    if wrong := set(table) - known:
        raise ValueError(f"{where}: {sorted(wrong)[0]} is none of {sorted(known)}")
    if missing := {"is", "unit", "within"} - set(table):
        raise ValueError(f"{where}: no {sorted(missing)[0]}")
    if ("row" in table) == ("blank" in table):
        raise ValueError(f"{where}: it is of a row or of a blank, one of them")
    unit = Said(table["unit"], units.get(table["unit"], table["unit"]))
    if table["unit"] not in units and re.search("[a-z]{4}", table["unit"]):
        raise ValueError(f"{where}: {table['unit']} has no Chinese in [units]")
    rest = {name: table[name] for name in OPTIONS if name in table}
    return Number(table["is"], unit, table["within"], **rest)


def statement(table: dict[str, Any], units: dict[str, str], subjects: dict[str, Said], at: int) -> Statement:
    """A statement of the file.

    Raises:
        ValueError: something is missing, unknown, or does not fit together.
    """
    where = f"statement {at} of {SOURCE.name}"
    says, why = said(table.get("says"), f"{where}, says"), said(table.get("why"), f"{where}, why")
    for name, valid in (("subject", subjects), ("verdict", VERDICTS), ("lesson", LESSONS)):
        if table.get(name) not in valid:
            raise ValueError(f"{where}: {name} {table.get(name)!r} is none of {', '.join(valid)}")
    numbers = {k: number(v, units, f"{where}, {k}") for k, v in table.get("numbers", {}).items()}
    rows = dict.fromkeys([*(x.row for x in numbers.values() if x.row), *table.get("rows", [])])
    if not numbers or not rows or not table.get("shows"):
        raise ValueError(f"{where}: it names no number, no row, or nothing that they show")
    if unknown := {x.over for x in numbers.values()} - {None, *numbers}:
        raise ValueError(f"{where}: nothing can be divided by {sorted(unknown)[0]}, which is no number")
    for lang in LANGUAGES:
        if unknown := set(BLANK.findall(why.in_(lang))) - set(numbers):
            raise ValueError(f"{where}: why.{lang} speaks of {sorted(unknown)[0]}, which is no number")
    for comparison in table["shows"]:
        parts = COMPARISON.fullmatch(comparison)
        if not parts or parts[1] not in numbers or not (parts[3] in numbers or is_number(parts[3])):
            raise ValueError(f"{where}: {comparison!r} compares no number with another")
    return Statement(
        table["subject"],
        table["verdict"],
        table["lesson"],
        tuple(rows),
        numbers,
        tuple(table["shows"]),
        says,
        why,
        tuple(table.get("constants", ())),
    )


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read(content: dict[str, Any] | None = None) -> Notes:
    """The file, checked; or its content, changed by a test.

    Raises:
        ValueError: with the statement and what is wrong with it.
    """
    content = content or tomllib.loads(SOURCE.read_text(encoding="utf-8"))
    subjects = {key: said(table, f"subject {key}") for key, table in content["subjects"].items()}
    units = content["units"]
    tables = enumerate(content["statement"], 1)
    return Notes(subjects, tuple(statement(x, units, subjects, at) for at, x in tables))


HEAD = {
    "en": """# Interview notes, checked

{made}

What notes for interviews say about training and serving large models, in our words: {of} statements, of which
{right} are right, {half} half right and {wrong} wrong. Each is judged by a number that a lesson's run gives.
`glass run C3 --answer` performs lesson C3 on its default options and prints its checks; those named here by
their key held, and the tests hold every number of this page, every time they run.

*Exact*: the run's number is this one, a time or ratio to 1e-8 of it. *Rounded*: to the digits shown. *± d*:
within d; such a number comes from random draws or from training and may differ a little with the version of
torch, or it is 0 but for rounding.
""",
    "zh": """# 面试笔记核对

{made}

面试笔记里关于大模型训练与推理的常见说法，用我们自己的话写成 {of} 条：{right} 条对，{half} 条对一半，{wrong} 条错。\
每一条都由某节课实际运行得到的数字来判定。`glass run C3 --answer` 按默认选项运行 C3 课并打印各项检查；\
这里写出键名的检查都成立，本页的每个数字也都由测试逐一核对。

“精确”：与运行结果一致（时间和比值的相对误差不超过 1e-8）。“已舍入”：舍入到所写的位数。\
“± d”：误差在 d 以内，这类数字来自随机抽样或训练，换一个 torch 版本可能略有不同；或者是只差舍入误差的 0。
""",
}


def block(at: int, judged: Statement, lang: str) -> str:
    """A statement as it stands on a page."""
    verdict, says = VERDICTS[judged.verdict].in_(lang), unwrapped(judged.says.in_(lang), lang)
    shown = evidence(judged, lang)
    if lang == "en":
        return f"**{at}.** *“{says}”*  \n**{verdict}**. {judged.filled(lang)}  \n{shown}\n"
    return f"**{at}.** “{says}”  \n**{verdict}**。{judged.filled(lang)}  \n{shown}\n"


def evidence(judged: Statement, lang: str) -> str:
    """The lesson, and its rows and values with what they are and how exact."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for x in judged.numbers.values():
        key = str(x.row or x.blank), x.unit.in_(lang), x.how.in_(lang)
        groups.setdefault(key, []).append(x.printed)
    for row in judged.rows:
        if row not in {x.row for x in judged.numbers.values()}:
            groups[row, "", ""] = []
    said = []
    for (key, unit, how), values in groups.items():
        if lang == "en" and values == ["1"]:
            unit = unit.removesuffix("s")
        beside = unit in ("", "×") or unit.startswith("（") or (unit == "%" and lang == "zh")
        unit = unit if beside else f" {unit}"
        between, brackets = (", ", " ({})") if lang == "en" else ("、", "（{}）")
        number = f" {between.join(values)}{unit}{brackets.format(how)}" if values else ""
        said.append(f"`{key}`{number}")
    title = find_lesson(judged.lesson).title.in_(lang)
    if lang == "en":
        return f"Lesson {judged.lesson}, {title}: {'; '.join(said)}."
    return f"{judged.lesson} 课《{title}》：{'；'.join(said)}。"


def page(notes: Notes, lang: str) -> str:
    """A page in one language; statements of a subject stand together, and are numbered through."""
    count = {x: sum(s.verdict == x for s in notes.statements) for x in VERDICTS}
    made = [HEAD[lang].format(made=MADE, of=len(notes.statements), **count)]
    at = 0
    for key, name in notes.subjects.items():
        made.append(f"## {name.in_(lang)}\n")
        for judged in (x for x in notes.statements if x.subject == key):
            at += 1
            made.append(block(at, judged, lang))
    return "\n".join(made)


def main() -> int:
    notes, old = read(), 0
    for lang, path in PAGES.items():
        text = page(notes, lang)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name} is not what {SOURCE.name} says: python docs/make_notes.py")
            old = 1
    return old


if __name__ == "__main__":
    sys.exit(main())
