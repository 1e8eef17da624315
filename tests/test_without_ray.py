"""Ray is an extra of the package: without it all but its own backend works, and that one names the extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from glasscluster.base.errors import InputError
from glasscluster.sim.run import Cluster

ROOT = Path(__file__).parents[1]
SMALL = "--layers 1 --hidden 16 --heads 2 --seq 8 --steps 1".split()


@pytest.fixture
def without_ray(tmp_path):
    """Run a command in processes, and processes of theirs, in which `import ray` fails."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}

    def run(*words: str) -> tuple[int, dict]:
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=200,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert done.stdout, done.stderr[-3000:]
        return done.returncode, json.loads(done.stdout)

    return run


def test_the_fixture_blocks_ray_and_the_package_is_imported_all_the_same(without_ray):
    script = "\n".join(
        [
            "import glasscluster, json, sys",
            "from glasscluster import Cluster",
            "try:",
            "    import ray",
            "except ImportError:",
            "    print(json.dumps(Cluster('classroom', 2).run(lambda gpu: gpu.rank).results))",
        ]
    )
    assert without_ray("-c", script) == (0, [0, 1])


def test_training_on_threads_and_predicting_dry_need_no_ray(without_ray):
    code, said = without_ray(
        "-m", "glasscluster", "train", *SMALL, "--dp", "2", "--backend", "threads", "--json"
    )
    assert (code, said["status"]) == (0, "PASS")
    code, said = without_ray("-m", "glasscluster", "predict", *SMALL[:-2], "--dp", "4", "--json")
    assert (code, said["gpus"]) == (0, 4)


@pytest.mark.torchrun
def test_torchrun_needs_no_ray(without_ray):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code, said = without_ray(*start, "-m", "glasscluster", "train", *SMALL, "--dp", "2", "--json")
    assert (code, said["backend"], said["status"]) == (0, "torchrun", "PASS")


@pytest.mark.parametrize(
    "words", [["train", *SMALL, "--backend", "ray"], ["run", "tour"]]
)  # the tour's default
def test_the_ray_backend_is_then_an_input_error_that_names_the_extra(without_ray, words):
    code, said = without_ray("-m", "glasscluster", *words, "--json")
    assert (code, said["error"], said["field"], said["value"]) == (2, "InputError", "backend", "ray")
    assert "pip install 'glasscluster[ray]'" in said["rule"]
    assert said["nearest"] == "threads"


def test_in_python_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"pip install 'glasscluster\[ray\]'.*nearest valid choice is threads"
    ):
        Cluster("classroom", 2, "ray").run(lambda gpu: gpu.rank)


def test_the_package_asks_for_ray_in_its_extra_alone_and_make_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asking = [word.partition(">")[0] for word in project["dependencies"]]
    assert "torch" in asking
    assert not {"ray", "transformers"} & set(asking)
    assert [word.partition(">")[0] for word in project["optional-dependencies"]["ray"]] == ["ray"]
    assert "-e '.[dev,ray]'" in (ROOT / "Makefile").read_text(encoding="utf-8")
