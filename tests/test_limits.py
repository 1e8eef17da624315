"""What cannot be started or held is refused before it is tried, with the number and the machine's."""

from __future__ import annotations

import json

import pytest
from helpers import run_plan

from glasscluster import Cluster
from glasscluster.base import limits
from glasscluster.base.errors import InputError
from glasscluster.cli import main
from glasscluster.scenarios.jobs import room
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan


@pytest.mark.parametrize("backend", ["threads", "ray", "dry"])
def test_a_billion_ranks_are_refused_and_the_nearest_number_is_not(backend):
    with pytest.raises(InputError, match="runs at most") as error:
        Cluster("classroom", 10**9, backend)
    most = error.value.nearest
    Cluster("classroom", most, backend)
    with pytest.raises(InputError):
        Cluster("classroom", most + 1, backend)


@pytest.mark.parametrize("words", ["train --steps 1", "generate --tokens 1", "serve", "evaluate"])
def test_weights_larger_than_the_machine_s_memory_are_refused(capsys, monkeypatch, words):
    monkeypatch.setattr(limits, "machine_bytes", lambda: 10**5)
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--backend", "threads"])
    assert end.value.code == 2
    assert "this machine has 0.0001 GB" in capsys.readouterr().err


def test_a_model_of_a_terabyte_is_refused(capsys):
    words = "train --layers 1 --hidden 1048576 --heads 1 --memory 900000GB --backend threads".split()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "this machine has" in capsys.readouterr().err


def said(capsys, words):
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as end:
        main(words.split())
    return end.value.code, *capsys.readouterr()


PLANS = [{}, {"dp": 2}, {"dp": 2, "zero": 1}, {"dp": 4, "zero": 2, "shard": 2}, {"dp": 2, "zero": 3}]
PLANS += [{"tp": 2, "pp": 2}, {"dp": 2, "precision": "bf16"}, {"cp": 2, "optimizer": "sgd"}]


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_what_a_training_needs_is_no_more_than_its_ranks_hold(options):
    plan, model = make_plan(global_batch=4, **options), make_model("tiny", layers=2)
    held = sum(sum(r.state_bytes.values()) for r in run_plan(plan, model, steps=1).results)
    needed = room.of_training(Job(plan, model, 1), False).run
    assert needed <= held
    if options.keys() <= {"dp", "precision"}:
        assert needed == held


def test_experts_on_other_ranks_are_not_counted_twice():
    plan, model = make_plan(dp=2, ep=2, global_batch=2), make_model("tiny", layers=1, experts=4)
    held = sum(sum(r.state_bytes.values()) for r in run_plan(plan, model, steps=1).results)
    assert room.of_training(Job(plan, model, 1), False).run <= held


COMMANDS = {
    "train": "train --model gpt2-small --steps 1 --memory 900GB --backend threads",
    "generate": "generate --model gpt2-small --tokens 1",
    "serve": "serve --model gpt2-small --count 1",
    "evaluate": "evaluate --model gpt2-small --items 8 --precision bf16 --dp 2",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_check_that_alone_is_too_large_is_refused_and_the_run_without_it_named(
    capsys, monkeypatch, command
):
    words = COMMANDS[command]
    monkeypatch.setattr(limits, "machine_bytes", lambda: 10**3)
    code, out, _ = said(capsys, f"{words} --json")
    assert (code, json.loads(out)["field"]) == (2, "model")
    # of 124,439,808 parameters: states of 16 bytes each, or weights of 4, or two replicas of 2
    few = {"train": 2.0e9, "generate": 0.51e9, "serve": 0.53e9, "evaluate": 0.5e9}[command]
    for at in (limits, room):
        monkeypatch.setattr(at, "machine_bytes", lambda: few)
    code, out, _ = said(capsys, f"{words} --json")
    told = json.loads(out)
    assert (code, told["field"], told["nearest"]) == (2, "check", False)
    assert "the check in float64 of 124,439,808 parameters needs at least" in told["rule"]
    assert f"this machine has {few / 1e9:.4g} GB; --no-check leaves it out" in told["rule"]


def test_a_cache_larger_than_the_machine_is_refused(capsys):
    code, out, _ = said(capsys, "serve --model tiny --count 1 --blocks 1000000000 --json")
    assert (code, json.loads(out)["field"]) == (2, "model")
    assert "weights and cache (1.638e+04 GB of it cache)" in json.loads(out)["rule"]


LARGE = ["train --steps 1 --memory 1GB --backend threads", "generate --tokens 1", "serve --count 1"]
LARGE += ["evaluate --task copying --items 2"]


SIZES = [("parameters", words) for words in LARGE] + [("memory", LARGE[1]), ("neither", LARGE[1])]


@pytest.mark.parametrize(("why", "words"), SIZES)
def test_a_large_model_says_its_size_before_it_begins(tmp_path, capsys, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "LARGE", 200_000 if why == "parameters" else 10**9)
    if why == "memory":
        monkeypatch.setattr(room, "MUCH", 1e-6)
    code, out, err = said(capsys, f"{words} --no-check --json")
    assert code == 0, err
    assert "error" not in json.loads(out)
    sizes = [i for i, line in enumerate(err.splitlines()) if "this is large: 220,544 parameters, at" in line]
    assert sizes == ([] if why == "neither" else [1])  # behind the line with the command's name


def test_a_recording_larger_than_the_machine_s_memory_is_refused_from_its_first_ranks(monkeypatch, capsys):
    monkeypatch.setattr(limits, "machine_bytes", lambda: 10**6)
    code, _, err = said(capsys, "collective all-reduce --gpus 40 --size 1MiB")  # a ring: one rank is recorded
    assert code == 2
    # of each rank 78 sends and receives, 39 additions, a launch and an end
    assert "gpus = 40: needs at least 0.00394 GB of a recording of 7,880 events" in err
    code, _, err = said(capsys, "collective all-reduce --algorithm direct --gpus 40 --size 1MiB")
    assert (code, "recording of" in err) == (2, True)
    code, _, err = said(capsys, "predict --layers 2 --hidden 16 --heads 2 --seq 16 --dp 40")
    assert (code, "recording of" in err) == (2, True)
    # a root does far more than the others, which is not taken for what every rank does
    assert said(capsys, "collective broadcast --algorithm direct --gpus 64 --size 1MiB")[0] == 0
    assert said(capsys, "collective all-reduce --gpus 8 --size 1MiB")[0] == 0


def test_a_long_recording_says_how_far_it_is(monkeypatch, capsys):
    from glasscluster.sim.ranks.backends import dry

    monkeypatch.setattr(dry, "SAY_EVERY_S", 0.0)
    for words in (
        "collective all-reduce --algorithm direct --gpus 6 --size 1MiB",
        "predict --layers 1 --dp 6",
    ):
        assert "recorded 4 of 6 ranks\n" in said(capsys, words)[2]
