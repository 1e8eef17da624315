"""What the fuzzer (tests/fuzz) found, each as a small case of its own: refused by name, soon, in few words."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glasscluster.base import files, limits
from glasscluster.base.errors import InputError, nearest
from glasscluster.cli import main
from glasscluster.commands.failures import fault
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.pipeline.schedules import make_schedule

SHAPE = "--layers 2 --hidden 16 --heads 2 --seq 16"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def glass(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of `glass` with these words; one text may hold several."""
    listed = words[0].split() + list(words[1:]) if words else []
    with pytest.raises(SystemExit) as end:
        main(listed)
    said = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, said.out, said.err


def refused(capsys, field: str, *words: str) -> str:
    """The message with which a command line is refused, which names a field and can be read."""
    code, _, err = glass(capsys, *words)
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert last.startswith(f"InputError: {field}"), last
    assert len(last) < 2000
    return last


# ---- a fault of ours ---------------------------------------------------------------------------------------
def broken(monkeypatch, raised: BaseException) -> None:
    """Make `glass list` raise."""

    def run():
        raise raised

    monkeypatch.setattr("glasscluster.commands.list.body", lambda name: run)


def test_what_nobody_foresaw_is_a_fault_of_ours_with_its_traceback_in_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken(monkeypatch, KeyError("a\nb"))
    code, out, err = glass(capsys, "list")
    assert code == 3
    assert err.startswith("a fault of ours: KeyError: ")
    assert f"({Path(__file__).name}:" in err
    assert len(err.splitlines()) == 1
    kept = Path(err.strip().rpartition(" is in ")[2])
    assert kept.parent == tmp_path
    assert "Traceback (most recent call last)" in kept.read_text()
    assert "glass 'list'" in kept.read_text()
    assert out == ""


def test_a_fault_of_ours_is_one_object_with_json(capsys, monkeypatch):
    broken(monkeypatch, RecursionError("deep"))
    code, out, err = glass(capsys, "list --json")
    assert code == 3
    assert json.loads(out)["error"] == "Fault"
    assert "RecursionError" in err
    Path(err.strip().rpartition(" is in ")[2]).unlink()


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no")


def test_an_exception_that_cannot_be_written_and_a_full_disk_do_not_hide_the_fault(capsys, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    assert fault(Mute(), ["list"]) == 3
    assert "Mute: it does not say what" in (said := capsys.readouterr().err)
    assert "could not be kept" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_standard_output_is_named():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "glasscluster", "list"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "InputError: out = 'standard output': cannot be written: No space left on device"
    )


# ---- messages ----------------------------------------------------------------------------------------------
LONG = "x" * 5000


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("command", (LONG,)),
        ("x", (f"predict --{LONG}",)),
        ("pp", (f"predict --pp {'9' * 5000}",)),
        ("recompute", ("predict --recompute", LONG)),
        ("command", ("schedule 1f1b --pp 2 --micro-batches 4", LONG)),
        ("placement", ("collective all-reduce --gpus 4 --size 1MiB --placement", LONG)),
    ],
)
def test_a_value_of_five_thousand_characters_is_cut_in_the_message(capsys, field, words):
    refused(capsys, field, *words)


def test_the_error_of_json_is_cut_too(capsys):
    code, out, _ = glass(capsys, "predict --json --recompute", LONG)
    assert code == 2
    assert len(out) < 3000
    assert json.loads(out)["field"] == "recompute"


def test_likeness_of_long_words_is_judged_by_their_beginning():
    assert nearest("ring" + "x" * 10**6, ["ring", "tree"]) == "ring"


def test_a_name_that_is_empty_is_named_all_the_same(capsys):
    Path("r.json").write_text('{"": 1}')
    assert "'' = 1: unknown option" in refused(capsys, "''", "predict --request r.json")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("hardware", f"predict {SHAPE} --hardware"),
        ("model", "predict --model"),
        ("run", "replay"),
        ("scenario", "run"),
        ("data", f"train {SHAPE} --steps 1 --backend threads --data"),
        ("weights", "generate --no-check --weights"),
        ("topology", "collective all-reduce --gpus 2 --size 1MiB --topology"),
        ("tokenizer", "tokenize encode abc --tokenizer"),
        ("csv", "predict --csv"),
    ],
)
@pytest.mark.parametrize("end", ["", ".json", "/x", ".py", ":2"])
def test_a_name_that_no_file_can_have_is_refused_by_its_option(capsys, field, words, end):
    refused(capsys, field, words, LONG + end)


