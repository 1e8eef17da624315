"""What ranks say of a collective is compared before its data moves: every pair of differences, on every
backend; and programs that try everything not to end.
"""

from __future__ import annotations

import json
import time
from itertools import permutations
from typing import Any

import pytest
import torch
from disagreements import CALLS, KINDS, ODD, PAIRS, RANKS, SPECIAL, differently
from test_torchrun import torchrun

from glasscluster.base.errors import CollectiveMismatch, Deadlock, InputError, RankDied, RankStalled
from glasscluster.sim.ranks import agreement, communicator
from glasscluster.sim.ranks.agreement import SLOTS, StoreCalls, describe
from glasscluster.sim.run import Cluster

SUM = {"op": "sum"}
WORLD = ("0.0", "world", range(4))
EIGHT = torch.ones(8)
# What one rank may say; no two of them are the same.
SAID = {
    "sum": ("all_reduce", "ring", EIGHT, WORLD, SUM),
    "max": ("all_reduce", "ring", EIGHT, WORLD, {"op": "max"}),
    "operation": ("reduce_scatter", "ring", EIGHT, WORLD, SUM),
    "algorithm": ("all_reduce", "tree", EIGHT, WORLD, SUM),
    "length": ("all_reduce", "ring", torch.ones(9), WORLD, SUM),
    "dtype": ("all_reduce", "ring", torch.ones(8, dtype=torch.int32), WORLD, SUM),
    "root 0": ("broadcast", "ring", EIGHT, WORLD, {"src": 0}),
    "root 1": ("broadcast", "ring", EIGHT, WORLD, {"src": 1}),
    "to 0": ("gather", "direct", EIGHT, WORLD, {"dst": 0}),
    "a longer gather": ("gather", "direct", torch.ones(12), WORLD, {"dst": 0}),
    "fewer ranks": ("all_reduce", "ring", EIGHT, ("0.0", "world", range(3)), SUM),
    "other ranks": ("all_reduce", "ring", EIGHT, ("0.0", "world", range(1, 4)), SUM),
    "all-to-all": ("all_to_all", "direct", EIGHT, WORLD, {}),
    "an option": ("all_reduce", "ring", EIGHT, WORLD, {"op": "sum", "fanout": 2}),
}


def stores(ranks: int = RANKS) -> list[StoreCalls]:
    """One object a rank around a store of this process, with which real stores share their interface."""
    store = torch.distributed.HashStore()
    made = [StoreCalls(store, rank) for rank in range(ranks)]
    for one in made:
        one.start_run()
    return made


def say(calls: StoreCalls, name: str) -> int:
    """Make one of the calls of SAID."""
    return calls.compare(describe(*SAID[name]), SAID[name][3][2])


def say_in_turn(calls: StoreCalls, names: list[str]) -> None:
    """Make several of them."""
    for name in names:
        say(calls, name)


# ---- in a store --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("one", "other"), list(permutations(SAID, 2)))
def test_any_two_calls_that_differ_are_a_mismatch_which_names_both_ranks_and_the_difference(one, other):
    ranks = stores()
    say(ranks[2], one)
    with pytest.raises(CollectiveMismatch) as caught:
        say(ranks[1], other)
    assert {caught.value.rank, caught.value.peer} == {1, 2}
    assert "rank 1 has" in caught.value.message
    assert "rank 2 has" in caught.value.message


@pytest.mark.parametrize("name", SAID)
def test_ranks_that_say_the_same_pass(name):
    ranks = stores()
    members = SAID[name][3][2]
    assert [say(ranks[r], name) for r in members] == [0] * len(members)


