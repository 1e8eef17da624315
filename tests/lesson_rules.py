"""The rules that a lesson follows (docs/lessons.md), each as a function that lists what breaks it.

Those of the first part read text.toml alone. Those of the second part look at a lesson that was performed.
"""

from __future__ import annotations

import ast
import re
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.sources import cited, papers, source_said
from glasscluster.base.text import LANGUAGES
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import Lesson, TaughtLesson
from glasscluster.scenarios.teaching_plan import names_in, teaching_plan
from glasscluster.scenarios.texts import BLANK
from glasscluster.visualize.words import GLOSSARY, UNITS

Complaints = list[str]


# ---- from the texts alone ----------------------------------------------------------------------------------
def follow_ups(taught: Lesson) -> Complaints:
    """Every follow-up question has an answer, or names the lesson that has it."""
    asked = taught.card.follow_ups
    return [f"no answer: {x.question.en}" for x in asked if x.answer is None and x.lesson is None]


def code(taught: Lesson) -> Complaints:
    """Some lines of code are shown, and they are where the text says."""
    try:
        return [] if taught.code() else ["no [[code]]"]
    except InputError as problem:
        return [str(problem)]


def prediction(taught: Lesson) -> Complaints:
    """A question says its range, and what its answer is computed from stands in it."""
    found = []
    for key, table in taught.texts.content.get("ask", {}).items():
        bounds = table.get("range", [])
        if len(bounds) != 2:
            found.append(f"ask.{key}: no range = [low, high]")
        if not table.get("from"):
            found.append(f"ask.{key}: from = [...] names nothing that the answer is computed from")
        for lang in LANGUAGES:
            missing = set(table.get("from", ())) - set(BLANK.findall(table[lang]))
            found += [f"ask.{key}: {name} is not in the text ({lang})" for name in sorted(missing)]
    return found


# What a statement with a ratio, an exponent or a direction is known by.
RATIO = {
    "en": re.compile(
        r"\b(twice|double[sd]?|doubling|halve[sd]?|triple[sd]?|thrice|half(?! precision)|quadratic(ally)?|"
        r"linear(ly)?(?! (layer|attention|warm|interpolation|map|projection|scaling))|cubic|"
        r"exponential(ly)?|logarithmic(ally)?|proportional|percent)\b|\btimes\b(?! table)|"
        r"\b(grow|shrink|rise|fall)s? (with|like|as)\b|%",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"倍|一半|减半|翻番|平方(?!和|根|误差)|成正比|成反比|指数(级|增长|倍)|线性(增长|地|于)|"
        r"随.{0,8}(增长|增大|变大|减小|变小|下降)|[%％]"
    ),
}
NAMES = re.compile(
    r"\d{4}\.\d{4,5}|\b(19[5-9]\d|20[0-2]\d)\b(?! ?[GMK]?i?B)|"
    r"\b(?:Eq|Thm|Theorem|section|table|Table|Alg\.|Algorithm|stage|rank|level|lesson|ZeRO|阶段|第) ?\d+\b|§\d[\d.]*"
)
NUMBER = re.compile(r"[−+~≈<>≤≥×-]?(\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?)(%|×|x|[kKMGT]?i?B|[mµn]?s)?")


def numbers(taught: Lesson) -> Complaints:
    """A number comes from the run or is a constant with its source; a ratio or a direction names its row."""
    constants = {normal(c["value"]) for c in taught.texts.content.get("constants", []) if c.get("source")}
    found = []
    for where, table in claims(taught):
        ratios = False
        for lang in LANGUAGES:
            text = table[lang]
            found += [
                f"{where} ({lang}): {word} is typed in"
                for word in naked(text)
                if normal(word) not in constants
            ]
            ratios |= bool(RATIO[lang].search(text))
        if ratios and not rows_named(table):
            found.append(f"{where}: says a ratio, an exponent or a direction, and names no row")
    return found


