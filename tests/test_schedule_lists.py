"""The ten schedules as data: whose lists they are, what the theory says of them, and what the
judge refuses.
"""

from __future__ import annotations

import random
from itertools import product

import pytest
from helpers import published_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_schedules import THEIRS, pytorch_lists

from glasscluster.base.errors import Deadlock, InputError
from glasscluster.strategies.pipeline.schedules import (
    FOLDED,
    LOOPED,
    SCHEDULES,
    chunks,
    default_name,
    dualpipe_v,
    eager_1f1b,
    gpipe,
    interleaved,
    interleaved_zb,
    looped_bfs,
    make_schedule,
    one_f_one_b,
    placement,
    zb_h1,
    zb_h2,
    zb_v,
)
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.pipeline.schedules.notation import read_schedule
from glasscluster.strategies.pipeline.schedules.tools import largest

PS = range(2, 9)
MS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 24, 31, 32]


def number_of_chunks(name: str, v: int) -> int:
    return v if name in LOOPED else 2 if name in FOLDED else 1


def near(value: float):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


# ---- whose lists these are ---------------------------------------------------------------------------------
@pytest.mark.parametrize("p", range(1, 9))
@pytest.mark.parametrize("name", THEIRS)
def test_every_rank_does_what_the_installed_pytorch_lists(name, p):
    # PyTorch refuses rounds that do not come out whole and fewer micro-batches than stages; ours are longer
    # steps cut short
    refuses = {
        "1f1b": lambda m: m < p,
        "interleaved": lambda m: m % max(1, m // p) != 0,
        "interleaved-zb": lambda m: m % max(1, m // p) != 0,
        "dualpipe-v": lambda m: m < 2 * p,
    }.get(name, lambda m: False)
    for v, m in product((1, 2, 3) if name in LOOPED else (number_of_chunks(name, 1),), range(1, 2 * p + 9)):
        ours = make_schedule(name, p, m, v)
        if refuses(m):
            with pytest.raises((ValueError, AssertionError)):
                pytorch_lists(name, p, m, v)
            ours.validate()
            continue
        theirs = pytorch_lists(name, p, m, v)
        if theirs is None:
            pytest.skip("this PyTorch prints no list for it")
        if (
            name == "1f1b"
        ):  # the last rank's list counts its forwards from 1 in torch 2.13; its runtime does not
            theirs[-1] = [f"{p - 1}{kind}{i}" for i in range(m) for kind in "FB"]
        assert [ours.written(r) for r in range(p)] == theirs, (v, m)


def test_the_published_lists_are_ours_rank_by_rank():
    names = {theirs.removeprefix("Schedule"): ours for ours, theirs in THEIRS.items()}
    names["ZBV"] = "zb-v"
    rows = published_rows("pp_schedules_pytorch.csv")
    for row in rows:
        p, v, m, rank = (int(row[k]) for k in ("pp", "chunks_per_rank", "microbatches", "rank"))
        listed = [t for t in row["actions"].split() if t != "-" and "REDUCE" not in t]
        assert make_schedule(names[row["schedule"]], p, m, v).written(rank) == listed, row["schedule"]
    assert len(rows) == 72


def test_makespan_bubbles_and_live_chunks_are_the_published_ones():
    names = {theirs.removeprefix("Schedule"): ours for ours, theirs in THEIRS.items()}
    names["ZBV"] = "zb-v"
    rows = published_rows("pp_schedules_pytorch_summary.csv")
    assert len(rows) == 23
    for row in rows:
        p, v, m = (int(row[k]) for k in ("pp", "chunks_per_rank", "microbatches"))
        judged = make_schedule(names[row["schedule"]], p, m, v).validate()
        assert judged.makespan == float(row["makespan_units"])
        assert judged.bubble_fraction == pytest.approx(float(row["bubble_over_makespan"]), abs=1e-6)
        assert judged.bubble_over_ideal == pytest.approx(float(row["bubble_over_ideal"]), abs=1e-6)
        assert judged.peak_live == [int(n) for n in row["peak_live_chunks_per_rank"].split()]


def test_pytorch_s_own_test_files_are_read_with_idle_and_communication_tokens_and_pass():
    files: dict[str, list[str]] = {}
    for row in published_rows("pp_schedules_pytorch_artifacts.csv"):
        files.setdefault(row["artifact"], []).append(row["actions"])
    assert len(files) == 2
    for name, lines in files.items():
        theirs = read_schedule(name, "\n".join(lines), 2, 8)
        assert theirs.stages == 4
        assert theirs.validate().peak_live == [4, 4]
        # with communication drawn in, PyTorch keeps B whole where nothing comes between its parts
        assert ("compute" in name) == (theirs.ranks == make_schedule("interleaved-zb", 2, 8, 2).ranks)


def drawn(name: str, p: int, m: int, v: int | None, letters: bool) -> list[str]:
    """A row a rank, a place for each unit of time under f=1, b=2, w=1."""
    plan = make_schedule(name, p, m, v)
    judged, rows = plan.validate(), []
    for actions in plan.ranks:
        row = ["."] * int(judged.makespan)
        for a in actions:
            own = a.kind if letters else str(a.micro_batch) if a.stage < p else "ABCD"[a.micro_batch]
            for t in range(int(judged.begin[a]), int(judged.end[a])):
                row[t] = own.lower() if a.stage >= p and (letters or a.kind == "B") else own
        rows.append(" ".join(row))
    return rows


@pytest.mark.parametrize(
    ("theory", "name", "p", "m", "v", "letters"),
    [
        (gpipe, "gpipe", 3, 4, None, False),
        (one_f_one_b, "1f1b", 3, 4, None, False),
        (eager_1f1b, "eager-1f1b", 3, 4, None, False),
        (interleaved, "interleaved", 2, 4, 2, False),
        (looped_bfs, "looped-bfs", 2, 3, 2, False),
        (zb_h1, "zb-h1", 3, 4, None, True),
        (zb_h2, "zb-h2", 3, 5, None, True),
        (interleaved_zb, "interleaved-zb", 2, 2, 2, True),
        (zb_v, "zb-v", 2, 3, None, True),
    ],
)
def test_the_picture_in_a_schedule_s_docstring_is_what_is_played(theory, name, p, m, v, letters):
    for row in drawn(name, p, m, v, letters):
        assert row in theory.__doc__


# ---- table 5 and table 4 of the zero-bubble paper ----------------------------------------------------------
# Qi et al., 2401.10241: profiled T_F, T_B, T_W and T_comm in ms (as in
# tests/data/published/zero_bubble_profile_ms.csv), stages,
# chunks of one layer; bubble rates of table 5, samples per GPU and second of table 4. ZB-1p is a search that
# finds ZB-H1's rate;
# ZB-2p is the same search with twice the memory, and no schedule here.
PROFILE = {"1.5B": (8, 3, 18.522, 18.086, 9.337, 0.601), "14.6B": (16, 3, 11.347, 11.248, 8.132, 0.377)}
OURS = {"1F1B": "1f1b", "1F1B-I": "interleaved", "ZB-H1": "zb-h1", "ZB-H2": "zb-h2"}
TABLE_5 = {
    ("1.5B", 24): {"1F1B": 0.2431, "1F1B-I": 0.1055, "ZB-H1": 0.1585, "ZB-H2": 0.1083},
    ("1.5B", 32): {"1F1B": 0.1985, "1F1B-I": 0.0818, "ZB-H1": 0.1242, "ZB-H2": 0.0837},
    ("1.5B", 64): {"1F1B": 0.1240, "1F1B-I": 0.0443, "ZB-H1": 0.0674, "ZB-H2": 0.0444},
    ("14.6B", 48): {"1F1B": 0.2552, "1F1B-I": 0.1104, "ZB-H1": 0.1397, "ZB-H2": 0.0672},
    ("14.6B", 64): {"1F1B": 0.2082, "1F1B-I": 0.0852, "ZB-H1": 0.1088, "ZB-H2": 0.0516},
    ("14.6B", 128): {"1F1B": 0.1251, "1F1B-I": 0.0445, "ZB-H1": 0.0576, "ZB-H2": 0.0266},
}
TABLE_4 = {
    ("1.5B", 24): {"1F1B": 11.8, "ZB-1p": 12.9, "ZB-2p": 14.5, "1F1B-I": 13.1},
    ("1.5B", 32): {"1F1B": 12.5, "ZB-1p": 13.4, "ZB-2p": 14.8, "1F1B-I": 13.4},
    ("1.5B", 64): {"1F1B": 13.6, "ZB-1p": 14.2, "ZB-2p": 14.9, "1F1B-I": 13.9},
    ("14.6B", 48): {"1F1B": 1.40, "ZB-1p": 1.61, "ZB-2p": 1.81, "1F1B-I": 1.54},
    ("14.6B", 64): {"1F1B": 1.49, "ZB-1p": 1.67, "ZB-2p": 1.83, "1F1B-I": 1.59},
    ("14.6B", 128): {"1F1B": 1.64, "ZB-1p": 1.76, "ZB-2p": 1.85, "1F1B-I": 1.66},
}


def table_5_rate(model: str, m: int, schedule: str, sends_block: bool = False) -> float:
    p, layers, f, b, w, hop = PROFILE[model]
    v = layers if schedule == "1F1B-I" else 1
    plan = make_schedule(OURS[schedule], p, m, v)
    return plan.validate(f / v, (b + w) / v, hop, w / v, sends_block=sends_block).stage_span_bubble_fraction


@pytest.mark.parametrize(("model", "m"), TABLE_5)
def test_bubble_rates_of_the_zero_bubble_paper_s_table_5_within_one_point(model, m):
    for schedule, rate in TABLE_5[model, m].items():
        assert table_5_rate(model, m, schedule) == pytest.approx(rate, abs=0.01), schedule


@pytest.mark.parametrize(("model", "m"), [("1.5B", 24), ("14.6B", 48)])
def test_three_of_table_5_s_rates_come_out_to_its_last_digit(model, m):
    for schedule in ("1F1B", "ZB-H1", "ZB-H2"):
        assert table_5_rate(model, m, schedule) == pytest.approx(TABLE_5[model, m][schedule], abs=0.000051), (
            schedule
        )


def wrong_pairs(model: str, m: int, sends_block: bool) -> list[tuple[str, str]]:
    """Pairs (slower, faster) of table 4 that bubbles put the other way round; a tie measured says nothing."""
    measured, stand_in = TABLE_4[model, m], {"ZB-1p": "ZB-H1", "ZB-2p": "ZB-H2"}
    rates = {s: table_5_rate(model, m, stand_in.get(s, s), sends_block) for s in measured}
    return [
        (slow, fast)
        for slow, fast in product(measured, measured)
        if measured[slow] < measured[fast] and rates[fast] >= rates[slow]
    ]


@pytest.mark.parametrize(("model", "m"), TABLE_4)
def test_the_throughput_ordering_of_table_4(model, m):
    """With sends that are waited for, every pair; with free ones all but the one where table 4 contradicts
    the paper's own table 5.
    """
    assert wrong_pairs(model, m, sends_block=True) == []
    against = (
        TABLE_4[model, m]["1F1B-I"] < TABLE_4[model, m]["ZB-1p"]
        and TABLE_5[model, m]["1F1B-I"] < TABLE_5[model, m]["ZB-H1"]
    )
    assert wrong_pairs(model, m, sends_block=False) == ([("1F1B-I", "ZB-1p")] if against else [])


def test_the_quoted_cells_are_those_of_the_published_files():
    assert [len(published_rows(f"zero_bubble_{t}.csv")) for t in ("table5_bubble_rate", "table4")] == [36, 24]
    for row in published_rows("zero_bubble_table5_bubble_rate.csv"):
        quoted = TABLE_5[row["model"], int(row["n_microbatches"])]
        assert row["schedule"] in ("ZB-2p", "ZB-1p") or quoted[row["schedule"]] == float(row["bubble_rate"])
        assert row["schedule"] != "ZB-1p" or quoted["ZB-H1"] == float(row["bubble_rate"])
    for row in published_rows("zero_bubble_table4.csv"):
        assert TABLE_4[row["model"], int(row["n_microbatches"])][row["schedule"]] == float(
            row["samples_per_gpu_s"]
        )
    times = ("TF_ms", "TB_ms", "TW_ms", "Tcomm_ms")
    profile = {
        r["model"]: tuple(float(r[k]) for k in times) for r in published_rows("zero_bubble_profile_ms.csv")
    }
    assert profile == {model: values[2:] for model, values in PROFILE.items()}


# ---- closed forms, for p = 2..8 and m up to 32 -------------------------------------------------------------
@pytest.mark.parametrize("p", PS)
def test_f20_and_f22_for_gpipe_1f1b_and_eager_1f1b(p):
    for m, (f, b) in product(range(1, 33), ((1, 2), (2.5, 0.75))):
        for name, theory in (("gpipe", gpipe), ("1f1b", one_f_one_b), ("eager-1f1b", eager_1f1b)):
            judged = make_schedule(name, p, m).validate(f, b)
            assert judged.makespan == near((m + p - 1) * (f + b))
            assert (judged.bubble_fraction, judged.bubble_over_ideal) == near(theory.predict_bubble(p, m))
            assert judged.peak_live == [theory.predict_in_flight(p, m, s) for s in range(p)]


def test_f20_for_gpipe_with_any_stages_and_hops():
    draw = random.Random(3)
    for _ in range(300):
        p, m = draw.randint(1, 8), draw.randint(1, 32)
        f, b = ([draw.uniform(0.1, 3) for _ in range(p)] for _ in "fb")
        hop = draw.uniform(0, 1)
        assert make_schedule("gpipe", p, m).validate(f, b, hop, 0).makespan == near(
            gpipe.predict_makespan(f, b, m, hop)
        )


@pytest.mark.parametrize("p", PS)
def test_f21_and_f22_for_interleaved_and_breadth_first(p):
    for m, v in product(MS, (1, 2, 4)):
        for name, theory in (("interleaved", interleaved), ("looped-bfs", looped_bfs)):
            plan = make_schedule(name, p, m, v)
            judged, bubble = plan.validate(1, 2), theory.predict_bubble(p, m, v)
            assert (bubble is None) == (m % p != 0 if name == "interleaved" else m < p and v > 1)
            assert plan.messages == interleaved.predict_messages(p, m, v)
            if bubble is not None:
                assert (judged.bubble_fraction, judged.bubble_over_ideal) == near(bubble)
                assert judged.peak_live == [theory.predict_in_flight(p, m, v, r) for r in range(p)]
    assert make_schedule("1f1b", p, 8).messages == 2 * 8 * (p - 1)


@pytest.mark.parametrize("p", PS)
def test_f23_strict_1f1b_pays_for_hops_where_p_divides_m_and_eager_does_not_up_to_its_limit(p):
    for m, hop, (f, b) in product(range(1, 33), (0.0, 0.25, 1.0), ((1, 2), (1.5, 0.5))):
        strict, eager = (
            one_f_one_b.predict_makespan(p, m, f, b, hop),
            eager_1f1b.predict_makespan(p, m, f, b, hop),
        )
        assert (strict is None) == (m % p != 0)
        assert (eager is None) == (m > 3 and hop > (f + b) / 2)
        if strict is not None:
            assert make_schedule("1f1b", p, m).validate(f, b, hop, 0).makespan == near(strict)
        if eager is not None:
            assert make_schedule("eager-1f1b", p, m).validate(f, b, hop, 0).makespan == near(eager)


@pytest.mark.parametrize(
    ("p", "m"), [(2, 1), (2, 3), (2, 4), (3, 3), (3, 4), (4, 8), (5, 7), (8, 4), (8, 32)]
)
@pytest.mark.parametrize(("f", "b"), [(1, 2), (1, 1), (2, 1), (1, 2.5)])
def test_the_eager_limit_of_f23_is_what_the_search_finds(p, m, f, b):
    assert eager_1f1b.search_hop_limit(p, m, f, b) == pytest.approx(
        eager_1f1b.predict_hop_limit(p, m, f, b), rel=1e-6
    )


def test_the_curriculum_s_ping_pong_tax_is_34_5_against_37():
    ours = {n: make_schedule(n, 4, 8).validate(1, 2, 0.25).makespan for n in ("gpipe", "1f1b", "eager-1f1b")}
    assert ours == {"gpipe": 34.5, "1f1b": 37.0, "eager-1f1b": 34.5}


@pytest.mark.parametrize("p", PS)
def test_f24_and_f25_span_bubbles_are_exact_on_their_domain(p):
    costs = list(product((1.0, 2.0), (0.5, 1.0, 1.75, 3.0), (0.25, 0.5, 1.0, 1.5)))  # T_F, T_B, T_W
    for m in (1, p - 1, p, 2 * p - 2, 2 * p - 1, 2 * p, 3 * p + 1, 32):
        plans = {n: make_schedule(n, p, m) for n in ("1f1b", "zb-h1", "zb-h2", "zb-v", "dualpipe-v")}
        plans["interleaved-zb"] = make_schedule("interleaved-zb", p, m, 2)
        for f, t_b, w in [(1.0, 1.0, 1.0), *random.Random(m).sample(costs, 10)]:
            b = t_b + w
            found = {n: plan.validate(f, b, 0, w) for n, plan in plans.items()}
            assert found["1f1b"].stage_span_bubble == near((p - 1) * (f + b))
            for name, theory in (
                ("zb-h1", zb_h1),
                ("zb-h2", zb_h2),
                ("zb-v", zb_v),
                ("interleaved-zb", interleaved_zb),
            ):
                predicted = theory.predict_span_bubble(p, m, f, b, w)
                assert predicted is None or found[name].stage_span_bubble == near(predicted), (
                    name,
                    m,
                    f,
                    b,
                    w,
                )
                if predicted is not None and w <= t_b and name in ("zb-h1", "interleaved-zb"):
                    assert found[name].makespan - found[name].work[0] == near(predicted)
            predicted = dualpipe_v.predict_bubble(p, m, f, b, w)
            assert predicted is None or found["dualpipe-v"].stage_span_bubble == near(predicted)
            for gain in (0.75, 0.9):
                faster = dualpipe_v.predict_bubble(p, m, f, b, w, gain * (f + b))
                judged = plans["dualpipe-v"].validate(
                    f, b, 0, w, overlapped=lambda f, b, gain=gain: gain * (f + b)
                )
                assert faster is None or judged.makespan - judged.work[-1] == near(faster)


@pytest.mark.parametrize("t_b", [0.25, 0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize(("p", "m"), [(2, 5), (4, 8), (6, 17)])
def test_f24_s_limits_are_what_the_search_finds(p, m, t_b):
    f = 1.0
    h1 = zb_h1.search_weight_limit(make_schedule("zb-h1", p, m), f, t_b, parts=1)
    h2 = zb_h1.search_weight_limit(make_schedule("zb-h2", p, m), f, t_b, parts=2)
    assert h1 == pytest.approx(f, rel=1e-6)
    assert h2 == pytest.approx(min(f, (f + t_b) / 2), rel=1e-6)
    for w, below in ((0.999 * h2, True), (1.001 * h2, False)):
        assert (zb_h2.predict_span_bubble(p, m, f, t_b + w, w) is not None) == below


@pytest.mark.parametrize("p", PS)
def test_chunks_live_of_the_zero_bubble_schedules(p):
    for m in MS:
        assert make_schedule("zb-h1", p, m).validate().peak_live == [
            zb_h1.predict_in_flight(p, m, s) for s in range(p)
        ]
        assert make_schedule("zb-h2", p, m).validate().peak_live == [
            zb_h2.predict_in_flight(p, m, s) for s in range(p)
        ]
        assert make_schedule("zb-v", p, m).validate().peak_live == [
            zb_v.predict_in_flight(p, m, r) for r in range(p)
        ]
        for r, live in enumerate(make_schedule("dualpipe-v", p, m).validate().peak_live):
            assert dualpipe_v.predict_in_flight(p, m, r) in (None, live)
        for v in (1, 2, 3):
            for r, live in enumerate(make_schedule("interleaved-zb", p, m, v).validate().peak_live):
                assert interleaved_zb.predict_in_flight(p, m, v, r) in (None, live)


def test_zb_h2_of_four_equal_stages_has_a_makespan_bubble_of_3_and_no_span_bubble():
    judged = make_schedule("zb-h2", 4, 8).validate(1, 2, 0, 1)
    assert judged.makespan - 8 * 3 == 3
    assert judged.stage_span_bubble == 0
    assert judged.stage_span_bubble_fraction == 0


def test_interleaved_zero_bubble_with_one_chunk_is_zb_h1_and_interleaved_is_eager_1f1b():
    for p, m in product(range(1, 7), range(1, 5)):
        assert make_schedule("interleaved-zb", p, p * m).ranks == make_schedule("zb-h1", p, p * m).ranks
        assert make_schedule("interleaved", p, p * m).ranks == make_schedule("eager-1f1b", p, p * m).ranks


# ---- legal, all of them ------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(SCHEDULES),
    p=st.integers(1, 9),
    m=st.integers(1, 40),
    v=st.integers(1, 5),
    hop=st.floats(0, 3),
)
def test_every_schedule_is_complete_and_free_of_deadlock(name, p, m, v, hop):
    v = number_of_chunks(name, v)
    plan = make_schedule(name, p, m, v)
    judged = plan.validate(1, 2, hop, 1)
    assert plan.stages == p * v
    assert plan.placement == placement(name, p, v)
    assert judged.weights_held == [v] * p
    assert [plan.stages_of(r) for r in range(p)] == [
        sorted({a.stage for a in actions}) for actions in plan.ranks
    ]
    assert judged.makespan >= m * v * 3
    assert sum(judged.work) == near(p * m * v * 3)
    assert max(judged.peak_live) <= m * v


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(SCHEDULES), p=st.integers(1, 5), m=st.integers(1, 12), v=st.integers(1, 3))
def test_what_is_written_is_read_back_and_judged_the_same(name, p, m, v):
    plan = make_schedule(name, p, m, number_of_chunks(name, v))
    back = read_schedule(name, str(plan), p, m)
    assert back == plan
    assert back.validate(hop=0.25) == plan.validate(hop=0.25)


def test_chunks_are_refused_where_the_schedule_has_its_own_number():
    assert [chunks(n) for n in SCHEDULES] == [number_of_chunks(n, 1) for n in SCHEDULES]
    for name, v in (("gpipe", 2), ("zb-h1", 2), ("zb-v", 1), ("dualpipe-v", 3), ("interleaved", 0)):
        with pytest.raises(InputError, match="virtual_stages"):
            make_schedule(name, 2, 4, v)
    with pytest.raises(InputError, match="the nearest valid choice is zb-h1"):
        make_schedule("zbh1", 2, 4)
    assert (default_name(1), default_name(2)) == ("1f1b", "interleaved")


# ---- mutations ---------------------------------------------------------------------------------------------
def mutant(plan: Schedule, ranks: list[list[Action]]) -> Schedule:
    return Schedule("mutant", plan.stages, plan.micro_batches, ranks, plan.placement)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_dropped_and_a_doubled_action_are_refused_wherever_they_are(name):
    plan = make_schedule(name, 3, 6, number_of_chunks(name, 2))
    for rank, actions in enumerate(plan.ranks):
        for place, action in enumerate(actions):
            for changed in (actions[:place] + actions[place + 1 :], actions[: place + 1] + actions[place:]):
                with pytest.raises(
                    InputError, match=f"mutant.*rank {rank}.*{action.stage}[BFIW]{action.micro_batch}"
                ):
                    mutant(plan, [*plan.ranks[:rank], changed, *plan.ranks[rank + 1 :]]).validate()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_swapped_pair_is_refused_if_one_needs_the_other_and_never_hides_work(name):
    plan = make_schedule(name, 3, 6, number_of_chunks(name, 2))
    refused = 0
    for rank, actions in enumerate(plan.ranks):
        for i in range(len(actions)):
            for k in range(i + 1, len(actions)):
                changed = list(actions)
                changed[i], changed[k] = changed[k], changed[i]
                spoilt = mutant(plan, [*plan.ranks[:rank], changed, *plan.ranks[rank + 1 :]])
                assert spoilt.written(rank) != plan.written(rank)
                try:
                    judged = spoilt.validate()
                except (InputError, Deadlock):
                    refused += 1
                    continue
                same = (
                    actions[i].stage == actions[k].stage and actions[i].micro_batch == actions[k].micro_batch
                )
                assert not same, (actions[i], actions[k])
                assert sum(judged.work) == near(sum(plan.validate().work))
    assert refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({0: "0F0 0F1 0B0 0B1 1F0"}, "rank 0 runs 1F0, but stage 1 lies on rank 1"),
        ({1: "1F0 1I0 1W0 1B0 1F1 1B1"}, "rank 1 has 1B0 and 1I0"),
        ({1: "1F0 1I0 1F1 1B1"}, "rank 1 misses 1W0"),
        ({1: "1F0 1W0 1F1 1B1"}, "rank 1 misses 1I0"),
        ({1: "1F0 1W0 1I0 1F1 1B1"}, "rank 1 runs 1W0 before 1I0"),
        ({1: "1B0 1F0 1F1 1B1"}, "rank 1 runs 1B0 before 1F0"),
        ({1: "1F0 1B0 1F1 1B1 1F2"}, "rank 1 has 1F2, which is out of range"),
        ({1: "1F0 1B0 1F1 1B1 2F0"}, "rank 1 has 2F0, which is out of range"),
    ],
)
def test_each_rule_has_its_words(change, said):
    lines = {0: "0F0 0F1 0B0 0B1", 1: "1F0 1B0 1F1 1B1"} | change
    ranks = [read_schedule("planted", line, 1, 2).ranks[0] for line in lines.values()]
    with pytest.raises(InputError, match=said):
        Schedule("planted", 2, 2, ranks).validate()


