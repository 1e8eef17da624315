"""Files from outside are taken or refused by name, and files of ours are old or new, whatever kills the
writer.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from glasscluster import cli
from glasscluster.base import files
from glasscluster.base.errors import InputError
from glasscluster.sim.recording import arrays

# ---- reading -----------------------------------------------------------------------------------------------


def test_a_byte_order_mark_and_foreign_line_ends_change_nothing(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a":\r\n1}')
    assert files.read_json("hardware", tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfdp,tp\r\n2,1\r\n")
    assert files.read_text("csv", tmp_path / "a.csv") == "dp,tp\n2,1\n"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "zero in the name"])
def test_only_a_regular_file_is_read_and_at_once(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)  # opened without a writer, an ordinary open() waits for ever
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path = tmp_path
    elif kind == "zero in the name":
        path = tmp_path / "a\0b"
    with pytest.raises(InputError) as error:
        files.read_bytes("data", path)
    assert error.value.field == "data"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(b"0" * 101)
    assert len(files.read_bytes("data", tmp_path / "x", 101)) == 101
    with pytest.raises(InputError, match="101 bytes; at most 100"):
        files.read_bytes("data", tmp_path / "x", 100)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, "9" * 5000, "no", "", '{"a": 1,}'],
    ids=["cut", "lists", "objects", "digits", "word", "empty", "comma"],
)
def test_what_is_no_json_or_too_deep_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError) as error:
        files.read_json("hardware", tmp_path / "x.json")
    assert error.value.field == "hardware"
    assert len(error.value.message) < 1000


def test_depth_counts_brackets_inside_each_other_and_not_those_in_strings(tmp_path):
    assert files.parse_json("x", "x", json.dumps(["[" * 500] * 500))
    deep = "[" * files.DEEPEST + "]" * files.DEEPEST
    files.parse_json("x", "x", deep)
    with pytest.raises(InputError, match="brackets"):
        files.parse_json("x", "x", f"[{deep}]")


def test_a_key_that_stands_twice_in_an_object_is_refused_by_its_name_and_both_values(tmp_path):
    text = '{"a": {"hidden": 8, "x": 0, "hidden": 16}, "b": {"hidden": 1}}'
    (tmp_path / "x.json").write_text(text)
    said = [lambda: files.read_json("model", tmp_path / "x.json")]
    said.append(lambda: files.read_json_of("model", "-", io.BytesIO(text.encode())))
    for read in said:
        with pytest.raises(InputError, match=r"has the key 'hidden' twice: 8 and then 16") as error:
            read()
        assert error.value.field == "model"
    assert files.parse_json("x", "x", text.replace('"x": 0, "hidden"', '"x"'))["a"] == {"hidden": 8, "x": 16}


TWICE = {
    "a model's shape": ("config.json", '{"model_type": "gpt2", "n_layer": 2, "n_layer": 3}', "--model"),
    "a tokenizer": ("tokenizer.json", '{"model": {}, "model": {}}', "--tokenizer"),
    "a profile": ("gpu.json", '{"gpu": {"memory": 1, "memory": 2}}', "--hardware"),
    "a request": ("request.json", '{"seq": 8, "seq": 16}', "--request"),
}


@pytest.mark.parametrize("what", TWICE)
def test_every_file_of_a_stranger_is_refused_that_has_a_key_twice(tmp_path, capsys, what):
    name, text, option = TWICE[what]
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as done:
        cli.main(["train", option, str(tmp_path / name), "--json"])
    assert done.value.code == 2
    error = json.loads(capsys.readouterr().out)
    assert error["field"] == option.strip("-")
    assert " twice: " in error["rule"]


def test_bytes_that_are_no_utf_8_are_named(tmp_path):
    (tmp_path / "x").write_bytes("dp\n".encode("utf-16"))
    with pytest.raises(InputError, match="byte 0 is 0xff"):
        files.read_text("csv", tmp_path / "x")


def test_an_archive_says_how_much_it_unpacks_to_before_it_does(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    with pytest.raises(InputError, match="unpacks to"):
        arrays.read_npz("graph", tmp_path / "bomb.npz", limit=1_000_000)
    assert len(arrays.read_npz("graph", tmp_path / "bomb.npz")["a"]) == 1_000_000


def test_a_pickle_in_an_archive_is_never_opened(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="is no archive of arrays"):
        arrays.read_npz("graph", tmp_path / "x.npz")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.npy", b"not an array")
    (tmp_path / "y.npz").write_bytes(data.getvalue())
    with pytest.raises(InputError):
        arrays.read_npz("graph", tmp_path / "y.npz")


# ---- writing -----------------------------------------------------------------------------------------------
# The child dies without a word in its n-th call to the disk; n goes through all of them.
KILLED = """
import io, os, sys
from pathlib import Path
from glasscluster.base import files
from glasscluster.sim.recording import arrays
folder, last = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def dying(real):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == last:
            os._exit(9)
        return real(*args, **options)
    return call