def claims(taught: Lesson) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every text that claims something, as (where, its table)."""
    content = taught.texts.content
    yield "card.short", content["card"]["short"]
    yield "card.long", content["card"]["long"]
    yield "kills", content["kills"]
    yield "explain", content["explain"]
    for i, point in enumerate(content["explain"].get("points", [])):
        yield f"explain.points[{i}]", point
    for i, asked in enumerate(content["card"]["follow_ups"]):
        if "answer" in asked:
            yield f"card.follow_ups[{i}].answer", {"row": asked.get("row", []), **asked["answer"]}


def rows_named(table: dict[str, Any]) -> list[str]:
    """The keys of the rows that a text names."""
    named = table.get("row", [])
    return [named] if isinstance(named, str) else list(named)


def naked(text: str) -> Iterator[str]:
    """The numbers of a text that stand in it as they are: in no blank, no formula, no name. 0 and 1 are free."""
    text = BLANK.sub("", text.replace("{{", "").replace("}}", ""))
    text = NAMES.sub(" ", text)
    text = re.sub(r"\s*([·+−])\s*", r"\1", text)
    for word in re.split(r"[\s=≈→\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”‘’…]+|,(?!\d{3})", text):
        word = word.strip(".,;:!?\"'()[]")
        if not any(c.isdecimal() for c in word) or word in ("0", "1"):
            continue
        if NUMBER.fullmatch(word) or not re.search(r"[^\W\d_]|[√⌈⌊²³]", word):
            yield word


def normal(word: str) -> str:
    """A number without its sign, thousands' commas and unit."""
    matched = NUMBER.fullmatch(str(word))
    return matched[1].replace(",", "") if matched else str(word)


def symbols(taught: Lesson) -> Complaints:
    """Every symbol of the formula is explained beside it, and stands in the glossary or in its Eq's entry."""
    formula, known = taught.formula, taught.formula.symbols
    found = [f"symbol {s} is not explained" for s in unexplained(formula.text.en, set(known))]
    numbers = [int(n) for n in re.findall(r"Eq (\d+)", formula.id + " " + formula.text.en)]
    if numbers:
        in_glossary = glossary(numbers)
        found += [
            f"symbol {s} is neither in the glossary nor in {formula.id}"
            for s in known
            if s not in in_glossary
        ]
    return found


def unexplained(text: str, known: set[str]) -> list[str]:
    """The symbols of a formula that are not among the known ones. Words of two small letters or more are
    words.
    """
    found = []
    for run in re.findall(
        r"[A-Za-zΑ-ω]+(?:_(?:\{[^}]*\}|\w+))*", re.sub(r"(?<= )a(?= )|Eq \d+|1F1B", " ", text)
    ):
        base = run.split("_")[0]
        if base == "Σ":
            continue
        if run == "FLOPs" or run in known or spelled(base, known):
            continue
        word = base.islower() and base.isascii() and len(base) > 1
        acronym = base.isupper() and base.isascii() and len(base) > 1
        if not (word or acronym or base == "O" or re.fullmatch(r"[A-Z]?[a-zA-Z]*[a-z]{2}[a-zA-Z]*", base)):
            found.append(run)
    return sorted(set(found))


def spelled(run: str, known: set[str]) -> bool:
    """Whether letters are a product of known symbols, as Nd is of N and d."""
    return not run or any(run.startswith(s) and spelled(run[len(s) :], known) for s in known)


def glossary(numbers: list[int]) -> set[str]:
    """The symbols of the glossary, and of some formulas of docs/formulas.md."""
    content = tomllib.loads((files("glasscluster.base") / "formulas.toml").read_text(encoding="utf-8"))
    lines = [s for f in content["formula"] if f["number"] in numbers for s in f["symbols"]]
    named = [line.split(":")[0] for line in lines] + [symbol for symbol, _, _ in GLOSSARY]
    return {symbol.strip() for names in named for symbol in names.split(",")}


