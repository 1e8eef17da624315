"""Lessons about positions and about a cache in training: every row can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glasscluster.base.errors import InputError
from glasscluster.model.kernels import rope
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.a11_positions_compared import program as a11
from glasscluster.scenarios.lessons.a13_cache_in_training import program as a13
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


# ---- A13 ---------------------------------------------------------------------------------------------------
KEPT = "cache kept, chunks of {}: gradient's distance from one pass's, largest of all weights"
TOKEN_BY_TOKEN = "losses token by token through a cache less those of one pass, summed, largest"
RELAY = "dK and dV handed back, chunks of 8: gradient's distance from one pass's, largest"
PARTS = "gradient with constants plus that through the cache, chunks of 8: distance from the whole, largest"
CUT = "constants in one pass and chunk by chunk, 8 tokens each: distance of the gradients, largest"
LAST = "constants, last layer's {}: gradient lost"
LOSES = "constants, {} of layer {}: whether it loses more than 0.05 of its gradient (1: yes)"
PAIRS = "pairs of 32 tokens in which a gradient reaches the key's value, chunks of 8"
WHOLE = (
    "whether one pass trains to a lower loss than constants in chunks of one token, mean of 2 seeds (1: yes)"
)
BETTER = (
    "whether constants in chunks of one token train to a lower loss than chunks that see only themselves, "
    "mean of 2 seeds (1: yes)"
)
COSTS = {
    *(
        f"FLOPs of products with weights, {way}"
        for way in ("one pass over 32 tokens", "32 steps through a cache")
    ),
    "FLOPs of scores and their sums over V, one pass over 32 tokens, the whole square",
    "FLOPs of scores and their sums over V, 32 steps through a cache",
}
LAUNCHES = {
    "kernels that multiply by weights, one pass",
    "kernels that multiply by weights, 32 steps through a cache",
}


@pytest.fixture
def as_trained(monkeypatch):
    """The GPTs are left out: what is tested is the lesson's own rows."""
    losses = dict(zip(map(id, a13.WAYS.values()), (1.1, 1.2, 1.2, 1.3, 1.7), strict=True))
    monkeypatch.setattr(a13, "trained", lambda keep, *_: losses[id(keep)])


def test_a_cache_that_cuts_or_keeps_when_it_should_not_fails_the_rows_of_gradients(as_trained, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(a13, "kept", a13.constant)
        assert failed("A13") == {KEPT.format(1), KEPT.format(8)}
    monkeypatch.setattr(a13, "constant", lambda x: x)
    loses = {LOSES.format(name, 1) for name in a13.NAMES.values()}
    assert failed("A13") == {PARTS, CUT, PAIRS, *loses, LOSES.format("W_k", 2), LOSES.format("W_v", 2)}


def test_a_relay_that_forgets_and_queries_that_are_cut_fail_their_rows(as_trained, monkeypatch):
    relay, core = a13.relay, a13.Cache.core
    with monkeypatch.context() as patch:
        patch.setattr(a13, "relay", lambda *how: (relay(*how)[0], [0.999 * part for part in relay(*how)[1]]))
        assert failed("A13") == {RELAY, PARTS}
    monkeypatch.setattr(
        a13.Cache, "core", lambda self, f, q, k, v: core(self, f, (q + self.hand(q)) / 2, k, v)
    )
    assert failed("A13") == {LAST.format("W_q"), CUT, RELAY, PARTS}


def test_a_query_that_sees_the_next_token_and_another_chunk_fail_their_rows(as_trained, monkeypatch):
    cut, core = a13.Cut.__init__, a13.causal

    def peeks(q: Any, k: Any, v: Any) -> Any:
        return core(q, k, v) + 1e-9 * v[:, :, -1:]

    with monkeypatch.context() as patch:
        patch.setattr(a13, "causal", peeks)
        assert failed("A13") >= {TOKEN_BY_TOKEN, KEPT.format(1), KEPT.format(8)}
    monkeypatch.setattr(a13.Cut, "__init__", lambda self, size, seen=True: cut(self, 2 * size, seen))
    assert failed("A13") == {CUT}


def test_work_done_twice_and_keys_that_do_not_follow_the_rate_fail_their_rows(monkeypatch):
    honest, build = a13.program, ExecutionGraph.build.__func__

    def more(cls: Any, *args: Any) -> ExecutionGraph:
        graph = build(cls, *args)
        graph.flops[graph.flops > 0] += 1
        return graph

    slower = {
        f"{name}: whether the steps take longer than one pass (1: yes)" for name in ("classroom", "dgx-h100")
    }
    with monkeypatch.context() as patch:
        patch.setattr(ExecutionGraph, "build", classmethod(more))
        patch.setattr(a13, "step_time", lambda *_: 1.0)
        patch.setattr(a13, "trained", lambda *_: 1.0)
        assert failed("A13") == COSTS | slower | {WHOLE, BETTER}
    monkeypatch.setattr(a13, "program", lambda gpu, n: (honest(gpu, n), honest(gpu, n)))
    monkeypatch.setattr(a13, "trained", lambda keep, *_: 2.0 - (keep is a13.WAYS["whole"]))
    monkeypatch.setattr(a13, "stale", lambda *_: [0.06, 0.05])
    stale = "staleness of cached keys after one step, learning rate of 1e-3 over that of 1e-5"
    assert failed("A13") == COSTS | LAUNCHES | {stale, BETTER}


@pytest.mark.parametrize(
    ("id_", "options", "nearest"),
    [("A13", {"chunk": 7}, 8), ("A13", {"chunk": 32}, 16), ("A11", {"n": 8}, 32), ("A11", {"h": 33}, 32)],
)
def test_a_size_that_cannot_be_is_refused_with_the_nearest(id_, options, nearest):
    with pytest.raises(InputError, match=f"nearest valid choice is {nearest}"):
        failed(id_, **options)
