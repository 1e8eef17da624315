"""The documents say what is there: links, files, objects, decisions."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FRONT = [
    ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
]
PAGES = sorted([*FRONT, *DOCS.rglob("*.md")])
DECISIONS = sorted(DOCS.glob("decisions/0*.md"))
NAMES = [p.relative_to(ROOT).as_posix() for p in PAGES]
ROOMS = r"(?:glasscluster/)?(?:base|sim|model|strategies|visualize|scenarios|commands)"
BESIDE = r"(?:tests|benchmarks|docs)"
FILE = re.compile(rf"(?<![\w/])({ROOMS}/[\w/]+\.(?:py|toml|json|js)\b|{BESIDE}/[\w/]+\.(?:py|md|json)\b)")
SCRIPT = re.compile(r"(?<![\w./-])(?:[a-z]\w*/)*([a-z]\w*\.(?:py|js))\b")  # also named without its folder
# a reader's own, or libraries'
OTHERS = {"my_lesson.py", "my_ring.py", "model.py", "plotly.js", "clip_grads.py", "schedules.py"}


def text(path: Path) -> str:
    """A page without its code blocks, which speak of a reader's own files."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def find(name: str) -> Any:
    """What stands behind `glasscluster.package.module:Name`, `...module.Name` or `...module`."""
    module, _, inside = name.partition(":")
    if not inside and module.rpartition(".")[2][0].isupper():
        module, _, inside = module.rpartition(".")
    thing: Any = importlib.import_module(module)
    for part in filter(None, inside.split(".")):
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text(page))
    inside = [link for link in links if not link.startswith(("http:", "https:"))]
    assert not [link for link in inside if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_file_that_is_named_is_there(page):
    named = FILE.findall(text(page))
    assert not [f for f in named if not (ROOT / f).exists() and not (ROOT / "glasscluster" / f).exists()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_script_that_is_named_without_its_folder_is_there_too(page):
    folders = ("glasscluster", "tests", "benchmarks", "docs")
    there = {p.name for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".js")}
    words = re.sub(r"https?://[^\s)]+", "", text(page))
    assert sorted(set(SCRIPT.findall(words)) - there - OTHERS) == []


def shown(page: str) -> list[list[str]]:
    """What a README shows that is the same in every language: commands, Python, places of its tables."""
    commands = re.findall(r"^(?:glass|make|torchrun) .*", page, re.MULTILINE)
    python = re.findall(r"^```python[^\n]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    rows = "\n".join(re.findall(r"^\| .*", page, re.MULTILINE))
    places = re.findall(r"`[\w./-]+`|\]\([^)]*\)", rows)
    return [[command.split(" # ")[0].strip() for command in commands], python, places]


def readmes():
    """The module that writes both READMEs of one text."""
    spec = importlib.util.spec_from_file_location("make_readme", DOCS / "make_readme.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


def test_both_readmes_are_what_their_one_text_says():
    maker = readmes()
    source = maker.SOURCE.read_text(encoding="utf-8")
    english, chinese = (path.read_text(encoding="utf-8") for path in maker.PAGES.values())
    assert (maker.page(source, "en"), maker.page(source, "zh")) == (english, chinese), "docs/make_readme.py"
    assert len(maker.BOTH.findall(source)) > 100
    assert len(shown(english)[0]) > 30
    assert len(shown(english)[2]) > 90
    assert shown(english) == shown(chinese), "a command, a program or a place stands inside the brackets"


@pytest.mark.parametrize("broken", ["# ⟦Lessons‖⟧", "# ⟦‖课程⟧", "# ⟦Lessons⟧", "# Lessons‖课程", "⟦⟦a‖b⟧"])
def test_a_text_in_one_language_makes_no_readme(broken):
    with pytest.raises(ValueError, match=r"readme\.both\.txt, line 2|not ⟦English‖中文⟧"):
        readmes().page(f"\n{broken}\n", "zh")


def prose(page: str) -> list[str]:
    """Runs of five English words and more: a sentence, and no name of a thing."""
    page = re.sub(r"^```python.*?^```|`[^`]*`|<!--.*?-->", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"^(?:glass|make|torchrun) [^#]*", "", page, flags=re.MULTILINE)
    return re.findall(r"(?:\b[A-Za-z]+[ ,;]+){4}[A-Za-z]+", re.sub(r"\]\([^)]*\)", "", page))


def test_the_chinese_readme_has_no_english_sentence():
    assert prose((ROOT / "README.zh.md").read_text(encoding="utf-8")) == []
    assert len(prose((ROOT / "README.md").read_text(encoding="utf-8"))) > 100


def test_the_architecture_is_short_enough_to_be_read():
    assert len((DOCS / "architecture.md").read_text(encoding="utf-8").splitlines()) < 200


def test_each_decision_says_what_why_and_what_follows_and_stands_in_the_index():
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [p.name[:4] for p in DECISIONS] == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]
    for page in DECISIONS:
        said = page.read_text(encoding="utf-8")
        headings = re.findall(r"^## (.*)", said, re.MULTILINE)
        assert [h for h in headings if h != "Tried"] == ["What", "Why", "Consequences"], page.name
        assert f"- [{page.name[:4]}]({page.name}) {said.splitlines()[0][2:]}\n" in index, page.name


def test_the_glossary_and_the_api_pages_name_what_exists():
    words = re.findall(r"`(glasscluster\.[\w.:]+)`", (DOCS / "glossary.md").read_text(encoding="utf-8"))
    pages = "\n".join(p.read_text(encoding="utf-8") for p in DOCS.glob("api/*.md"))
    shown = re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE)
    assert len(words) >= 10
    assert len(shown) >= 10
    for name in [*words, *shown]:
        assert find(name) is not None


# Names that glossary.md lists as gone. Lessons name the blanks of their texts, so their variables are their
# own.
RETIRED = {
    *("Circle", "ScenarioError", "Mail", "Ways", "Notes", "BOOKS", "Judgement", "Errand", "Kept"),
    *("quicker", "wider", "longer", "turned", "played", "pass_on", "going_round", "put_off", "stretch"),
}


# Names that say how a value was come by and not what it is. The glossary says what to write instead.
EMPTY_NAMES = {"found", "apart", "asked", "told", "later", "Played"}
OPTION = {"glasscluster/scenarios/captions.py": {"asked"}}  # --asked, of that scenario


def identifiers(tree: ast.AST) -> set[str]:
    """Every name that a Python file defines or uses: of functions, classes, arguments,
    attributes, variables.
    """
    return {
        str(getattr(node, field))
        for node in ast.walk(tree)
        for field in ("name", "id", "attr", "arg")
        if isinstance(getattr(node, field, None), str)
    }


def test_retired_words_are_no_names_in_the_package():
    package = ROOT / "glasscluster"
    files = [p for p in package.rglob("*.py") if "lessons" not in p.relative_to(package).parts]
    assert len(files) > 200
    names = {p: identifiers(ast.parse(p.read_text(encoding="utf-8"))) for p in files}
    assert {p.relative_to(ROOT).as_posix(): found for p in files if (found := names[p] & RETIRED)} == {}


def test_values_are_named_after_what_they_are():
    files = list((ROOT / "glasscluster").rglob("*.py"))
    assert len(files) > 400
    names = {p: identifiers(ast.parse(p.read_text(encoding="utf-8"))) for p in files}
    empty = {p.relative_to(ROOT).as_posix(): names[p] & EMPTY_NAMES for p in files}
    assert {path: words for path, words in empty.items() if words} == OPTION


def test_the_glossary_says_what_replaced_each_retired_word():
    gone = (DOCS / "glossary.md").read_text(encoding="utf-8").partition("## Words that went")[2]
    left = [line.split("|")[1] for line in gone.splitlines() if line.startswith("| ")]
    assert not [word for word in RETIRED - {"played"} if not any(word in column for column in left)]