def plan(taught: Lesson) -> Complaints:
    """Fifty minutes that name a figure, a row, something to change, and the wrong answer to expect."""
    beats = taught.texts.content.get("plan")
    if beats is None:
        return ["no [[plan]]"]
    try:
        teaching_plan(taught)
    except InputError as problem:
        return [str(problem)]
    found = []
    minutes = [[int(m) for m in beat["minutes"].split("-")] for beat in beats]
    if minutes[0][0] != 0 or minutes[-1][1] != 50 or any(a[1] != b[0] for a, b in pairwise(minutes)):
        found.append("the minutes are not 0 to 50 without a gap")
    named = {lang: {n for beat in beats for n in names_in(beat[lang])} for lang in LANGUAGES}
    if named["en"] != named["zh"]:
        found.append(f"named in one language only: {named['en'] ^ named['zh']}")
    kinds = {kind for kind, _ in named["en"]}
    for kinds_of, what in (
        ({"figure", "tab"}, "figure"),
        ({"row"}, "row"),
        ({"option", "slider"}, "option or slider"),
    ):
        if not kinds & kinds_of:
            found.append(f"names no {what}")
    options = options_of(taught.texts.path.parent / "program.py")
    for kind, name in sorted(named["en"]):
        if kind == "option" and name.split("=")[0] not in options:
            found.append(f"{name}: the lesson has no such option, but {options}")
    if not any("wrong" in beat for beat in beats):
        found.append("no beat says the wrong answer to expect")
    return found


def options_of(program: Path) -> list[str]:
    """The options of a lesson, read from its program."""
    for node in ast.parse(program.read_text(encoding="utf-8")).body:
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
        if any(getattr(getattr(d, "func", d), "id", "") == "lesson" for d in decorators):
            return [a.arg for a in node.args.args[1:]]
    return []


def sources(taught: Lesson) -> Complaints:
    """Every arXiv number that the lesson cites has a title."""
    text = "".join(f.read_text(encoding="utf-8") for f in sorted(taught.texts.path.parent.glob("*.[pt]*")))
    return [f"{id_} has no title in base/sources.toml" for id_ in cited(text) if id_ not in papers()]


Rule = Callable[[Lesson], Complaints]
FROM_TEXTS: dict[str, Rule] = {
    rule.__name__: rule for rule in (follow_ups, code, prediction, numbers, symbols, plan, sources)
}


# ---- of a lesson that was performed ------------------------------------------------------------------------
def perform_watched(taught: TaughtLesson) -> Lab:
    """Perform a lesson on its own backend, and keep in `lab.ran` which of the lines that it shows ran."""
    spans: dict[str, list[range]] = {}
    try:
        shown = taught.lesson.code() if taught.lesson else []
    except InputError:
        shown = []
    for x in shown:
        spans.setdefault(str(x.file), []).append(range(x.first, x.last + 1))
    with watching(spans) as ran:
        lab = perform(taught, Lab(taught, taught.backend, taught.hardware), {})
    lab.ran = ran
    return lab


CALLS_WATCHED = 1_000_000


@contextmanager
def watching(spans: dict[str, list[range]]) -> Iterator[dict[str, set[int]]]:
    """Which lines of some files run meanwhile, on every thread that begins meanwhile.

    A thread that is watched takes twice as long: a rank, after CALLS_WATCHED, has been round its loops.
    """
    ran: dict[str, set[int]] = {name: set() for name in spans}
    calls = threading.local()

    def line(frame, event, _arg):
        if event == "line":
            ran[frame.f_code.co_filename].add(frame.f_lineno)
        return line

    def call(frame, _event, _arg):
        calls.seen = getattr(calls, "seen", 0) + 1
        if calls.seen > CALLS_WATCHED and threading.current_thread() is not threading.main_thread():
            sys.settrace(None)
        return line if frame.f_code.co_filename in ran else None

    if not spans:
        yield ran
        return
    before = sys.gettrace()
    threading.settrace(call)
    sys.settrace(call)
    try:
        yield ran
    finally:
        sys.settrace(before)
        threading.settrace(before)


LEAST_RAN = 0.7  # of the lines with a statement: a branch that this run does not take may be shown


