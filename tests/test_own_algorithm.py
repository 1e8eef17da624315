"""`--algorithm FILE.py:NAME`: an all-reduce of one's own trains as the ring does, on threads and on Ray."""

from __future__ import annotations

import json
import textwrap

import pytest
from helpers import differences, run_plan, worst

from glasscluster.base.errors import InputError
from glasscluster.cli import main
from glasscluster.sim.ranks.collectives import ALGORITHMS
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
def test_ray_actors_load_the_file_and_train_to_the_same_bits_as_threads(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(dp=2, tp=2, algorithm="toy.py:by-the-first", precision="fp64")
    job = Job(plan, make_model("tiny", **MODEL), steps=2, capture=True)
    monkeypatch.chdir("/")
    found = {}
    for backend in ("threads", "ray"):
        with Cluster("classroom", plan.gpus, backend, memory_bytes=None) as cluster:
            found[backend] = cluster.run(train_rank, job, record=False).results
    assert check.digest(found["ray"]) == check.digest(found["threads"])
    assert worst(check.compare(found["ray"], check.reference_for(job), plan)) <= 1e-10
