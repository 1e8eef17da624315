"""A lesson: a scenario with six beats. Question, predict, run, see, check, explain.

The decorator holds what does not depend on the run: the question, the formula and its match class, the misconception
it kills, the interview card. The function runs real programs or plans, asks for a prediction (`lab.ask`), points at
what to see (`lab.tell`, `lab.figure`), states its checks (`lab.check`, at least one) and explains (`lab.explain`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from glasscluster.scenarios.lab import REGISTRY, Scenario, Text

# id -> module in scenarios/lessons/, in the order of the curriculum
LESSONS: dict[str, str] = {
    "L0": "l0_first_run",
    "A1": "a1_attention_by_hand",
    "A2": "a2_masks",
    "A3": "a3_key_value_cache",
    "A4": "a4_rope",
    "A5": "a5_where_the_norm_goes",
    "A6": "a6_bert_vs_gpt",
    "A7": "a7_bpe_by_hand",
    "A8": "a8_data_mix",
    "A9": "a9_adding_positions",
    "B1": "b1_roofline",
    "B2": "b2_online_softmax",
    "B3": "b3_flash_attention_io",
    "B4": "b4_activation_memory",
    "B5": "b5_recompute",
    "B6": "b6_mixed_precision",
    "B7": "b7_flops_and_mfu",
    "C1": "c1_alpha_beta",
    "C2": "c2_parameter_server",
    "C3": "c3_ring_all_reduce",
    "C4": "c4_collective_algebra",
    "C5": "c5_ring_tree_doubling",
    "C6": "c6_hierarchy",
    "C7": "c7_deadlock_clinic",
    "D1": "d1_dp_equals_one_gpu",
    "D2": "d2_buckets_and_overlap",
    "D3": "d3_zero_memory",
    "D4": "d4_zero_traffic",
    "D5": "d5_critical_batch",
    "D6": "d6_stragglers",
    "E1": "e1_column_then_row",
    "E2": "e2_sequence_parallel",
    "E3": "e3_vocab_parallel_loss",
    "E4": "e4_gpipe_bubble",
    "E5": "e5_1f1b_memory",
    "E6": "e6_ping_pong_tax",
    "E7": "e7_interleaving",
    "E8": "e8_zero_bubble",
    "E9": "e9_ring_and_ulysses",
    "E10": "e10_moe_all_to_all",
    "E11": "e11_layout_puzzle",
    "F1": "f1_loss_blow_up",
    "F3": "f3_eval_harness",
    "F4": "f4_rlhf_anatomy",
    "G1": "g1_prefill_and_decode",
    "G2": "g2_continuous_batching",
    "G3": "g3_speculative_decoding",
}


@dataclass(frozen=True)
class Formula:
    """A row of the formula contract: id, the formula as text, its match class and its source."""

    id: str
    text: str
    match: Literal["X", "V", "T"]
    source: str


@dataclass(frozen=True)
class Card:
    """The interview card; `lab.own_number` adds the number of your own run."""

    question: Text
    short: Text  # the 30-second answer
    long: Text  # the 2-minute answer
    follow_ups: tuple[Text, ...]


@dataclass(frozen=True)
class Lesson(Scenario):
    """A scenario with the six beats."""

    id: str = ""
    topic: Text = ("", "")
    question: Text = ("", "")
    kills: Text = ("", "")
    formula: Formula = field(default_factory=lambda: Formula("", "", "X", ""))
    card: Card = field(default_factory=lambda: Card(("", ""), ("", ""), ("", ""), ()))


def lesson(
    id_: str,
    *,
    title: Text,
    topic: Text,
    question: Text,
    formula: Formula,
    kills: Text,
    card: Card,
    backend: str = "threads",
    hardware: str = "classroom",
) -> Callable[..., Any]:
    """Make a function a lesson, registered under its id."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        REGISTRY[id_] = Lesson(id_, function, title, backend, hardware, id_, topic, question, kills, formula, card)
        return function

    return register


def find_lesson(id_: str) -> Lesson:
    """A built-in lesson by id."""
    import_module(f"glasscluster.scenarios.lessons.{LESSONS[id_]}")
    found = REGISTRY[id_]
    assert isinstance(found, Lesson)
    return found


def teaching_plan(taught: Lesson) -> list[tuple[str, Text]]:
    """Fifty minutes: (minutes, what happens)."""
    (en, zh), formula, run = taught.question, taught.formula.text, f"glass run {taught.id}"
    see = (
        "Timeline and figures: find where the time or the bytes went; change one option.",
        "看时间线与图：找出时间或字节去了哪里；改一个选项。",
    )
    return [
        ("0-5", (f"Ask: {en} Nobody answers aloud.", f"提问：{zh} 先不要说出答案。")),
        ("5-10", ("Everyone writes a number and opens the report with it.", "每人写下一个数字，带着它打开报告。")),
        ("10-15", (f"Run it in front of the class: {run}", f"当堂运行：{run}")),
        ("15-28", see),
        ("28-36", (f"Ledger: derive {formula} and find the row.", f"账本：推导 {formula}，找到对应的一行。")),
        ("36-42", (f"Kill the misconception: {taught.kills[0]}", f"破除误解：{taught.kills[1]}")),
        ("42-50", (f"In pairs, the interview card: {taught.card.question[0]}", f"两人一组练习面试卡：{taught.card.question[1]}")),
    ]