@pytest.mark.parametrize("kept", [["op"], ["length"]])
def test_a_comparison_that_left_out_the_op_would_not_find_it(kept, monkeypatch):
    """The planted fault: describe() without `op`. The pair of sums and maxima passes then, and only then."""

    def forgetful(operation: str, algorithm: str, x: torch.Tensor, group: Any, options: dict) -> Any:
        dropped = {k: v for k, v in options.items() if k != "op" or "op" in kept}
        return describe(operation, algorithm, x, group, dropped)

    monkeypatch.setattr(communicator, "describe", forgetful)
    cluster = Cluster("classroom", RANKS, "threads")
    if "op" in kept:
        with pytest.raises(CollectiveMismatch, match="op max"):
            cluster.run(differently, "sum", "max")
    else:
        wrong = cluster.run(differently, "sum", "max")
        assert wrong.graph.bytes_sent()  # it ends, with wrong numbers and no word


def test_four_hundred_calls_reuse_the_slots_and_the_last_of_them_is_still_compared():
    ranks = stores()
    for number in range(400):
        assert {say(one, "sum") for one in ranks} == {number}
    say(ranks[3], "sum")
    with pytest.raises(CollectiveMismatch, match=r"call 400 .*op max"):
        say(ranks[0], "max")


@pytest.mark.parametrize("ahead", [1, SLOTS - 1, SLOTS, SLOTS + 1, 3 * SLOTS])
@pytest.mark.parametrize("at", [0, 7])
def test_a_rank_that_is_far_behind_is_compared_too(ahead, at):
    """Rank 0 has made many calls before rank 1 makes its first; rank 1's call number `at` is another one."""
    ranks = stores()
    for _ in range(ahead + at + 1):
        say(ranks[0], "sum")
    with pytest.raises(CollectiveMismatch) as caught:
        say_in_turn(ranks[1], ["max" if number == at else "sum" for number in range(ahead + at + 1)])
    assert {caught.value.rank, caught.value.peer} == {0, 1}


@pytest.mark.parametrize("ahead", [1, SLOTS, SLOTS + 1, 3 * SLOTS])
def test_a_rank_that_is_far_behind_and_right_passes(ahead):
    ranks = stores(2)
    for number in range(3 * ahead):
        say(ranks[0], "sum")
        if number >= ahead:
            say(ranks[1], "sum")
    for _ in range(ahead):
        say(ranks[1], "sum")
    assert say(ranks[0], "max") == say(ranks[1], "max")


def test_two_runs_one_after_the_other_are_not_compared_with_each_other():
    ranks = stores()
    for name, times in (("sum", 300), ("max", 10), ("sum", 3)):
        for _ in range(times):
            for one in ranks:
                say(one, name)
        for one in ranks:
            one.start_run()
    say(ranks[0], "max")
    with pytest.raises(CollectiveMismatch, match="call 0 "):
        say(ranks[1], "sum")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("other", [torch.ones(7), torch.ones(8, dtype=torch.int32)])
def test_the_two_ends_of_a_message_are_compared_whoever_comes_first(first, other):
    ranks = stores()
    ends = [lambda: ranks[0].compare_message("send", 1, 5, EIGHT)]
    ends += [lambda: ranks[1].compare_message("recv", 0, 5, other)]
    ends[first]()
    with pytest.raises(CollectiveMismatch, match="messages from rank 0 to rank 1"):
        ends[1 - first]()


def test_what_each_rank_sends_another_in_an_all_to_all_is_compared_with_what_that_one_expects():
    ranks = stores()
    call = describe(*SAID["all-to-all"])
    for one in ranks[:2]:
        one.compare_splits(call, one.compare(call, range(4)), range(4), [2, 2, 3, 2], [2, 2, 2, 2])
    number = ranks[2].compare(call, range(4))
    with pytest.raises(CollectiveMismatch, match="rank 0 sends rank 2 3 elements, which expects 2"):
        ranks[2].compare_splits(call, number, range(4), [2] * 4, [2] * 4)


