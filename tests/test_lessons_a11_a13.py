"""Lessons about positions and about a cache in training: every row can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glasscluster.model.kernels import rope
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.a11_positions_compared import program as a11
from glasscluster.sim.recording.graph import ExecutionGraph


def failed(id_: str, **options: Any) -> set[str]:
    taught = taught_lesson(id_)
    rows = perform(taught, Lab(taught, "threads", taught.hardware), options).checks
    return {row.name.en for row in rows if row.verdict == "failed"}


# ---- A11 ---------------------------------------------------------------------------------------------------
AS_MEASURED = {
    "sinusoidal": [1.3] + [2.4] * 7,
    "relative": [1.1] + [1.4] * 7,
    "alibi": [1.25] * 8,
    "rope": [1.0, 1.1] + [2.3] * 6,
}
FORM = "linear attention, {}: matrix of scores less the form without one, largest"
SHIFTED = "{}: largest change of a score when all positions shift by 1000"


@pytest.fixture
def trained(monkeypatch):
    """The GPTs are left out: what is tested is the lesson's own rows."""
    monkeypatch.setattr(a11, "beyond", lambda kind, *_: AS_MEASURED[kind])


def test_a_rotation_that_is_none_and_a_bias_by_place_fail_the_rows_of_relative_positions(
    trained, monkeypatch
):
    tables = rope._tables
    with monkeypatch.context() as patch:
        patch.setattr(rope, "_tables", lambda *how: (tables(*how)[0], tables(*how)[1] * 1.001))
        names = {"RoPE", "decay and RoPE (RetNet)"}
        assert failed("A11") == {FORM.format(x) for x in names} | {SHIFTED.format("RoPE: q, k rotated")}
    honest = a11.four_terms
    monkeypatch.setattr(a11, "four_terms", lambda kind, at, head: honest(kind, at, head) + 1e-9 * at)
    kinds = ("Shaw: vector on keys", "T5: table of biases", "ALiBi: slope", "RoPE: q, k rotated")
    assert failed("A11") == {SHIFTED.format(kind) for kind in kinds}


def test_tables_that_do_not_move_fail_the_rows_of_absolute_positions(trained, monkeypatch):
    honest = a11.four_terms
    monkeypatch.setattr(a11, "four_terms", lambda kind, at, head: honest(kind, at - at[0], head))
    kinds = ("learned, added", "sinusoidal, added", "embeddings rotated")
    assert failed("A11") == {
        f"{kind}: whether a shift by 1000 changes a score by more than 0.1 (1: yes)" for kind in kinds
    }


def test_cosines_that_are_too_long_and_other_blocks_fail_the_rows_of_sines(trained, monkeypatch):
    sines, part = a11.sinusoidal, a11.relative_part
    own = "p_m · p_n of sines: largest difference at the same distance"
    kept = "p_m A p_n with the relative part of W_q W_kᵀ: largest difference at the same distance"
    share = "share of a random W_q W_kᵀ that keeps sines relative"

    def longer(*size: int) -> torch.Tensor:
        table = sines(*size)
        table[:, 1::2] *= 1.001
        return table

    with monkeypatch.context() as patch:
        patch.setattr(a11, "sinusoidal", longer)
        assert failed("A11") == {own, kept}
    with monkeypatch.context() as patch:
        patch.setattr(a11, "relative_part", lambda form: part(form) + 1e-6)
        assert failed("A11") == {kept}
    monkeypatch.setattr(a11, "relative_part", lambda form: 1.2 * part(form))
    assert failed("A11") == {share}


def test_a_state_that_steps_too_late_and_another_table_fail_the_rows_of_linear_attention(
    trained, monkeypatch
):
    def late(q: Any, k: Any, v: Any, step: Any) -> Any:
        state, out = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype), []
        for token in range(len(q)):
            state = step(state + k[token, :, None] @ v[token, None])
            out.append(q[token, None] @ state)
        return torch.cat(out)

    with monkeypatch.context() as patch:
        patch.setattr(a11, "recurrent", late)
        assert failed("A11") == {FORM.format(x) for x in ("decay", "RoPE", "decay and RoPE (RetNet)")}
    convolution, bias, buckets = a11.by_convolution, a11.alibi, a11.buckets
    with monkeypatch.context() as patch:
        patch.setattr(a11, "by_convolution", lambda q, k, v, factor: convolution(q, k, v, factor.roll(1)))
        patch.setattr(a11, "alibi", lambda *size: 1.01 * bias(*size))
        assert failed("A11") == {
            FORM.format("T5's table"),
            "softmax with ALiBi's bias less e^score times a decay, normalised, largest",
        }
    monkeypatch.setattr(a11, "buckets", lambda s, count, far, both: buckets(s, count, 2 * far, both))
    assert failed("A11") == {"states that make the factor of m − n, T5's table"}


def test_one_flop_more_and_gpts_that_behave_otherwise_fail_their_rows(monkeypatch):
    build = ExecutionGraph.build.__func__

    def more(cls: Any, *args: Any) -> ExecutionGraph:
        graph = build(cls, *args)
        graph.flops[graph.flops > 0] += 1
        return graph

    costs = {f"FLOPs as a {form}, n = {n}" for form in ("matrix of scores", "state") for n in (32, 64, 128)}
    flat = {
        "sinusoidal: seeds of 2 that lose more than 0.2 nats on the tokens behind the first 16",
        "RoPE: seeds of 2 that lose more than 0.5 nats at 8 × 16 tokens",
        "seeds of 2 in which ALiBi has a higher loss than RoPE on the first 16 tokens",
    }
    with monkeypatch.context() as patch:
        patch.setattr(ExecutionGraph, "build", classmethod(more))
        patch.setattr(a11, "beyond", lambda *_: [1.0] * 8)
        assert failed("A11") == costs | flat
    monkeypatch.setattr(a11, "beyond", lambda kind, *_: [1 + (kind == "alibi")] + [3.0] * 7)
    assert failed("A11") == {
        "RoPE: seeds of 2 that lose less than 0.5 nats on the tokens behind the first 16",
        "ALiBi: seeds of 2 whose loss at 8 × 16 tokens is within 0.3 nats",
    }