def test_half_of_a_surrogate_pair_is_shown_escaped(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "initializer_range": "\\ud800"}')
    words = [sys.executable, "-m", "glasscluster", "doctor", "--model", "config.json"]
    for encoding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(words, capture_output=True, check=False, env=environment)
        assert b"\\ud800" in done.stdout + done.stderr
        assert b"fault of ours" not in done.stderr
        assert b"Traceback" not in done.stderr


# ---- numbers without a bound -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("layers", f"predict {SHAPE} --layers {10**30}"),
        ("seq", f"predict {SHAPE} --seq {10**9}"),
        ("cp", f"predict {SHAPE} --cp {10**9}"),
        ("dp", f"train {SHAPE} --dp {10**9}"),
        ("gpus", f"collective all-reduce --gpus {10**9} --size 1MiB"),
        ("count", f"serve {SHAPE} --count {10**9}"),
        ("items", f"evaluate {SHAPE} --items {10**9}"),
        ("pp", f"schedule 1f1b --pp {10**9} --micro-batches 4"),
        ("pp", "schedule zb-v --pp 5000 --micro-batches 3"),
        ("micro_batches", f"schedule 1f1b --pp 2 --micro-batches {10**12}"),
        ("virtual_stages", f"schedule interleaved --pp 2 --micro-batches 4 --virtual-stages {10**6}"),
    ],
)
def test_a_number_with_a_few_zeros_too_many_is_refused_with_the_largest_that_is_not(capsys, field, words):
    assert "at most" in refused(capsys, field, words)


def test_the_largest_numbers_are_beyond_every_model_that_we_know():
    from glasscluster.model.presets import PRESETS

    for shape in PRESETS.values():
        fields = shape if isinstance(shape, dict) else shape.model_dump()
        limits.check_numbers(fields)
        for name, value in fields.items():
            if name in limits.LARGEST and isinstance(value, int):
                assert value * 10 <= limits.LARGEST[name], name


def test_the_largest_schedule_is_made():
    with pytest.raises(InputError) as error:
        make_schedule("1f1b", 4, 10**9)
    most = error.value.nearest
    assert isinstance(most, int)
    assert most == limits.MOST_ACTIONS // (limits.PARTS * 4)
    assert sum(map(len, make_schedule("1f1b", 4, most).ranks)) == 2 * 4 * most
    assert 2 * 4 * most < sum(map(len, make_schedule("zb-h1", 4, most).ranks)) <= limits.MOST_ACTIONS
    with pytest.raises(InputError, match="micro-batches at most"):
        make_schedule("1f1b", 4, most + 1)


# ---- files of strangers ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "listed",
    ["", "{", "7", "null", "[1]", '[""]', '["../victim"]', '["/victim"]', '["a\\u0000"]', '{"a": 1}'],
)
def test_a_stranger_s_list_of_removals_removes_nothing_outside_the_folder(tmp_path, listed):
    (tmp_path / "victim").write_text("kept")
    complete = tmp_path / "run" / files.COMPLETE
    complete.mkdir(parents=True)
    (complete / files.REMOVED).write_text(
        listed.replace("/victim", f"{tmp_path}/victim", listed == '["/victim"]')
    )
    with pytest.raises(InputError) as error:
        files.finish(tmp_path / "run")
    assert error.value.field == "folder"
    assert (tmp_path / "victim").read_text() == "kept"


def test_an_action_of_five_thousand_digits_is_refused_by_its_word(capsys):
    Path("s.txt").write_text(f"0F0 0B0 {'9' * 5000}F0\n")
    code, _, err = glass(capsys, "schedule mine --pp 1 --micro-batches 1 --validate s.txt")
    assert code == 2
    assert "InputError: validate = '999" in err