# ---- on threads --------------------------------------------------------------------------------------------
def test_every_pair_of_calls_is_a_mismatch_on_threads_within_a_second():
    """All pairs in one test: 182 clusters, none of which may end well, or late, or name ranks that agree."""
    slowest = 0.0
    for one, other in PAIRS:
        begun = time.monotonic()
        with pytest.raises(CollectiveMismatch) as caught:
            Cluster("classroom", RANKS, "threads").run(differently, one, other)
        slowest = max(slowest, time.monotonic() - begun)
        assert ODD in (caught.value.rank, caught.value.peer), (one, other)
        assert caught.value.rank != caught.value.peer
    assert len(PAIRS) == len(CALLS) * (len(CALLS) - 1)
    assert slowest < 1.0


@pytest.mark.parametrize("program", SPECIAL)
@pytest.mark.parametrize("seed", range(3))
def test_order_group_splits_and_messages_are_compared_on_threads(program, seed):
    with pytest.raises(CollectiveMismatch) as caught:
        Cluster("classroom", RANKS, "threads", seed=seed).run(program)
    assert ODD in (caught.value.rank, caught.value.peer)


@pytest.mark.parametrize("name", CALLS)
def test_ranks_that_agree_pass_on_threads(name):
    Cluster("classroom", RANKS, "threads").run(differently, name, name)


def remade_meshes(gpu: Any) -> float:
    """Groups of several meshes and splits, which have the same numbers and other ranks."""
    x = torch.ones(3)
    if gpu.rank in (0, 2):
        gpu.make_mesh({"dp": 2, "tp": 2})["dp"].all_reduce(x)
    else:
        gpu.make_mesh({"dp": 2, "tp": 2})["tp"].isend(x, gpu.mesh["tp"].rank - 1)
    if gpu.rank in (0, 2):
        gpu.mesh["tp"].recv(x, 1)
    gpu.make_mesh({"dp": 4})["dp"].all_reduce(x)
    gpu.make_mesh({"pp": 2, "dp": 2})["dp"].all_reduce(x)
    halves, other = gpu.comm.split(gpu.rank % 2), gpu.comm.split(gpu.rank // 2)
    halves.all_reduce(x)
    other.all_reduce(x)
    halves.split(0).all_reduce(x)
    return float(x[0])


def test_groups_of_one_number_in_several_meshes_are_not_taken_for_each_other():
    results = Cluster("classroom", RANKS, "threads").run(remade_meshes).results
    assert len(set(results)) == 1


# ---- between processes -------------------------------------------------------------------------------------
SOAK = [pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS if kind != "op"]
TIMEOUT_S = 10.0


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["op", *SOAK])
def test_a_difference_is_named_on_ray(kind, shared_ray):
    program, *names = KINDS[kind]
    with Cluster("classroom", RANKS, "ray", timeout_s=TIMEOUT_S) as cluster:
        cluster.run(differently, "sum", "sum", record=False)  # actors have started
        begun = time.monotonic()
        with pytest.raises(CollectiveMismatch) as caught:
            cluster.run(program, *names)
    assert time.monotonic() - begun < TIMEOUT_S + 2 + 5  # and Ray's own end
    assert ODD in (caught.value.rank, caught.value.peer)


SCRIPT = """
import json, os, sys, time
from glasscluster import Cluster
from glasscluster.base.errors import GlassError
from disagreements import KINDS, RANKS, differently
program, *names = KINDS[sys.argv[1]]
cluster = Cluster("classroom", RANKS, "torchrun", timeout_s=10)
cluster.__enter__()
cluster.run(differently, "sum", "sum", record=False)
begun = time.monotonic()
try:
    cluster.run(program, *names)
    said = ["nothing", None, None]
except GlassError as error:
    said = [type(error).__name__, error.rank, error.peer]
line = json.dumps([*said, time.monotonic() - begun]) + "\\n"
os.write(1, line.encode())  # at once: the ranks share their output
"""


