"""The rules of docs/lessons.md, held for every lesson; and each rule, broken on purpose.

`pytest tests/test_lesson_rules.py -k B3` says what one lesson lacks. A lesson that does not follow a rule yet
stands in NOT_YET; it fails there as soon as it does, so that the lists only get shorter.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lesson_rules import (
    FROM_TEXTS,
    OF_A_RUN,
    answer_in_range,
    code_ran,
    figures_drawn,
    naked,
    own_story,
    rows_held,
    unexplained,
    watching,
)

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.scenarios.in_code import excerpt
from glasscluster.scenarios.lesson import LESSONS, find_lesson, read_lesson
from glasscluster.scenarios.new_lesson import new_lesson
from glasscluster.strategies.pipeline.schedules import gpipe

NOT_YET: dict[str, str] = {
    "follow_ups": """
        L0

        A1 A2 A3 A4 A6 A7 A8 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C4 C5 C6 C7

        D2 D3 D4 D5 D6

        E1 E2 E3 E5 E6 E7 E8 E9 E10 E11

        F1 F3 F4

        G1 G2 G3
    """,
    "code": """
        L0

        A1 A2 A3 A4 A6 A7 A8 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C4 C5 C6 C7

        D2 D3 D4 D5 D6

        E1 E2 E3 E5 E6 E7 E8 E9 E10 E11

        F1 F3 F4

        G1 G2 G3
    """,
    "prediction": """
        L0

        A1 A2 A3 A4 A6 A7 A8 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C4 C5 C6 C7

        D2 D3 D4 D5 D6

        E1 E2 E3 E5 E6 E7 E8 E9 E10 E11

        F1 F3 F4

        G1 G2 G3
    """,
    "numbers": """
        A1 A2 A3 A4 A6 A7 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C5 C6 C7

        D2 D3 D4 D5 D6

        E1 E2 E3 E6 E7 E8 E9 E10 E11

        F3 F4

        G1 G2 G3
    """,
    "symbols": """
        L0

        A1 A2 A3 A4 A6 A7 A8 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C4 C5 C6

        D2 D3 D4 D5 D6

        E1 E2 E3 E5 E6 E7 E8 E9 E10 E11

        F1 F3 F4

        G1 G3
    """,
    "plan": """
        L0

        A1 A2 A3 A4 A6 A7 A8 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C4 C5 C6 C7

        D2 D3 D4 D5 D6

        E1 E2 E3 E5 E6 E7 E8 E9 E10 E11

        F1 F3 F4

        G1 G2 G3
    """,
    "answer_in_range": """
        L0

        A1 A2 A3 A4 A6 A7 A8 A9

        B1 B2 B4 B5 B6 B7

        C1 C2 C3 C4 C5 C6 C7

        D2 D3 D4 D5 D6

        E1 E2 E3 E5 E6 E7 E8 E9 E10 E11

        F1 F3 F4

        G1 G2 G3
    """,
    "own_story": """
        B2

        C1 C3

        D2 D3 D4

        E1
    """,
}


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
    formula = replace(taught.formula, text=content["formula"]["text"])
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
    content["formula"]["text"] += " + αM"


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


@pytest.mark.xdist_group("lesson B3")
def test_each_rule_of_a_run_fails_a_run_that_breaks_it(labs):
    taught, lab = find_lesson("B3"), labs("B3")
    idle = SimpleNamespace(ran={}, story=lab.story[:2], figures=[], all_checks=[])
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