@pytest.mark.parametrize(
    ("lines", "cycle", "said"),
    [
        (
            ["0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"],
            [0, 1],
            r"cycle rank 0 \(0B0\) → rank 1 \(1F1\) → rank 0 \(0B0\)",
        ),
        (["0F0 0F1 0B0 0B1", "1F0 1F1 1B1 1B0", "2F0 2B0 2F1 2B1"], [], ""),
        (
            ["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", "2F0 2F1 2B0 2B1"],
            [1, 2],
            r"cycle rank 1 \(1B0\) → rank 2 \(2F1\) → rank 1",
        ),
        (
            ["0F0 0I0 0F1 0I1 0W0 0W1", "1F0 1F1 1I0 1I1 1W0 1W1"],
            [0, 1],
            r"rank 0 waits in 0I0 for 1I0; rank 1 waits in 1F1 for 0F1",
        ),
        (["0F0 1F0 2F0 2B0 1B0 0B0"], [], ""),
        (
            ["0F0 2F0 1F0 2B0 1B0 0B0"],
            [0],
            r"rank 0 waits in 2F0 for 1F0; cycle rank 0 \(2F0\) → rank 0 \(2F0\)",
        ),
        (
            ["0F0 (3F0;0B0)OVERLAP_F_B 3B0", "1F0 2F0 2B0 1B0"],
            [0, 1],
            r"rank 0 waits in 0B0 for 1B0; rank 1 waits in 2B0 for 3B0",
        ),
    ],
)
def test_a_planted_deadlock_names_ranks_actions_and_the_cycle(lines, cycle, said):
    m = 2 if "0F1" in lines[0] else 1
    plan = read_schedule("planted", "\n".join(lines), len(lines), m, 3 if len(lines) == 1 else None)
    if not cycle:
        plan.validate()
        return
    with pytest.raises(Deadlock, match=said) as found:
        plan.validate()
    assert found.value.cycle == cycle


