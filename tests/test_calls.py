"""Ranks that mean different things by one call are named, and no rank's result is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from glasscluster.base import files
from glasscluster.base.errors import CollectiveMismatch, RankDied
from glasscluster.sim.ranks import agreement
from glasscluster.sim.ranks.backends import threads
from glasscluster.sim.run import Cluster

ODD = 2  # the rank that means something else


def another_op(gpu):
    gpu.comm.all_reduce(torch.ones(6), op="max" if gpu.rank == ODD else "sum")


def another_root(gpu):
    gpu.comm.broadcast(torch.ones(6), src=1 if gpu.rank == ODD else 0)


def another_length(gpu):
    gpu.comm.scatter(torch.ones(9 if gpu.rank == ODD else 6), src=0)


def another_type(gpu):
    gpu.comm.all_reduce(torch.ones(6, dtype=torch.int32 if gpu.rank == ODD else torch.float32))


def another_order(gpu):
    for _ in range(2):
        x = torch.ones(6)
        if gpu.rank == ODD:
            gpu.comm.all_gather(x)
        else:
            gpu.comm.all_reduce(x)


PROGRAMS = {
    "op": (another_op, "op max", "op sum"),
    "root": (another_root, "src 1", "src 0"),
    "length": (another_length, "9 x float32", "6 x float32"),
    "dtype": (another_type, "6 x int32", "6 x float32"),
    "operation": (another_order, "all_gather", "all_reduce"),
}


@pytest.mark.parametrize(("program", "theirs", "ours"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_collective_that_one_rank_means_otherwise_is_named(program, theirs, ours):
    """Before any data moves: whichever rank comes second finds what the first one said."""
    with pytest.raises(CollectiveMismatch) as caught:
        Cluster("classroom", 3).run(program)
    assert theirs in caught.value.message
    assert ours in caught.value.message
    assert ODD in (caught.value.rank, caught.value.peer)


def described(**other):
    given = {"operation": "all_reduce", "algorithm": "ring", "x": torch.ones(6), "ranks": [0, 1]} | other
    group = (1, "dp", given["ranks"])
    options = {"op": given.get("op", "sum"), "dst": given.get("dst", 0)}
    return agreement.describe(given["operation"], given["algorithm"], given["x"], group, options)


OTHERS = {
    "operation": {"operation": "reduce_scatter"},
    "algorithm": {"algorithm": "tree"},
    "op": {"op": "max"},
    "root": {"dst": 1},
    "length": {"x": torch.ones(7)},
    "dtype": {"x": torch.ones(6, dtype=torch.float64)},
    "ranks": {"ranks": [0, 2]},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_must_be_equal_is_in_the_description(other):
    assert described().said == described().said
    assert described(**other).said != described().said


# ---- between processes -------------------------------------------------------------------------------------
def ranks_of(store, size=2):
    """The ends of a store that each rank of another process would have."""
    ends = [agreement.StoreCalls(store, rank) for rank in range(size)]
    for end in ends:
        end.start_run()
    return ends


@pytest.mark.parametrize("second", [0, 1])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_rank_that_comes_second_finds_in_the_store_what_the_first_one_said(other, second):
    ends = ranks_of(torch.distributed.HashStore())
    for _ in range(agreement.SLOTS + 1):  # also where a slot is used again
        assert ends[0].compare(described(), [0, 1]) == ends[1].compare(described(), [0, 1])
    ends[1 - second].compare(described(), [0, 1])
    with pytest.raises(CollectiveMismatch) as caught:
        ends[second].compare(described(**other), [0, 1])
    assert (caught.value.rank, caught.value.peer) == (second, 1 - second)


@pytest.mark.parametrize("expected", [2, 4])
@pytest.mark.parametrize("second", [0, 1])
def test_what_an_all_to_all_sends_is_compared_with_what_is_expected_of_it(expected, second):
    ends, call = ranks_of(torch.distributed.HashStore()), described(operation="all_to_all")
    splits = [([1, 3], [1, 5]), ([5, 2], [expected, 2])]  # rank 0 sends 3 elements to rank 1
    number = [end.compare(call, [0, 1]) for end in ends][0]
    first = 1 - second
    ends[first].compare_splits(call, number, [0, 1], *splits[first])
    with pytest.raises(CollectiveMismatch, match=f"rank 0 sends rank 1 3 elements, which expects {expected}"):
        ends[second].compare_splits(call, number, [0, 1], *splits[second])


# ---- nobody is left out ------------------------------------------------------------------------------------
def test_every_rank_has_a_result_of_its_own_in_order():
    assert Cluster("classroom", 5).run(lambda gpu: gpu.rank).results == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rank", range(3))
def test_a_rank_that_ends_without_a_result_is_named(monkeypatch, rank):
    honest = threads.run_rank

    def silent(wire, *args, **options):
        if wire.rank == rank:
            raise threads._Abandoned  # what ends a rank without a word
        return honest(wire, *args, **options)

    monkeypatch.setattr(threads, "run_rank", silent)
    with pytest.raises(RankDied, match=f"rank {rank} ended without a result"):
        Cluster("classroom", 3).run(lambda gpu: gpu.rank)


# ---- the order of a writer's calls -------------------------------------------------------------------------
def calls_of(monkeypatch, write) -> list[str]:
    """The calls to the disk that keep or move a file, in order, with the file's content at that moment."""
    made: list[str] = []

    def watched(name, real, path_of):
        def call(*args, **options):
            path = Path(path_of(args))
            made.append(f"{name} {path.read_text()}" if path.is_file() else f"{name} folder")
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    watched("replace", os.replace, lambda args: args[0])
    watched("rename", os.rename, lambda args: args[0])
    watched("fsync", os.fsync, lambda args: os.readlink(f"/proc/self/fd/{args[0]}"))
    write()
    monkeypatch.undo()
    return made


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks the system for the names of open files")
def test_the_disk_has_a_file_before_its_name_and_the_name_before_the_writer_returns(monkeypatch, tmp_path):
    """A test that kills the process cannot see this: what was written outlives it, not a loss of power."""
    made = calls_of(monkeypatch, lambda: files.write_text(tmp_path / "a", "new"))
    assert made == ["fsync new", "replace new", "fsync folder"]

    def together():
        with files.replacing_together(tmp_path) as beside:
            (beside / "a").write_text("newer")
            (beside / "b").write_text("new")

    made = calls_of(monkeypatch, together)
    moment = made.index("rename folder")
    assert {"fsync newer", "fsync new", "fsync folder"} <= set(made[:moment])
    assert made[-1] == "fsync folder"
