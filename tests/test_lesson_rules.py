"""The rules of docs/lessons.md, held for every lesson; and each rule, broken on purpose.

`pytest tests/test_lesson_rules.py -k B3` says what one lesson lacks. A lesson that does not follow a rule yet
stands in NOT_YET; it fails there as soon as it does, so that the lists only get shorter.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lesson_rules import (
    FROM_TEXTS,
    OF_A_RUN,
    answer_in_range,
    chinese_sources,
    code_ran,
    figures_drawn,
    naked,
    own_story,
    rows_held,
    unexplained,
    watching,
)
from typer.testing import CliRunner

from glasscluster import Cluster
from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.commands.app import app
from glasscluster.scenarios.beats import Prediction
from glasscluster.scenarios.in_code import excerpt
from glasscluster.scenarios.lesson import LESSONS, find_lesson, read_lesson
from glasscluster.scenarios.new_lesson import new_lesson
from glasscluster.strategies.pipeline.schedules import gpipe
from glasscluster.visualize.page.code import highlighted
from glasscluster.visualize.page.gallery import GalleryCard, write_gallery
from glasscluster.visualize.page.story import story_of

NOT_YET: dict[str, str] = {}  # rule: the lessons that do not follow it yet


def not_yet(rule: str) -> set[str]:
    return set(NOT_YET.get(rule, "").split())


@pytest.mark.parametrize("rule", FROM_TEXTS)
@pytest.mark.parametrize("id_", list(LESSONS))
def test_a_lesson_s_texts_follow_the_rules(id_, rule):
    found = FROM_TEXTS[rule](find_lesson(id_))
    if id_ in not_yet(rule):
        assert found, f"{id_} follows {rule}: take it off NOT_YET"
    else:
        assert not found, "\n".join(found)


EACH = [pytest.param(id_, marks=pytest.mark.xdist_group(f"lesson {id_}")) for id_ in LESSONS]


@pytest.mark.parametrize("rule", OF_A_RUN)
@pytest.mark.parametrize("id_", EACH)
def test_a_lesson_s_run_follows_the_rules(id_, rule, labs):
    found = OF_A_RUN[rule](find_lesson(id_), labs(id_))
    if id_ in not_yet(rule):
        assert found, f"{id_} follows {rule}: take it off NOT_YET"
    else:
        assert not found, "\n".join(found)


# ---- each rule, broken on purpose --------------------------------------------------------------------------
def broken(id_: str, change: Any) -> Any:
    """A lesson whose text.toml was changed."""
    taught = find_lesson(id_)
    content = deepcopy(taught.texts.content)
    change(content)
    texts = replace(taught.texts, content=content)
    follow_ups = tuple(
        replace(asked, answer=asked.answer if "answer" in table else None, lesson=table.get("lesson"))
        for asked, table in zip(taught.card.follow_ups, content["card"]["follow_ups"], strict=True)
    )
    formula = replace(taught.formula, text=Said(**content["formula"]["text"]))
    return replace(taught, texts=texts, formula=formula, card=replace(taught.card, follow_ups=follow_ups))


def typed_number(content: dict[str, Any]) -> None:
    content["card"]["short"]["en"] = content["card"]["short"]["en"].replace("{ratio:.2f}", "3.88")


def exponent_without_row(content: dict[str, Any]) -> None:
    del content["card"]["long"]["row"]


def direction_in_a_point(content: dict[str, Any]) -> None:
    content["explain"]["points"][0]["zh"] = "访存减半。"


def prediction_without_data(content: dict[str, Any]) -> None:
    content["ask"]["ratio"]["en"] = "How many times less does the tiled version move?"


def prediction_without_range(content: dict[str, Any]) -> None:
    del content["ask"]["ratio"]["range"]


def follow_up_without_answer(content: dict[str, Any]) -> None:
    del content["card"]["follow_ups"][0]["answer"]


def code_that_is_not_there(content: dict[str, Any]) -> None:
    content["code"][0]["of"] = "glasscluster.model.kernels.flash.algorithm:forwards"


def code_too_long(content: dict[str, Any]) -> None:
    del content["code"][0]["from"]


def symbol_unexplained(content: dict[str, Any]) -> None:
    content["formula"]["text"]["en"] += " + αM"


def plan_with_a_gap(content: dict[str, Any]) -> None:
    content["plan"][1]["minutes"] = "6-12"


def plan_of_a_figure_that_is_not_there(content: dict[str, Any]) -> None:
    content["plan"][2]["en"] = "Look at {figure:element}."


def plan_with_no_such_option(content: dict[str, Any]) -> None:
    for lang in ("en", "zh"):
        content["plan"][3][lang] = "{option:heads=4}"


def plan_in_one_language(content: dict[str, Any]) -> None:
    content["plan"][3]["zh"] = "试一试。"


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("numbers", typed_number),
        ("numbers", exponent_without_row),
        ("numbers", direction_in_a_point),
        ("prediction", prediction_without_data),
        ("prediction", prediction_without_range),
        ("follow_ups", follow_up_without_answer),
        ("code", code_that_is_not_there),
        ("code", code_too_long),
        ("symbols", symbol_unexplained),
        ("plan", plan_with_a_gap),
        ("plan", plan_of_a_figure_that_is_not_there),
        ("plan", plan_with_no_such_option),
        ("plan", plan_in_one_language),
    ],
)
def test_each_rule_fails_a_lesson_that_breaks_it(rule, change):
    assert not FROM_TEXTS[rule](find_lesson("B3"))
    assert FROM_TEXTS[rule](broken("B3", change))


def test_a_constant_with_its_source_may_be_typed_in_and_without_one_may_not():
    def constant(content: dict[str, Any], **source: str) -> None:
        typed_number(content)
        content["constants"] = [{"value": "3.88", **source}]

    assert not FROM_TEXTS["numbers"](broken("B3", lambda c: constant(c, source="2205.14135, table 1")))
    assert FROM_TEXTS["numbers"](broken("B3", constant))


def test_a_paper_without_a_title_is_found(tmp_path):
    folder = new_lesson("h3_no_title", tmp_path)
    text = (folder / "text.toml").read_text(encoding="utf-8")
    (folder / "text.toml").write_text(text.replace("Patarasuk-Yuan 2009", "2301.99999"), encoding="utf-8")
    assert FROM_TEXTS["sources"](read_lesson(folder)) == ["2301.99999 has no title in base/sources.toml"]


@pytest.mark.xdist_group("lesson B3")
def test_each_rule_of_a_run_fails_a_run_that_breaks_it(labs):
    taught, lab = find_lesson("B3"), labs("B3")
    idle = SimpleNamespace(ran={}, story=lab.story[:2], figures=[], all_checks=[])
    row = replace(lab.all_checks[0], source="one device, other batches", unit="furlongs")
    assert chinese_sources(taught, SimpleNamespace(all_checks=[row])) == [
        "'one device, other batches' is English: ['one', 'device', 'other', 'batches']",
        "the unit 'furlongs' has no Chinese",
    ]
    assert code_ran(taught, idle)
    assert own_story(taught, idle)
    assert rows_held(taught, idle)
    assert figures_drawn(taught, idle)
    asked = lab.prompt
    for wrong in (
        replace(asked, answer=asked.high + 1),
        replace(asked, unit=Said("×", "×"), text=Said("How many users fit?", "？")),
        replace(asked, low=None, high=None),
    ):
        assert answer_in_range(taught, SimpleNamespace(prompt=wrong))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It moves 3.9 times less, 1,024 bytes at 75 %.", ["3.9", "1,024", "75"]),
        ("在 B=128、d=64 时为 4 倍", ["128", "64", "4"]),
        ("2⌈N/B⌉Nd + N, (p−1)/(m+p−1), 12h² + 13h, 1/√L", []),
        ("1F1B, ZeRO-3, GPT-2, FP16, Eq 7, 2205.14135 (2022), bf16, stage 2 and H100", []),
        ("{ratio:.2f} of {n:,} at 0 or 1", []),
        ("2/3 of 35ms, 80GB, 2e-4", ["2/3", "35ms", "80GB", "2e-4"]),
    ],
)
def test_a_number_is_told_from_a_formula_and_from_a_name(text, numbers):
    assert list(naked(text)) == numbers


def test_symbols_are_told_from_words():
    assert unexplained("tiled 2Nd + 2⌈N/B⌉Nd + N of a head", {"N", "d", "B"}) == []
    assert unexplained("Σ(f_s+b_s) + (m−1)(max f_s) + 2(p−1)c", {"f_s", "m", "p"}) == ["b_s", "c"]
    assert unexplained("Post-LN O(d √ln d); (end_{i−1}, S/β)", {"d", "S"}) == ["β"]


def test_an_excerpt_is_found_by_name_and_its_faults_are_named(tmp_path):
    def cut(of: str, *ends: str) -> Any:
        return excerpt(of, LESSONS["B3"], Said("", ""), *ends)

    of = "glasscluster.strategies.pipeline.schedules.gpipe:schedule"
    shown = cut(of)
    assert shown.path == "glasscluster/strategies/pipeline/schedules/gpipe.py"
    assert shown.text.splitlines()[0] == '@scheduled("gpipe", kind=ONE, place=10)'
    assert cut(of, "ranks =", "return").text.splitlines()[0].startswith("ranks = ")
    assert cut("program:program", "q, k, v", "moved, sizes_made").path.endswith(
        "b3_flash_attention_io/program.py"
    )
    for wrong, rule in (
        (("glasscluster.model.gpt:Blok",), "nearest valid choice is Block"),
        (("glasscluster.model.gtp:Block",), "no module"),
        ((of, "nothing so"), "begins 0"),
        (("glasscluster.model.gpt:Block",), "25 are shown"),
    ):
        with pytest.raises(InputError, match=rule):
            cut(*wrong)


def test_the_tracer_hears_lines_of_the_named_files_alone():
    file = str(Path(gpipe.__file__))
    with watching({file: []}) as ran:
        gpipe.predict_in_flight(4, 8, 0)
    assert set(ran) == {file}
    assert len(ran[file]) == 1


def test_a_new_lesson_follows_the_rules(tmp_path):
    taught = read_lesson(new_lesson("h2_my_subject", tmp_path))
    for rule, holds in FROM_TEXTS.items():
        assert not holds(taught), rule


# ---- the answer stays closed -------------------------------------------------------------------------------
def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["run", *words])


def test_the_terminal_shows_the_question_and_keeps_the_answer_until_it_is_asked_for(tmp_path):
    closed = run("B3", "--n", "256", "--out", str(tmp_path / "a"))
    taught = find_lesson("B3")
    assert taught.question.en in closed.stdout
    assert "--guess NUMBER" in closed.stdout
    assert "0.1…100" in closed.stdout
    opened = run("B3", "--n", "256", "--guess", "4", "--out", str(tmp_path / "b"))
    only_opened = ("You said 4", "less traffic", "log-sum-exp", "scores.amax", taught.card.question.en)
    for said in only_opened:
        assert said in opened.stdout
        assert said not in closed.stdout
    assert "algorithm.py:" in opened.stdout


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["B3", "--guess", "1000"], "between 0.1 and 100 times less"),
        (["E4", "--guess", "-5"], "between 0 and 100"),
        (["tour", "--guess", "3"], "asks nothing"),
        (["tour", "--answer"], "asks nothing"),
    ],
)
def test_a_guess_that_cannot_be_is_refused_before_anything_runs(words, rule):
    refused = run(*words)
    assert isinstance(refused.exception, InputError)
    assert rule in str(refused.exception)


def test_a_bound_may_be_a_blank_and_is_judged_when_it_is_known():
    asked = Prediction(Said("", ""), 3.0, Said("layers", "层"), 1, 24)
    assert asked.judged(4).en == "You said 4 layers; it was 3 layers."
    with pytest.raises(InputError, match="between 1 and 24"):
        asked.judged(25)


def test_the_gallery_shows_the_question_and_not_what_was_found(tmp_path):
    card = GalleryCard(
        "B3",
        Said("Title", "题"),
        Said("a", "甲"),
        Said("How much?", "多少？"),
        Said("Why?", "为什么？"),
        (),
        Said("Four times.", "四倍。"),
        "PASS",
        Said("1", "1"),
        "",
        "x",
    )
    text = write_gallery([card], tmp_path).read_text(encoding="utf-8")
    assert "How much?" in text
    assert '<p class="came-out">' in text  # closed until somebody asks: tests/visualize/test_gallery.py


@pytest.mark.xdist_group("lesson B3")
def test_the_page_says_what_its_marks_mean_and_escapes_its_code(labs, tmp_path):
    page = labs("B3").write(tmp_path).read_text(encoding="utf-8")
    for said in (
        "Dao et al.: FlashAttention: Fast",
        "X, exact",
        "rows of a tile",
        "一块的行数",
        "glass run B2",
    ):
        assert said in page, said
    assert '<i class="k">else</i>:' in page
    assert '<i class="k">if</i> how.window' in page
    assert highlighted('x = "<b>" # <i>\n', 1, 1) == (
        'x = <i class="s">&quot;&lt;b&gt;&quot;</i> <i class="c"># &lt;i&gt;</i>'
    )


def test_a_plan_is_printed_with_what_it_names(tmp_path):
    file = tmp_path / "plan.html"
    done = CliRunner().invoke(app, ["lessons", "--plan", "b3", "--out", str(file), "--json"])
    assert done.exit_code == 0, done.output
    said = " ".join(beat["en"] for beat in json.loads(done.stdout)["plan"])
    for named in (
        "“Elements through slow memory”",
        "“tiled, N = …”",
        "glass run B3 --d 128",
        "Expect to hear",
    ):
        assert named in said
    assert "glass run B3 --d 128" in file.read_text(encoding="utf-8")
    assert "{" not in said


def test_no_bubble_is_told_where_nothing_is_pipelined():
    def pass_on(gpu, axis):
        """Rank 1 works when rank 0 has, and rank 0 waits for it."""
        comm, x = gpu.make_mesh({axis: 2})[axis], torch.ones(64, 64)
        for turn in range(2):
            if gpu.rank == turn:
                comm.isend(x @ x, 1 - turn).wait()
            else:
                comm.irecv(x, turn).wait()

    alone, piped = (Cluster("classroom", 2).run(pass_on, axis) for axis in ("dp", "pp"))
    told = [" ".join(step.text.en for step in story_of(x, x.timeline)) for x in (alone, piped)]
    assert "bubble" not in told[0]
    assert "bubble" in told[1]


@pytest.mark.browser
@pytest.mark.xdist_group("lesson B3")
def test_the_page_refuses_a_guess_that_cannot_be(labs, tmp_path, visit):
    page = visit(labs("B3").write(tmp_path), 1360)
    page.fill("#guess", "30000")
    page.press("#guess", "Enter")
    assert "100" in page.inner_text("#verdict")
    assert not page.is_visible(".card")
    page.fill("#guess", "4")
    page.press("#guess", "Enter")
    assert page.is_visible(".card")
    assert not page.is_visible(".follow-ups details p")
    page.click(".follow-ups summary")
    assert page.is_visible(".follow-ups details p")
    assert page.is_visible("details.code pre")
    assert page.problems == []