# ---- costs -------------------------------------------------------------------------------------------------
def test_a_hop_is_paid_between_ranks_only_and_occupies_nobody():
    folded = make_schedule("zb-v", 2, 1).validate(1, 2, 10, 1)
    # 0F, hop, 1F and 2F on one rank, hop, 3F; back the same way with I, and 2W before 1I; 0W at the end
    assert folded.makespan == 4 + 4 + 2 + 4 * 10
    assert make_schedule("interleaved", 1, 3, 4).validate(1, 2, 10).makespan == 3 * 4 * 3


def test_a_send_that_is_waited_for_holds_up_its_rank_and_nothing_else():
    plan = make_schedule("gpipe", 2, 2)
    # rank 0: F, hop, F, hop; its gradients come back behind rank 1's; rank 1's last send is waited for after
    # its last backward
    assert plan.validate(1, 2, 10, sends_block=True).begin[Action(0, "F", 1)] == 11
    assert plan.validate(1, 2, 10).begin[Action(0, "F", 1)] == 1
    alone = make_schedule("interleaved", 1, 3, 4)
    assert alone.validate(1, 2, 10, sends_block=True) == alone.validate(1, 2, 10)
    zero = make_schedule("zb-h1", 2, 1).validate(1, 2, 10, 1, sends_block=True)
    assert zero.end[Action(0, "W", 0)] == 1 + 10 + 2 + 10 + 2  # W sends nothing