for name in ("replace", "rename", "fsync", "chmod", "unlink", "rmdir", "mkdir", "open"):
    setattr(os, name, dying(getattr(os, name)))
io.open = dying(io.open)  # what Path.write_bytes calls, before a byte is written
if sys.argv[3] == "one":
    files.write_text(folder / "a", "new" * 1000)
else:
    with files.replacing_together(folder, without=["c"]) as beside:
        (beside / "a").write_text("new")
        (beside / "b").write_text("new")
        (beside / "run").mkdir()
        (beside / "run" / "d").write_text("new")
"""


def killed_at(folder: Path, call: int, what: str) -> bool:
    """Whether the child was killed; else it has come to its end."""
    return (
        subprocess.run([sys.executable, "-c", KILLED, folder, str(call), what], check=False).returncode == 9
    )


def test_one_file_is_the_old_or_the_new_one_at_whichever_call_the_writer_dies(tmp_path):
    seen, call = set(), 1
    while True:
        (tmp_path / "a").write_text("old")
        dead = killed_at(tmp_path, call, "one")
        seen.add((tmp_path / "a").read_text())
        assert seen <= {"old", "new" * 1000}
        if not dead:
            break
        call += 1
    assert seen == {"old", "new" * 1000}
    assert call >= 4


def test_a_set_of_files_is_all_old_or_all_new_at_whichever_call_the_writer_dies(tmp_path):
    seen, call = [], 1
    while True:
        folder = tmp_path / str(call)
        (folder / "run").mkdir(parents=True)
        for name in ("a", "b", "c", "run/d"):
            (folder / name).write_text("old")
        dead = killed_at(folder, call, "set")
        files.finish(folder)
        there = {n: (folder / n).read_text() for n in ("a", "b", "c", "run/d") if (folder / n).exists()}
        old = dict.fromkeys(("a", "b", "c", "run/d"), "old")
        new = dict.fromkeys(("a", "b", "run/d"), "new")
        assert there in (old, new), call
        seen.append(there == new)
        assert not (folder / files.COMPLETE).exists()
        if not dead:
            break
        call += 1
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]
    assert sum(seen) >= 3, "some calls come after the moment that counts"


# A writer that has half of its files, says so, and waits to be killed or told to go on.
HALF = """
import sys
from pathlib import Path
from glasscluster.base import files
folder = Path(sys.argv[1])
def half(beside):
    beside.write_text("half")
    print("half", flush=True)
    sys.stdin.readline()
    beside.write_text("whole of the living")
if sys.argv[2] == "one":
    with files.replacing(folder / "a") as beside:
        half(beside)
else:
    with files.replacing_together(folder) as beside:
        half(beside / "a")