@pytest.mark.torchrun
@pytest.mark.parametrize("kind", ["op", *SOAK])
def test_a_difference_is_named_under_torchrun(kind, tmp_path):
    script = tmp_path / "differ.py"
    script.write_text(SCRIPT)
    done = torchrun(RANKS, str(script), kind, cwd=tmp_path)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    named = [one for one in said if one[0] == "CollectiveMismatch"]
    assert named, (done.stdout, done.stderr[-2000:])
    assert all(ODD in one[1:3] and one[3] <= TIMEOUT_S + 2 for one in named)


# ---- programs that do not want to end ----------------------------------------------------------------------
def a_barrier_at_last(gpu: Any) -> None:
    """Every rank receives what nobody sends, and wants to meet the others on its way out."""
    try:
        gpu.comm.recv(torch.ones(4), (gpu.rank + 1) % gpu.size)
    finally:
        gpu.comm.barrier()


def catches_everything(gpu: Any) -> None:
    """A rank that tries again, whatever happens."""
    while True:
        try:
            gpu.comm.recv(torch.ones(4), (gpu.rank + 1) % gpu.size)
        except:  # noqa: E722 - this is what the program does wrong
            continue


@pytest.mark.parametrize("program", [a_barrier_at_last, catches_everything])
@pytest.mark.parametrize("seed", range(3))
def test_a_deadlock_ends_though_the_program_holds_on(program, seed):
    begun = time.monotonic()
    with pytest.raises(Deadlock) as caught:
        Cluster("classroom", 3, "threads", seed=seed).run(program)
    assert sorted(caught.value.cycle) == [0, 1, 2]
    assert time.monotonic() - begun < 5


def computes_for_ever(gpu: Any) -> None:
    """Rank 1 never comes to the all-reduce."""
    if gpu.rank == 1:
        spin_in_vain()
    gpu.comm.all_reduce(torch.ones(4))


def spin_in_vain() -> None:
    """A loop without an end."""
    while True:
        pass


def test_an_endless_loop_ends_after_the_timeout_and_its_stack_is_shown():
    begun = time.monotonic()
    with pytest.raises(RankStalled) as caught:
        Cluster("classroom", 3, "threads", timeout_s=1).run(computes_for_ever)
    assert 1 <= time.monotonic() - begun < 5
    assert caught.value.rank == 1
    for name in ("spin_in_vain", "computes_for_ever", "test_agreement.py"):
        assert name in caught.value.message


class Unsayable(Exception):
    """An exception whose words raise."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def raises_without_words(gpu: Any) -> None:
    """Rank 1 raises it."""
    if gpu.rank == 1:
        raise Unsayable


def gives_a_word_for_a_number(gpu: Any) -> None:
    """A micro-batch that is a text."""
    with gpu.region(micro_batch="q" if gpu.rank == 1 else 0):
        gpu.comm.all_reduce(torch.ones(4))


def counts_too_far(gpu: Any) -> None:
    """A layer that no column holds."""
    with gpu.region(layer=10**30 if gpu.rank == 1 else 0):
        gpu.comm.all_reduce(torch.ones(4))


@pytest.mark.parametrize("program", [raises_without_words, gives_a_word_for_a_number, counts_too_far])
@pytest.mark.parametrize("backend", ["threads", "dry"])
def test_a_rank_that_fails_outside_of_every_rule_is_named(program, backend):
    with pytest.raises((RankDied, InputError)) as caught:
        Cluster("classroom", 3, backend).run(program)
    assert caught.value.rank == 1
    assert "rank 1" in caught.value.message or isinstance(caught.value, InputError)


@pytest.mark.parametrize("word", ["timeout", "timeouts", "sede", "eager"])
def test_an_option_that_nobody_knows_is_refused_with_the_nearest(word):
    with pytest.raises(InputError) as caught:
        Cluster("classroom", 2, "threads", **{word: 1})
    assert caught.value.field == word
    assert caught.value.nearest in ("timeout_s", "seed", "eager_bytes")


def test_nothing_is_compared_where_it_is_switched_off():
    Cluster("classroom", RANKS, "threads", compare=False).run(differently, "sum", "max")
    assert agreement.SLOTS >= 256
