"""`--algorithm FILE.py:NAME`: an all-reduce of one's own trains as the ring does, on threads and on Ray."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch
from helpers import differences, run_plan, worst

from glasscluster import collective
from glasscluster.base.errors import GlassError, InputError
from glasscluster.cli import main
from glasscluster.sim.ranks.collectives import ALGORITHMS, load
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge import accounts, check
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

TOY = '''
from glasscluster.sim.ranks.collectives import collective


@collective("all_reduce", "{name}")
def all_to_the_first_and_back(work, x, op="sum"):
    """Everybody sends everything to rank 0, which adds it up and sends the sum back."""
    others = range(1, work.size)
    if work.rank:
        yield work.send(x, 0)
        yield work.recv(x, 0)
    else:
        staging = work.stage(x.numel(), x)
        for other in others:
            yield work.recv(staging, other)
            work.reduce(x, staging, op)
        for other in others:
            yield work.send(x, other)
'''
MODEL = {"layers": 2, "hidden": 16, "heads": 4, "seq": 8, "vocab": 32}
PLANS = {
    "dp": {"dp": 3},
    "zero": {"dp": 2, "zero": 2},
    "zero3 hybrid": {"dp": 4, "zero": 3, "shard": 2},
    "3d": {"dp": 2, "tp": 2, "pp": 2, "zero": 1},
    "sequence": {"tp": 2, "cp": 2, "sequence_parallel": True},
    "experts": {"dp": 2, "ep": 2},
}


@pytest.fixture(autouse=True)
def _forget():
    """What a test registers is not there for the next."""
    before = {operation: dict(known) for operation, known in ALGORITHMS.items()}
    yield
    for operation, known in before.items():
        ALGORITHMS[operation].clear()
        ALGORITHMS[operation].update(known)


@pytest.fixture
def toy(tmp_path):
    """FILE.py:NAME of the toy."""
    (tmp_path / "toy.py").write_text(TOY.format(name="by-the-first"))
    return f"{tmp_path}/toy.py:by-the-first"


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_it_trains_as_one_device_does(toy, options):
    model = make_model("tiny", **MODEL, **({"experts": 4} if "ep" in options else {}))
    assert worst(differences(make_plan(algorithm=toy, **options), model)) <= 1e-10


def rows_of(options, model=MODEL):
    plan, shape = make_plan(**options), make_model("tiny", **model)
    run = run_plan(plan, shape)
    judged = Judged(plan, shape, run.graph, run.results, run.timeline)
    return {r.key: r for r in accounts.rows(judged)}, run.graph


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"dp": 2}, {"dp_gradients_sent", "last_bucket_reduced"}),
        ({"dp": 2, "zero": 1}, set()),  # a reduce-scatter and an all-gather, which the file does not have
        ({"dp": 4, "zero": 2, "shard": 2}, {"dp_gradients_sent_across"}),
        ({"tp": 2}, {"tp_layer_sent", "tp_embedding_sent", "tp_head_sent", "tp_loss_sent"}),
        ({"tp": 2, "sequence_parallel": True}, {"tp_loss_sent", "tp_norm_gradients_sent"}),
        ({"pp": 2}, {"tied_embedding_gradients_sent"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_rows_of_a_ring_s_bytes_are_not_applicable_where_it_ran_and_all_others_hold(toy, options, other):
    ours, graph = rows_of({**options, "algorithm": toy})
    rings, _ = rows_of(options)
    assert list(ours) == list(rings)
    off = [{k for k, r in rows.items() if r.verdict == "not applicable"} for rows in (ours, rings)]
    assert off[0] - off[1] == other
    for key in other:
        assert "another algorithm ran" in ours[key].because.en
        assert ours[key].because.zh != ours[key].because.en
    assert {r.verdict for k, r in ours.items() if k not in other} <= {"held", "not applicable"}
    counted = sum(r.counted for k, r in ours.items() if k.endswith(("_sent", "_across")))
    scalars = sum(sum(graph.bytes_sent(axis=a, purpose="scalars")) for a in ("dp", "tp", "pp"))
    assert counted + scalars == sum(graph.bytes_sent()), "every byte is counted, whoever sent it"


def test_the_recording_names_what_ran(toy):
    _, graph = rows_of({"dp": 2, "zero": 1, "algorithm": toy})
    ran = {"reduce_scatter/ring", "all_gather/ring", "all_reduce/by-the-first"}
    assert {n for n in graph.names if "/" in n} >= ran
    assert not any(".py" in n for n in graph.names)


def test_a_file_s_all_to_all_serves_experts_and_ulysses(tmp_path):
    source = """
    from glasscluster.sim.ranks.collectives import collective, direct

    @collective("all_to_all", "mine")
    def mine(work, x, **more):
        return direct.all_to_all(work, x, **more)
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    for options, model in (({"dp": 2, "ep": 2}, {"experts": 4}), ({"cp": 2, "context": "ulysses"}, {})):
        rows, graph = rows_of({**options, "algorithm": f"{tmp_path}/mine.py:mine"}, {**MODEL, **model})
        assert "all_to_all/mine" in graph.names
        assert "all_to_all/direct" not in graph.names
        assert rows["dp_gradients_sent"].verdict == "held"