REQUEST = {"prompt": "abc", "tokens": 1, "arrival_s": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("tokens", bad) for bad in (0, -1, 1.5, "1", None, True, float("inf"), [])),
        *(("arrival_s", bad) for bad in (-1, float("nan"), float("inf"), "0", None)),
        *(("prompt", bad) for bad in (5, None, [1.5], ["a"], [None], [True], {}, "\ud800")),
        ("arival_s", 1),
    ],
)
def test_a_request_that_cannot_be_served_is_named_by_its_place(capsys, key, value):
    Path("r.json").write_text(json.dumps([REQUEST, {**REQUEST, key: value}]))
    refused(capsys, f"requests[1].{key}", f"serve {SHAPE} --no-check --requests r.json")


@pytest.mark.parametrize("content", ["{}", "7", "[7]", '["abc"]', "null"])
def test_requests_that_are_no_list_of_objects_are_refused(capsys, content):
    Path("r.json").write_text(content)
    assert "must be a JSON list" in refused(capsys, "requests", f"serve {SHAPE} --no-check --requests r.json")


@pytest.mark.parametrize("wrong", [True, "1e9", [1], None])
def test_a_number_of_a_profile_in_quotation_marks_or_true_is_none(tmp_path, wrong):
    hardware("dgx-h100").save(tmp_path / "hw.json")
    content = json.loads((tmp_path / "hw.json").read_text())
    content["gpu"]["reduce_rate"] = wrong
    (tmp_path / "hw.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        hardware(str(tmp_path / "hw.json"))
    assert error.value.field == "gpu.reduce_rate"


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"", b"{", b"[" * 100_000, b"9" * 5000, b"null", b"\0"])
def test_standard_input_that_is_no_request_is_refused(capsys, monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    refused(capsys, "request", "predict --request -")


def test_standard_input_that_never_ends_is_read_up_to_a_limit():
    with open("/dev/zero", "rb") as endless, pytest.raises(InputError, match="more than 1,000 bytes"):
        files.read_json_of("request", "-", endless, limit=1000)


def test_train_has_no_dry_backend_and_says_what_has(capsys):
    assert "glass predict" in refused(capsys, "backend", f"train {SHAPE} --steps 1 --backend dry")


# ---- a signal while commands are imported ------------------------------------------------------------------
DISGUISED = """
import os, signal
from glasscluster import cli
def importing(name):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass
    except KeyboardInterrupt:
        raise ValueError("pydantic builds a schema") from None
cli.import_module = importing
cli.main([])
"""


def test_a_signal_that_a_library_turns_into_another_error_ends_in_one_line():
    done = subprocess.run([sys.executable, "-c", DISGUISED], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr.strip() == "terminated: nothing was written"


def test_a_node_of_more_gpus_than_64_bits_count_is_refused(tmp_path, capsys):
    hardware("dgx-h100").save(tmp_path / "hw.json")
    content = json.loads((tmp_path / "hw.json").read_text())
    (tmp_path / "hw.json").write_text(json.dumps({**content, "node_size": 1 << 64}))
    assert "node_size" in refused(capsys, "node_size", f"predict {SHAPE} --hardware {tmp_path / 'hw.json'}")


@pytest.mark.parametrize("epsilon", [1e18, 1.5, 0, -1, float("nan"), float("inf")])
def test_an_epsilon_that_drowns_what_it_is_added_to_is_refused(tmp_path, epsilon):
    """The fuzzer saw a model with an epsilon of 1e18 generate: its norms give zeros."""
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 8, "vocab_size": 32}
    for given, right in ((1e-5, True), (epsilon, False)):
        config = {"model_type": "gpt2", **sizes, "layer_norm_epsilon": given}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(SystemExit) as end:
            main(["predict", "--model", str(tmp_path / "config.json")])
        assert end.value.code == (0 if right else 2)


@pytest.mark.parametrize("out", ["", ".", "/", "..", "a/.."])
def test_a_schedule_s_file_without_a_name_is_refused(capsys, out):
    with pytest.raises(SystemExit) as end:
        main(["schedule", "1f1b", "--pp", "2", "--micro-batches", "4", "--out", out])
    assert end.value.code == 2
    assert "must end in .html" in capsys.readouterr().err