def test_a_slot_of_two_begins_when_both_can_and_costs_what_it_is_told():
    plan = read_schedule("pair", "0F0 0F1 (0F2;0B0)OVERLAP_F_B 0B1 0B2", 1, 3)
    judged = plan.validate(1, 2)
    assert (judged.begin[Action(0, "F", 2)], judged.end[Action(0, "F", 2)]) == (2, 5)
    assert judged.begin[Action(0, "B", 0)] == 2
    assert (judged.makespan, judged.peak_live) == (9, [2])
    assert plan.validate(1, 2, overlapped=lambda f, b: 2.5).makespan == 8.5
    with pytest.raises(InputError, match="only a forward with a backward"):
        Schedule(
            "pair",
            1,
            2,
            [[Action(0, k, i) for k in "FB" for i in (0, 1)]],
            together=frozenset([Action(0, "F", 0)]),
        ).validate()


def test_the_weight_part_cannot_cost_more_than_the_backward_it_is_a_part_of():
    assert make_schedule("gpipe", 2, 2).validate(1, 0.5).makespan == 4.5
    with pytest.raises(InputError, match="weight part"):
        make_schedule("zb-h1", 2, 2).validate(1, 0.5)


def test_the_search_finds_an_edge_or_says_there_is_none():
    assert largest(lambda x: x <= 0.3, 10) == pytest.approx(0.3)
    assert largest(lambda x: True, 10) == float("inf")