@pytest.mark.parametrize(
    ("source", "name", "rule"),
    [
        (None, "x", "there is no file"),
        ("nonsense = 1", "x", "registers no algorithm of this name"),
        ("1 / 0", "x", "fails on import: ZeroDivisionError"),
        (TOY.format(name="half") + "1 / 0", "half", "fails on import"),
        (TOY.format(name="ring"), "ring", "has an algorithm of this name"),
        (TOY.replace("all_reduce", "all_redcue").format(name="x"), "x", "unknown collective"),
    ],
    ids=str,
)
def test_a_mistake_in_the_file_is_one_of_usage(tmp_path, capsys, monkeypatch, source, name, rule):
    monkeypatch.chdir(tmp_path)
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--dp", "2", "--backend", "threads", "--algorithm", f"mine.py:{name}", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 2
    assert rule in said["message"], said
    assert "half" not in ALGORITHMS["all_reduce"], "nothing of a file that fails stays"
    assert not (tmp_path / "runs").exists()


def test_a_plan_names_the_file_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_plan(dp=2, algorithm="toy.py:x").algorithm == f"{tmp_path}/toy.py:x"
    assert make_plan(dp=2).algorithm == "ring"
    with pytest.raises(InputError, match="algorithm"):
        make_plan(dp=2, algorithm="tree").check(make_model("tiny"))


@pytest.mark.ray
def test_ray_actors_load_the_file_and_train_to_the_same_bits_as_threads(toy, tmp_path, monkeypatch, actors):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(dp=2, tp=2, algorithm="toy.py:by-the-first", precision="fp64")
    job = Job(plan, make_model("tiny", **MODEL), steps=2, capture=True)
    monkeypatch.chdir("/")
    threads = Cluster("classroom", plan.gpus, "threads", memory_bytes=None)
    here, there = (c.run(train_rank, job, record=False).results for c in (threads, actors(plan.gpus)))
    assert check.digest(there) == check.digest(here)
    assert worst(check.compare(there, check.reference_for(job), plan)) <= 1e-10


# ---- mistakes in the steps -----------------------------------------------------------------------------
STEPS = {  # what an algorithm does -> what is said of it; its last line is line 7 of the file
    "yield None": "mine.py:7, in mine, yields None",
    "yield [work.send(x, right), work.recv(y, left)]": "lists in a list; add them: work.send(...) +",
    "yield work.send(x, right), work.recv(y, left)": "mine.py:7, in mine, yields lists in a list",
    "yield work.exchange(x, right, y, left)[0]": "mine.py:7, in mine, yields a single message",
    "yield [x]": "mine.py:7, in mine, yields a list with a Tensor",
    "work.recv(y, left); yield work.send(x, right)": "mine.py:7 posts a receive from rank 2 that no",
    "yield from inner(work)": "mine.py:11, in inner, yields 3",
    "return [work.send(x, right)] if 0 else None": "mine.py:4, mine returned None, and must have steps",
    "yield work.send(x, 9)": "there is no rank 9 in a group of 3 ranks (mine.py:7, in mine)",
    "yield []; x.view(5, 5, 5)": "(mine.py:7, in mine)",
    "yield work.recv(y, left)": "at mine.py:7, called at test_own_algorithm.py:",
}
MINE = """from glasscluster import collective


@collective("all_reduce", "mine")
def mine(work, x, op="sum"):
    y, left, right = x.clone(), (work.rank - 1) % work.size, (work.rank + 1) % work.size
    {step}


def inner(work):
    yield 3
"""


def run_mine(tmp_path, step):
    (tmp_path / "mine.py").write_text(MINE.format(step=step))
    load_and_sum = f"{tmp_path}/mine.py:mine"
    return Cluster("classroom", 3, memory_bytes=None).run(sum_by, load_and_sum).results