def code_ran(taught: Lesson, lab: Any) -> Complaints:
    """The lines that are shown ran, but for branches that this run does not take."""
    found = []
    for x in taught.code():
        lines = statements(x.file, x.first, x.last)
        missed = sorted(lines - lab.ran.get(str(x.file), set()))
        if len(missed) > (1 - LEAST_RAN) * len(lines):
            found.append(f"{x.of}: lines {missed} of {x.path} did not run")
    return found


def statements(file: Path, first: int, last: int) -> set[int]:
    """The lines on which a statement of a function's body begins, without definitions and docstrings."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        skipped = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try, ast.Import, ast.ImportFrom)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not isinstance(node, skipped) and not docstring:
            found |= {node.lineno} & set(range(first, last + 1))
    return found


def answer_in_range(taught: Lesson, lab: Any) -> Complaints:
    """The answer lies in the range of its question, and its unit is a unit of it."""
    asked, found = lab.prompt, []
    if asked.low is None or not asked.low <= asked.answer <= asked.high:
        found.append(f"the answer {asked.answer} is not in [{asked.low}, {asked.high}]")
    if asked.unit.en == "×" and not re.search(r"\btimes\b|\bratio\b|\bfactor\b", asked.text.en):
        found.append(f"the unit × answers no “how many times”: {asked.text.en}")
    return found


def rows_held(taught: Lesson, lab: Any) -> Complaints:
    """Every row that a text names was there, and held."""
    held = {row.key for row in lab.all_checks if row.verdict == "held"}
    return [
        f"{where}: no row {key} held"
        for where, t in claims(taught)
        for key in rows_named(t)
        if key not in held
    ]


def own_story(taught: Lesson, lab: Any) -> Complaints:
    """The lesson tells its own story, in three sentences or more."""
    return [] if len(lab.story) >= 3 else [f"{len(lab.story)} sentences of its own"]


def figures_drawn(taught: Lesson, lab: Any) -> Complaints:
    """Every figure that the plan names is drawn."""
    named = {
        n
        for beat in taught.texts.content.get("plan", [])
        for kind, n in names_in(beat["en"])
        if kind == "figure"
    }
    drawn = {text.en for text, _ in lab.figures}
    patterns = {key: re.escape(taught.texts.plain("text", key).en) for key in named}
    return [
        f"no figure {key}"
        for key in sorted(named)
        if not any(re.fullmatch(re.sub(r"\\\{.*?\\\}", ".*", patterns[key]), title) for title in drawn)
    ]


# names, and functions of a formula, which stay as they are
KEPT = set(
    "max min sum log base key value token rank router block worker server push pull dispatch combine".split()
)
KEPT |= set("dropout logit logits bsh sbh epoch actor torch amp networkx roofline core allowed query".split())
KEPT |= {"cos", "all-gather", "all-reduce", "lm-evaluation-harness"}


def left_in_english(source: str) -> list[str]:
    """The English words, of three letters and more, that a Chinese reader finds in a source."""
    text = re.sub(r"\S*[#/_]\S*|\b\w+\.py\b|et al\.", " ", source_said(source).zh)
    return [word for word in re.findall(r"(?<![\w-])[a-z][a-z-]{2,}(?![\w-])", text) if word not in KEPT]


def chinese_sources(taught: Lesson, lab: Any) -> Complaints:
    """What rows and formulas name as their source stands in Chinese, too (base/sources_zh.toml), and so do
    the units of rows (visualize/words.py).
    """
    sources = dict.fromkeys([taught.formula.source, *(row.source for row in lab.all_checks)])
    found = [f"{s!r} is English: {left_in_english(s)}" for s in sources if left_in_english(s)]
    units = {row.unit for row in lab.all_checks if re.search("[a-z]{3}", row.unit)} - UNITS.keys()
    return found + [f"the unit {unit!r} has no Chinese" for unit in sorted(units)]


OF_A_RUN: dict[str, Callable[[Lesson, Any], Complaints]] = {
    rule.__name__: rule
    for rule in (code_ran, answer_in_range, rows_held, own_story, figures_drawn, chinese_sources)
}