"""


def half_written(folder: Path, what: str) -> subprocess.Popen[str]:
    """A writer that is in the middle."""
    writer = subprocess.Popen(
        [sys.executable, "-c", HALF, folder, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    return writer


def staging_in(folder: Path) -> set[Path]:
    return {*folder.glob(f"{files.WRITING}*")}


@pytest.mark.skipif(files.fcntl is None, reason="this system has no locks that end with their process")
@pytest.mark.parametrize("what", ["one", "set"])
@pytest.mark.parametrize("next_one", ["one", "set"])
def test_a_writer_removes_what_killed_writers_left_and_nothing_of_a_living_one(tmp_path, what, next_one):
    (tmp_path / "a").write_text("old")
    killed = half_written(tmp_path, what)
    (left,) = staging_in(tmp_path)
    living = half_written(tmp_path, what)
    try:
        (own,) = staging_in(tmp_path) - {left}
        assert left.exists(), "it was a living one's until here"
        killed.kill()
        killed.wait()
        if next_one == "one":
            files.write_text(tmp_path / "b", "new")
        else:
            with files.replacing_together(tmp_path) as beside:
                (beside / "b").write_text("new")
        assert staging_in(tmp_path) == {own}
        assert [p.read_text() for p in own.iterdir()] == ["half"]
        assert (tmp_path / "a").read_text() == "old"
        _, said = living.communicate("go on\n", timeout=60)
        assert (living.returncode, said) == (0, "")
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "whole of the living", "b": "new"}
    finally:
        for writer in (killed, living):
            writer.kill()
            writer.communicate()


@pytest.mark.skipif(files.fcntl is None, reason="this system has no locks that end with their process")
def test_a_folder_that_another_writer_takes_for_left_is_made_anew(tmp_path, monkeypatch):
    """Between the making of a folder and its lock another writer may see it without one, and remove it."""
    made, real = [], files.tempfile.mkdtemp

    def unlucky(**options):
        made.append(real(**options))
        if len(made) == 1:
            files.remove_left(tmp_path)
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", unlucky)
    files.write_text(tmp_path / "a", "new")
    assert len(made) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_where_a_disk_has_no_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    left = tmp_path / f"{files.WRITING}left"
    left.mkdir()

    def none(*_):
        raise OSError(37, "No locks available")

    if files.fcntl is not None:
        monkeypatch.setattr(files.fcntl, "flock", none)
    files.write_text(tmp_path / "a", "new")
    assert {p.name for p in tmp_path.iterdir()} == {"a", left.name}


def test_what_cannot_be_written_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device") as error:
        files.write_text(tmp_path / "a", "new", field="save")
    assert error.value.field == "save"
    with pytest.raises(InputError, match="No space left"), files.replacing_together(tmp_path) as beside:
        (beside / "a").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_file_keeps_its_permissions_and_a_new_one_gets_the_usual_ones(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    files.write_text(tmp_path / "a", "new")
    files.write_text(tmp_path / "b", "new")
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_two_at_once_never_get_the_same_new_folder(tmp_path):
    code = (
        "import sys; from glasscluster.base.files import new_folder; print(new_folder(sys.argv[1], 'train'))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    made = [child.communicate()[0].strip() for child in children]
    assert sorted(made) == [str(tmp_path / f"train-{n}") for n in range(1, 7)]


# ---- what commands leave -----------------------------------------------------------------------------------
TRAIN = "train --layers 1 --hidden 16 --heads 2 --seq 8 --backend threads --steps 2 --no-check --json"


def run_glass(*words: str) -> int:
    from glasscluster.cli import main

    with pytest.raises(SystemExit) as end:
        main(list(words))
    return int(end.value.code)


def test_a_run_that_fails_takes_away_the_verdict_of_the_one_before(tmp_path):
    out = ["--out", str(tmp_path / "run")]
    assert run_glass(*TRAIN.split(), *out) == 0
    (tmp_path / "run" / "mine.txt").write_text("a note of the reader's")
    before = {p.name for p in (tmp_path / "run").iterdir()}
    assert before == {"report.html", "graph.npz", "ledger.csv", "trace.json", "run.json", "mine.txt"}
    assert run_glass(*TRAIN.split(), *out, "--lr", "1e30") == 3
    after = {p.name for p in (tmp_path / "run").iterdir()}
    assert after == {"partial-rank0.npz", "run.json", "mine.txt"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["error"] == "NonFinite"
    assert run_glass(*TRAIN.split(), *out) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == before


def test_weights_are_saved_before_anything_that_could_still_fail(tmp_path, monkeypatch):
    from glasscluster.scenarios.jobs import training

    def full(*_, **__):
        raise InputError("out", "run", "cannot be written: No space left on device")

    monkeypatch.setattr(training, "write_files", full)
    words = [*TRAIN.split(), "--out", str(tmp_path / "run"), "--save", str(tmp_path / "weights")]
    assert run_glass(*words) == 2
    assert (tmp_path / "weights" / "model.safetensors").is_file()


def test_new_weights_in_a_folder_of_several_files_are_the_ones_that_are_read(tmp_path):
    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.weights import hugging_face

    tiny = ModelConfig(layers=1, hidden=16, heads=2, seq=8, vocab=32)
    hugging_face.save(GPTStage(tiny, seed=1), tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "model-1.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "model-1.safetensors"}}
    (tmp_path / hugging_face.INDEX).write_text(json.dumps(index))
    new = GPTStage(tiny, seed=2)
    hugging_face.save(new, tmp_path)
    assert not (tmp_path / hugging_face.INDEX).exists()
    assert hugging_face.load(tmp_path).embedding.token.equal(new.embedding.token)


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "", "..", 3, None])
def test_an_index_names_files_beside_it_and_no_others(tmp_path, name):
    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.weights import hugging_face
    from glasscluster.model.weights.families import WeightsError

    hugging_face.save(GPTStage(ModelConfig(layers=1, hidden=16, heads=2, seq=8, vocab=32)), tmp_path)
    (tmp_path / hugging_face.INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(WeightsError, match="is no file beside it"):
        hugging_face.load(tmp_path)


# ---- a byte-order mark, through every command that reads a file --------------------------------------------
SHAPE = "--layers 1 --hidden 16 --heads 2 --seq 16 --vocab 64"
MARKED = {
    "rows.csv": ("dp,tp\n2,1\n", f"predict {SHAPE} --csv rows.csv --out done.csv --json"),
    "mine.txt": ("0F0 0B0\n1F0 1B0\n", "schedule mine --pp 2 --micro-batches 1 --validate mine.txt --json"),
    "requests.json": ('[{"prompt": [1], "tokens": 2}]', f"serve {SHAPE} --requests requests.json --json"),
    "options.json": ('{"dp": 2}', f"predict {SHAPE} --request options.json --json"),
    "-": ('{"dp": 2}', f"predict {SHAPE} --request - --json"),
    "tokenizer.json": (None, "tokenize encode abc --tokenizer tokenizer.json --json"),
    "w/config.json": (None, "generate --weights w --prompt-length 2 --tokens 2 --json"),
    "machine.json": (None, f"predict {SHAPE} --hardware machine.json --json"),
}


@pytest.mark.parametrize("name", MARKED)
def test_every_command_reads_a_file_with_a_byte_order_mark_as_without(name, tmp_path, monkeypatch, capsys):
    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.text.tokenizer import Tokenizer
    from glasscluster.model.weights import hugging_face
    from glasscluster.sim.time.hardware import hardware

    monkeypatch.chdir(tmp_path)
    Tokenizer.train([b"abc abc"], 258).save("tokenizer.json")
    hugging_face.save(GPTStage(ModelConfig(layers=1, hidden=16, heads=2, seq=8, vocab=32)), "w")
    hardware("dgx-h100").save("machine.json")
    text, line = MARKED[name]
    if text is not None:
        Path(name).write_text(text)
    said, content = [], Path(name).read_bytes()
    for mark in (b"", b"\xef\xbb\xbf"):
        Path(name).write_bytes(mark + content)
        monkeypatch.setattr(sys, "stdin", io.StringIO((mark + content).decode()))
        assert run_glass(*line.split()) == 0
        said.append(json.loads(capsys.readouterr().out))
    for key in ("wall_s", "folder"):
        _ = [one.pop(key, None) for one in said]
    assert said[0] == said[1]
    if name == "rows.csv":
        assert Path("done.csv").read_text().splitlines()[0].startswith("dp,tp,")


# ---- weights and rows that would be taken for others -------------------------------------------------------
def test_a_head_that_is_not_the_embedding_is_not_passed_over(tmp_path):
    from safetensors.torch import load_file, save_file

    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.weights import hugging_face
    from glasscluster.model.weights.families import WeightsError

    hugging_face.save(GPTStage(ModelConfig(layers=1, hidden=16, heads=2, seq=8, vocab=32)), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    hugging_face.load(tmp_path)  # the same numbers twice, as older files have them
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lm_head.weight is not transformer.wte.weight"):
        hugging_face.load(tmp_path)
    assert not hugging_face.load(tmp_path, tied=False).config.tied


def test_weights_that_are_not_finite_are_named_when_they_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    from glasscluster.base.errors import NonFinite
    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.weights import hugging_face

    hugging_face.save(GPTStage(ModelConfig(layers=1, hidden=16, heads=2, seq=8, vocab=32)), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.weight"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(NonFinite, match=r"head.norm_weight are not finite"):
        hugging_face.load(tmp_path)


def test_a_file_of_rows_is_not_written_over_and_has_rows(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("dp\n2\n")
    assert run_glass("predict", "--csv", str(rows), "--out", str(rows)) == 2
    assert rows.read_text() == "dp\n2\n"
    rows.write_text("dp\n")
    assert run_glass("predict", "--csv", str(rows)) == 2


def test_pickled_weights_are_said_to_be_the_reason(tmp_path):
    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.weights import hugging_face
    from glasscluster.model.weights.families import WeightsError

    hugging_face.save(GPTStage(ModelConfig(layers=1, hidden=16, heads=2, seq=8, vocab=32)), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="only safetensors are read"):
        hugging_face.load(tmp_path)


@pytest.mark.parametrize("change", [{"hidden": 32}, {"layers": 1}, {"vocab": 64}, {"seq": 16}])
def test_a_shape_that_an_option_changed_is_not_blamed_on_the_file(tmp_path, change):
    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.weights import hugging_face
    from glasscluster.model.weights.families import WeightsError

    made = ModelConfig(layers=2, hidden=16, heads=2, seq=8, vocab=32)
    hugging_face.save(GPTStage(made), tmp_path)
    ((name, value),) = change.items()
    was = getattr(made, name)
    with pytest.raises(WeightsError, match=f"{name} = {value} was given where config.json says {was}"):
        hugging_face.load(tmp_path, **change)