def sum_by(gpu, algorithm):
    x = torch.full((4,), float(gpu.rank))
    gpu.comm.all_reduce(x, algorithm=algorithm)
    return x.tolist()


@pytest.mark.parametrize("step", STEPS)
def test_a_mistake_in_a_step_names_the_line_of_its_author(tmp_path, step):
    with pytest.raises(GlassError) as stopped:
        run_mine(tmp_path, step)
    assert STEPS[step] in stopped.value.message, stopped.value.message


def test_a_step_that_is_right_in_every_spelling_runs(tmp_path):
    step = "yield work.recv(y, left) + work.send(x, right); x += y; yield (); yield []"
    assert run_mine(tmp_path, step)[0] == [2.0] * 4


@pytest.mark.parametrize(
    ("operation", "takes"),
    [("all_reduce", "x"), ("broadcast", "x"), ("reduce", "x, op"), ("all_to_all", "x, out")],
)
def test_a_function_that_cannot_be_called_as_its_operation_calls_it_is_refused(tmp_path, operation, takes):
    source = MINE.format(step="yield []").replace("all_reduce", operation).replace('x, op="sum"', takes)
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(InputError) as refused:
        load(f"{tmp_path}/mine.py:mine")
    assert f"mine.py:4: {operation} calls it as mine(work, x, " in refused.value.rule


def test_a_mistake_in_a_step_of_a_training_is_one_of_usage_and_leaves_no_folder(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE.format(step="yield None"))
    with pytest.raises(SystemExit) as stopped:
        main("train --dp 3 --backend threads --no-check --algorithm mine.py:mine --json".split())
    said = json.loads(capsys.readouterr().out)
    assert (stopped.value.code, said["field"]) == (2, "algorithm")
    assert "mine.py:7, in mine, yields None" in said["message"]
    assert list((tmp_path / "runs").iterdir()) == []


# ---- glass collective and predict ----------------------------------------------------------------------
def command(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main([*words.split(), "--json"])
    return int(stopped.value.code or 0), json.loads(capsys.readouterr().out)


def test_a_file_is_timed_beside_ours_and_predicts(toy, capsys):
    sweep = "--sweep 1KiB:4KiB --against ring"
    code, said = command(capsys, f"collective all-reduce --algorithm {toy} --gpus 4 --size 1MiB {sweep}")
    assert (code, said["algorithm"], said["bytes_sent_per_gpu"]) == (
        0,
        "by-the-first",
        [3 << 20, *[1 << 20] * 3],
    )
    assert [row["algorithm"] for row in said["sweep"]] == ["by-the-first", "by-the-first", "ring", "ring"]
    times = []
    for algorithm in (toy, "ring"):
        code, said = command(capsys, f"predict --dp 4 --algorithm {algorithm}")
        assert (code, said["collectives"].rpartition(":")[2]) == (0, algorithm.rpartition(":")[2])
        times.append(said["iteration_time_s"])
    assert times[0] > times[1]


@pytest.mark.parametrize(
    ("step", "code", "said"),
    [
        (
            "yield work.exchange(x, right, y, left); work.reduce(x, y, op)",
            1,
            "rank 0 has 3 in element 0 of 12, and",
        ),
        ("yield work.recv(y, left)", 3, "at mine.py:7"),
        ("yield None", 2, "mine.py:7, in mine, yields None"),
    ],
)
def test_a_collective_with_a_wrong_result_gets_no_time(tmp_path, capsys, monkeypatch, step, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE.format(step=step))
    line = "collective all-reduce --algorithm mine.py:mine --gpus 4 --size 1KiB"
    stopped, answer = command(capsys, line)
    assert stopped == code, answer
    assert said in answer["message"], answer


@pytest.mark.ray
def test_on_ray_a_program_s_own_algorithm_runs_and_a_mistake_in_a_file_names_its_line(tmp_path, actors):
    @collective("all_reduce", "of this program")
    def mine(work, x, op="sum"):
        y = x.clone()
        for distance in range(1, work.size):
            yield work.exchange(
                y,
                (work.rank + distance) % work.size,
                z := x.new_empty(x.numel()),
                (work.rank - distance) % work.size,
            )
            work.reduce(x, z, op)

    assert actors(2).run(sum_by, "of this program").results == [[1.0] * 4] * 2
    (tmp_path / "mine.py").write_text(MINE.format(step="yield None"))
    with pytest.raises(InputError, match=r"mine\.py:7, in mine, yields None"):
        actors(2).run(sum_by, f"{tmp_path}/mine.py:mine")
