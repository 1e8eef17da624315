"""Counted bytes are the papers' formulas, written out here once more in their symbols. Change one size and it
shows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import run_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import build, every

from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.sim.recording.events import CATEGORIES, COLLECTIVE, COMPUTE, HOST, PURPOSES, SEND
from glasscluster.sim.run import Cluster
from glasscluster.strategies.data.parameters import GatheredParameters
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan

RANKS = range(2, 9)


# ---- Eq 9, Eq 10: collectives of any size ------------------------------------------------------------------
def collectives(gpu, n: int, src: int):
    """Every collective on n integers; returns what this rank ended with."""
    base = torch.arange(n, dtype=torch.float64)
    reduced, scattered, gathered, cast = (
        base * (gpu.rank + 1),
        base * (gpu.rank + 1),
        torch.zeros(n, dtype=torch.float64),
        base * gpu.rank,
    )
    gpu.comm.all_reduce(reduced, label="all_reduce")
    gpu.comm.reduce_scatter(scattered, label="reduce_scatter")
    gpu.comm.chunk(gathered).copy_(gpu.comm.chunk(base))
    gpu.comm.all_gather(gathered, label="all_gather")
    gpu.comm.broadcast(cast, src=src, label="broadcast")
    return reduced, gpu.comm.chunk(scattered).clone(), gathered, cast


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(0, 41), st.data())
def test_rings_of_any_size_also_empty_give_the_right_values_and_send_2_n_minus_1_s(size, n, data):
    src = data.draw(st.integers(0, size - 1))
    run = Cluster("classroom", size, "threads").run(collectives, n, src)
    base, s = torch.arange(n, dtype=torch.float64), 8 * n
    for rank, (reduced, mine, gathered, cast) in enumerate(run.results):
        assert torch.equal(reduced, base * (size * (size + 1) // 2))
        assert torch.equal(mine, torch.tensor_split(base * (size * (size + 1) // 2), size)[rank])
        assert torch.equal(gathered, base)
        assert torch.equal(cast, base * src)
    for label, halves in (("all_reduce", 2), ("reduce_scatter", 1), ("all_gather", 1), ("broadcast", 1)):
        assert sum(run.graph.bytes_sent(label=label)) == halves * (size - 1) * s, label


@pytest.mark.parametrize("n", RANKS)
def test_every_rank_of_a_ring_sends_2_n_minus_1_over_n_when_n_divides(n):
    run = Cluster("classroom", n, "threads").run(collectives, 7 * n, 0)
    assert run.graph.bytes_sent(label="all_reduce") == [2 * (n - 1) * 7 * 8] * n


# ---- Eq 16, Eq 15: data parallel and ZeRO ------------------------------------------------------------------
SHAPE = {"layers": 3, "hidden": 12, "heads": 2, "seq": 5, "vocab": 37}


def sizes() -> tuple[int, int]:
    """Ψ of a block (12h²+13h) and of everything else (tied table, positions, final norm)."""
    h = SHAPE["hidden"]
    return 12 * h * h + 13 * h, (SHAPE["vocab"] + SHAPE["seq"]) * h + 2 * h


def padded(n: int, to: int) -> int:
    return math.ceil(n / to) * to


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("n", RANKS)
def test_dp_and_zero_send_what_f16_says_and_hold_what_f15_says(n, zero):
    m, w = 2, 4
    layer, rest = sizes()
    whole = SHAPE["layers"] * layer + rest
    plan = make_plan(dp=n, zero=zero, global_batch=m * n)
    run = run_plan(plan, make_model("tiny", **SHAPE))
    unit = {
        0: whole,
        1: padded(whole, n),
        2: padded(whole, n),
        3: SHAPE["layers"] * padded(layer, n) + padded(rest, n),
    }[zero]
    gradients = {0: 2, 1: 1, 2: m, 3: m}[zero] * (n - 1) * unit * w
    parameters = {0: 0, 1: 1, 2: 1, 3: 2 * m}[zero] * (n - 1) * unit * w
    assert sum(run.graph.bytes_sent(axis="dp", purpose="gradients")) == gradients
    assert sum(run.graph.bytes_sent(axis="dp", purpose="parameters")) == parameters
    if zero:
        assert run.graph.bytes_sent(axis="dp", purpose="gradients") == [gradients // n] * n
    held = {
        "parameters": w * unit // (n if zero == 3 else 1),
        "gradients": w * unit // (n if zero >= 2 else 1),
        "optimizer": 2 * w * unit // (n if zero >= 1 else 1),
    }
    for result in run.results:
        assert result.state_bytes == held


DIALS = [(1, "sharded", True), (2, "sharded", True), (2, "whole", True)]
DIALS += [(3, accumulate, reshard) for accumulate in ("sharded", "whole") for reshard in (True, False)]


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize(("zero", "accumulate", "reshard"), DIALS)
def test_hybrid_sharding_and_both_dials_send_what_f16_says_inside_groups_and_across_them(
    zero, accumulate, reshard, k
):
    n, m, w, layers = 6, 3, 4, SHAPE["layers"]
    layer, rest = sizes()
    plan = make_plan(dp=n, zero=zero, shard=k, accumulate=accumulate, reshard=reshard, global_batch=m * n)
    run = run_plan(plan, make_model("tiny", **SHAPE), "dry")
    unit = layers * padded(layer, k) + padded(rest, k) if zero == 3 else padded(layers * layer + rest, k)
    groups = n // k
    reductions = m if zero >= 2 and accumulate == "sharded" else 1
    gathers = {1: 1, 2: 1, 3: 2 * m if reshard else m}[zero]
    across = sum(run.graph.bytes_sent(axis="dp", group=GROUP_IDS["replicas"])) if k < n else 0
    assert across == 2 * (groups - 1) * unit * w
    assert (
        sum(run.graph.bytes_sent(axis="dp", purpose="gradients")) - across
        == reductions * groups * (k - 1) * unit * w
    )
    assert sum(run.graph.bytes_sent(axis="dp", purpose="parameters")) == gathers * groups * (k - 1) * unit * w
    for result in run.results:
        assert result.state_bytes == {
            "parameters": w * unit // (k if zero == 3 else 1),
            "gradients": w * unit // (k if zero >= 2 else 1),
            "optimizer": 2 * w * unit // k,
        }
        assert result.most_layers == {True: 2, False: layers}[reshard] * (zero == 3)


@pytest.mark.parametrize(
    ("options", "reduced"),
    [
        ({}, {2}),
        ({"zero": 1}, {2}),
        ({"zero": 2}, {0, 1, 2}),
        ({"zero": 2, "accumulate": "whole"}, {2}),
        ({"zero": 3, "accumulate": "whole"}, {2}),
        ({"overlap": False}, {2}),
    ],
)
def test_only_sharded_gradients_are_reduced_before_the_last_micro_batch(options, reduced):
    graph = run_plan(
        make_plan(dp=2, global_batch=6, bucket=2000, **options), make_model("tiny", **SHAPE), "dry"
    ).graph
    sent = (graph.kind == SEND) & (graph.purpose == PURPOSES.index("gradients"))
    assert set(graph.micro_batch[sent].tolist()) == reduced


@pytest.mark.parametrize("whole", [True, False])
def test_gradients_added_up_whole_cost_the_memory_of_all_of_them(whole):
    plan = make_plan(dp=4, zero=2, global_batch=8, bucket=1000, accumulate="whole" if whole else "sharded")
    run = run_plan(plan, make_model("tiny", **SHAPE), "dry")
    layer, rest = sizes()
    units = run.results[0].units
    assert sum(n for _, n, _ in units) == SHAPE["layers"] * layer + rest
    total, largest = 4 * sum(p for _, _, p in units), 4 * max(p for _, _, p in units)
    log = np.asarray(run.graph.memory[0]["log"])  # clock, category, change, ...
    gradients, buffers = (
        np.cumsum(log[log[:, 1] == CATEGORIES.index(c), 2]) for c in ("gradients", "buffers")
    )
    assert gradients.max(initial=0) == (total if whole else 0)
    assert whole or largest <= buffers.max() < total


OFFLOADED = [
    ("fp32", "adamw", 4, 4, 2),
    ("fp64", "adamw", 8, 8, 2),
    ("bf16", "adamw", 2, 4, 2),
    ("fp32", "sgd", 4, 4, 0),
]


@pytest.mark.parametrize(("precision", "optimizer", "w", "s", "moments"), OFFLOADED)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_an_offloaded_optimizer_holds_nothing_on_the_gpu_and_moves_its_share_once_each_way(
    zero, precision, optimizer, w, s, moments
):
    plan = make_plan(
        dp=2, zero=zero, offload="optimizer", precision=precision, optimizer=optimizer, bucket=3000
    )
    run = run_plan(plan, make_model("tiny", **SHAPE), "dry")
    mine = sum(p for _, _, p in run.results[0].units) // (2 if zero else 1)
    for rank, result in enumerate(run.results):
        assert result.state_bytes["optimizer"] == 0
        assert result.host_bytes == (1 + moments) * s * mine
        assert run.graph.host_bytes("down")[rank] == run.graph.host_bytes("up")[rank] == w * mine
        assert run.graph.host_bytes("update")[rank] == (2 * w + 2 * (1 + moments) * s) * mine
    there = run_plan(plan.model_copy(update={"offload": "none"}), make_model("tiny", **SHAPE), "dry")
    kept = there.results[0].state_bytes["optimizer"]
    assert kept == (moments * s + (s if precision == "bf16" else 0)) * mine
    assert (
        there.peak_memory()[0][0] - run.peak_memory()[0][0] >= kept
    )  # the update's own temporaries are gone too
    assert there.results[0].host_bytes == 0


@pytest.mark.parametrize(("zero", "each"), [(0, 16.0), (1, 4 + 12 / 4), (2, 2 + 14 / 4), (3, 16 / 4)])
def test_mixed_precision_adam_holds_16_bytes_a_parameter_before_sharding(zero, each):
    layer, rest = sizes()
    run = run_plan(
        make_plan(dp=4, zero=zero, precision="bf16"), make_model("tiny", **{**SHAPE, "vocab": 39, "seq": 9})
    )
    whole = SHAPE["layers"] * layer + rest + (2 + 4) * SHAPE["hidden"]
    assert whole % 4 == 0
    assert layer % 4 == 0
    for result in run.results:
        assert sum(result.state_bytes.values()) == each * whole


# ---- Eq 18, Eq 19: tensor parallel -------------------------------------------------------------------------
@pytest.mark.parametrize("t", RANKS)
def test_tensor_parallelism_sends_four_all_reduces_a_layer_and_the_once_per_model_ones(t):
    b, s, layers, m, w = 2, 5, 2, 3, 8
    h = 2 * t
    model = make_model("tiny", layers=layers, hidden=h, heads=t, seq=s, vocab=3 * t)
    plan = make_plan(tp=t, micro_batch=b, global_batch=b * m, precision="fp64")
    graph = run_plan(plan, model).graph
    one = 2 * (t - 1) * b * s * h * w  # an all-reduce of bsh elements, over all ranks (Eq 9)
    tp = (graph.kind == SEND) & (graph.axis == "tp")
    label = np.array([*graph.names, ""])[graph.label]
    assert graph.bytes[tp & (graph.layer >= 0)].sum() == 4 * layers * m * one
    for layer in range(layers):
        for micro in range(m):
            assert graph.bytes[tp & (graph.layer == layer) & (graph.micro_batch == micro)].sum() == 4 * one
    outside = tp & (graph.layer < 0)
    assert graph.bytes[outside & (label == "g forward")].sum() == m * one
    assert graph.bytes[outside & (label == "f backward")].sum() == m * one
    assert (
        graph.bytes[outside & np.char.startswith(label, "cross_entropy")].sum()
        == 3 * m * 2 * (t - 1) * b * s * w
    )
    known = np.isin(label, ["g forward", "f backward", "gradient norm"]) | np.char.startswith(
        label, "cross_entropy"
    )
    assert not (outside & ~known).any()
    if (b * s * h) % t == 0 and (b * s) % t == 0:
        big = tp & (label != "gradient norm")
        assert len(set(np.bincount(graph.rank[big], graph.bytes[big]).tolist())) == 1


def test_a_tensor_parallel_rank_computes_one_t_th_of_the_matrices_flops():
    model = make_model("tiny", layers=2, hidden=32, heads=4, seq=16, vocab=64)
    counted = []
    for t in (1, 2, 4):
        graph = run_plan(make_plan(tp=t, global_batch=2), model).graph
        chosen = (graph.kind == COMPUTE) & (graph.rank == 0) & (graph.phase <= 2)
        counted.append(int(graph.flops[chosen].sum()))
    assert counted[0] == 2 * counted[1] == 4 * counted[2]


# ---- the ledger: every row holds, and each can fail --------------------------------------------------------
@pytest.mark.parametrize("choice", every(3))
def test_every_traffic_and_state_row_of_a_plan_is_exact(choice):
    plan, model = build(choice)
    run = run_plan(plan, model, loss_scale=ScaleRule(initial=1.0))
    rows = accounts.rows(Judged(plan, model, run.graph, run.results, run.timeline))
    assert [r for r in rows if r.verdict == "failed"] == []
    off = {r.key for r in rows if r.verdict == "not applicable"}
    assert off <= {"last_bucket_reduced", "gpipe_makespan", "layers_whole"}
    assert len({r.key for r in rows}) == len(rows)
    assert [r.name for r in rows if r.name.zh == r.name.en] == []
    counted = sum(r.counted for r in rows if "_sent" in r.key)
    scalars = sum(
        sum(run.graph.bytes_sent(axis=a, purpose="scalars")) for a in ("dp", "pp", "tp", "cp", "ep")
    )
    assert counted + scalars == sum(run.graph.bytes_sent())  # no byte is outside the rows


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_gpipe_s_makespan_counts_recomputation_as_a_part_of_backward(recompute):
    plan, model = (
        make_plan(pp=4, schedule="gpipe", global_batch=8, recompute=recompute),
        make_model("tiny", attention="unfused"),
    )
    run = run_plan(plan, model, "dry")
    rows = accounts.rows(Judged(plan, model, timeline=run.timeline))
    assert [r.verdict for r in rows if r.key == "gpipe_makespan"] == ["held"]


PLANS = {
    "dp": {"dp": 3},
    "zero1": {"dp": 2, "zero": 1},
    "zero3": {"dp": 2, "zero": 3},
    "tp": {"tp": 2},
    "sp": {"tp": 2, "dp": 2, "zero": 1, "sequence_parallel": True, "recompute": "full"},
    "pp": {"pp": 2, "schedule": "gpipe"},
    "hybrid": {"dp": 4, "zero": 2, "shard": 2, "global_batch": 8},
    "hybrid 3": {"dp": 4, "zero": 3, "shard": 2, "reshard": False, "global_batch": 8},
    "whole": {"dp": 2, "zero": 2, "accumulate": "whole"},
    "tp overlapped": {"tp": 2, "sequence_parallel": True, "tp_overlap": True},
    "shared heads": {
        "tp": 4,
        "kv_heads": 2,
        "qkv": "separate",
        "sequence_parallel": True,
        "seq": 8,
        "recompute": "full",
    },
    "zigzag": {"cp": 2, "context": "zigzag", "zero": 1, "seq": 8},
    "ulysses": {"cp": 2, "context": "ulysses", "recompute": "selective"},
    "hybrid context": {"cp": 4, "ulysses": 2, "seq": 8},
    "experts": {"dp": 2, "ep": 2, "experts": 4, "zero": 2},
    "experts and tp": {
        "cp": 2,
        "ep": 2,
        "tp": 2,
        "experts": 4,
        "shared_ffn": 8,
        "capacity_factor": 1.0,
        "recompute": "full",
    },
}
MODEL_FIELDS = ("kv_heads", "qkv", "seq", "experts", "shared_ffn", "capacity_factor")


@pytest.mark.parametrize("what", ["one byte more", "one event fewer"])
@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_any_changed_or_dropped_message_fails_exactly_the_row_that_counts_it(options, what):
    shape = {"layers": 2, "hidden": 16, "seq": 6} | {k: v for k, v in options.items() if k in MODEL_FIELDS}
    plan = make_plan(**{"global_batch": 6} | {k: v for k, v in options.items() if k not in MODEL_FIELDS})
    model = make_model("tiny", **shape)
    run = run_plan(plan, model)
    graph, judged = run.graph, Judged(plan, model, run.graph, run.results)

    def bad() -> list[str]:
        return [r.key for r in accounts.rows(judged) if "_sent" in r.key and r.verdict != "held"]

    names = np.array([*graph.names, ""])
    sends = np.flatnonzero((graph.kind == SEND) & (graph.purpose != PURPOSES.index("scalars")))
    for row in sends[:: max(1, len(sends) // 40)].tolist():
        kept = int(graph.bytes[row]), int(graph.kind[row])
        graph.bytes[row], graph.kind[row] = (kept[0] + 1, SEND) if "more" in what else (kept[0], COMPUTE)
        failed = bad()
        graph.bytes[row], graph.kind[row] = kept
        assert len(failed) == 1, (names[graph.label[row]], failed)
    assert not bad()


@pytest.mark.parametrize("op", ["down", "up", "update"])
@pytest.mark.parametrize("what", ["one byte more", "one event fewer"])
def test_any_changed_or_dropped_errand_of_the_host_fails_exactly_its_row(op, what):
    plan, model = (
        make_plan(dp=2, zero=1, offload="optimizer", bucket=3000),
        make_model("tiny", layers=2, hidden=16, seq=6),
    )
    run = run_plan(plan, model)
    judged = Judged(plan, model, run.graph, run.results)
    rows = np.flatnonzero((run.graph.kind == HOST) & (run.graph.op == run.graph.names.index(op)))
    assert len(rows) > 4
    for row in rows.tolist():
        kept = int(run.graph.bytes[row]), int(run.graph.kind[row])
        run.graph.bytes[row], run.graph.kind[row] = (
            (kept[0] + 1, HOST) if "more" in what else (kept[0], COMPUTE)
        )
        failed = [r.key for r in accounts.rows(judged) if r.verdict != "held"]
        run.graph.bytes[row], run.graph.kind[row] = kept
        assert failed == [f"host_{op}"]
    run.results[0].host_bytes -= 1
    assert [r.key for r in accounts.rows(judged) if r.verdict != "held"] == ["host_held"]


def test_one_layer_gathered_too_early_fails_the_row_that_limits_them(monkeypatch):
    plan, model = make_plan(dp=2, zero=3), make_model("tiny", layers=4, hidden=16, seq=6)
    honest = GatheredParameters.gather

    def gather(self, unit, later):
        honest(self, unit, later)
        for another in later[1:2]:
            self.launch(another)

    for eager in (False, True):
        if eager:
            monkeypatch.setattr(GatheredParameters, "gather", gather)
        rows = accounts.rows(Judged(plan, model, results=run_plan(plan, model, "dry").results))
        assert [r.key for r in rows if r.verdict != "held"] == ["layers_whole"] * eager


def test_layers_kept_whole_in_several_chunks_of_a_rank_are_not_predicted_and_the_row_says_so():
    plan = make_plan(dp=2, pp=2, zero=3, virtual_stages=2, schedule="interleaved", reshard=False)
    model = make_model("tiny", layers=4, hidden=16, seq=6)
    rows = accounts.rows(Judged(plan, model, results=run_plan(plan, model, "dry").results))
    (row,) = (r for r in rows if r.verdict != "held")
    assert (row.key, row.verdict, row.predicted) == ("layers_whole", "not applicable", None)
    assert row.counted > 0
    assert "the schedule decides" in row.because.en


def test_where_a_library_s_collectives_ran_every_row_of_bytes_is_not_applicable_with_an_empty_cell():
    plan = make_plan(dp=2, ep=2, global_batch=4)
    model = make_model("tiny", layers=2, hidden=16, seq=6, experts=4)
    run = run_plan(plan, model)
    graph = run.graph
    judged = Judged(plan, model, graph, run.results)
    both = [r for r in accounts.rows(judged) if "_sent" in r.key]
    assert {r.verdict for r in both} == {"held"}
    first = int(np.flatnonzero(graph.kind == COLLECTIVE)[0])
    graph.names.append("all_reduce/native")
    graph.op[first] = len(graph.names) - 1
    assert graph.has_native
    rows = [r for r in accounts.rows(judged) if "_sent" in r.key]
    assert [r.key for r in rows] == [r.key for r in both]
    assert {(r.verdict, r.counted, r.ok) for r in rows} == {("not applicable", None, None)}
    assert [r.predicted for r in rows] == [r.predicted for r in both]


@pytest.mark.parametrize("key", ["parameters", "gradients", "optimizer"])
def test_one_byte_of_state_more_on_one_rank_fails_its_row(key):
    plan, model = make_plan(dp=2, zero=2), make_model("tiny", layers=2, hidden=16, seq=6)
    results = run_plan(plan, model).results
    judged = Judged(plan, model, results=results)
    assert {r.verdict for r in accounts.rows(judged)} == {"held"}
    results[1].state_bytes[key] += 1
    rows = accounts.rows(judged)
    assert [r.key for r in rows if r.verdict != "held"] == [f"{key}_held"]
