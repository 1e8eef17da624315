"""Every way in which ranks can disagree, between processes: on Ray and under torchrun.

test_agreement.py has it on threads, and one of each kind on the others.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import Any

import pytest
import torch
from disagreements import CALLS, EVERY, ODD, RANKS, SPECIAL, differently
from test_torchrun import torchrun

from glasscluster.base.errors import CollectiveMismatch
from glasscluster.sim.ranks.backends import ray_actors
from glasscluster.sim.ranks.backends.ray_actors import RayBackend
from glasscluster.sim.run import Cluster

TIMEOUT_S = 10.0
LATEST_S = TIMEOUT_S + 2
PARTS = [*CALLS, "special"]  # a test each: the pairs in which all ranks but one make this call


def part(name: str) -> list[tuple[Any, ...]]:
    """The disagreements of a test: programs with their arguments."""
    return [one for one in EVERY if (one[1] if len(one) > 1 else "special") == name]


def in_words(program: Any, *names: str) -> str:
    """A disagreement as a line of the log."""
    return f"{program.__name__} {', '.join(names)}".strip()


def test_every_disagreement_is_in_one_part():
    assert sorted(map(str, EVERY)) == sorted(str(one) for name in PARTS for one in part(name))
    assert len(EVERY) == len(CALLS) * (len(CALLS) - 1) + len(SPECIAL)


class KeptActors(RayBackend):
    """Actors that outlive a failed run, as they take longer to start than ranks to disagree.

    Those that waited for a message do so until their time is up; then all leave their group and make another.
    """

    def close(self) -> None:
        """What a failed run calls: keeps the actors."""

    def meet_again(self) -> None:
        """A new process group of the same actors."""
        import ray

        blob = ray_actors._pickle(leave, ())
        ray.get([actor.run.remote(blob, False, None) for actor in self.actors])
        self._join(ray)


def leave(_gpu: Any) -> None:
    """What every actor runs after a disagreement."""
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def actors(shared_ray):
    backend = KeptActors(RANKS, timeout_s=TIMEOUT_S)
    backend.start()
    yield backend
    RayBackend.close(backend)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.parametrize("name", PARTS)
def test_every_disagreement_is_named_on_ray(name, actors):
    for program, *names in part(name):
        with Cluster("classroom", RANKS, "ray", timeout_s=TIMEOUT_S) as cluster:
            cluster._backend = actors
            actors.meet_again()
            cluster.run(differently, "sum", "sum", record=False)
            begun = time.monotonic()
            with pytest.raises(CollectiveMismatch) as caught:
                cluster.run(program, *names)
            took = time.monotonic() - begun
        print(f"{in_words(program, *names)}: ranks {caught.value.rank}, {caught.value.peer}; {took:.2f} s")
        assert ODD in (caught.value.rank, caught.value.peer)
        assert caught.value.rank != caught.value.peer
        assert took < LATEST_S


# Each rank of one torchrun job forks a process for each disagreement, as torch takes longer to import than
# ranks to disagree. The children share the job's store, where each cluster has keys of its own: the parents
# count clusters for them.
JOB = """
import json, os, sys, time
from glasscluster import Cluster
from glasscluster.base.errors import GlassError
from glasscluster.sim.ranks.backends import torchrun
from disagreements import RANKS, differently
from test_every_mismatch import TIMEOUT_S, in_words, part

def disagree(program, *names):
    with Cluster("classroom", RANKS, "torchrun", timeout_s=TIMEOUT_S) as cluster:
        cluster.run(differently, "sum", "sum", record=False)
        begun = time.monotonic()
        try:
            cluster.run(program, *names)
            said = ["nothing", None, None]
        except GlassError as error:
            said = [type(error).__name__, error.rank, error.peer]
        took = time.monotonic() - begun
    # in one piece: the ranks share their output
    line = json.dumps([in_words(program, *names), int(os.environ["RANK"]), *said, took])
    os.write(1, f"{line}\\n".encode())

for case in part(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            disagree(*case)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    next(torchrun._clusters)
"""


@pytest.mark.soak
@pytest.mark.torchrun
@pytest.mark.parametrize("name", PARTS)
def test_every_disagreement_is_named_under_torchrun(name, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    done = torchrun(RANKS, "job.py", name, cwd=tmp_path)
    said = defaultdict(list)
    for line in done.stdout.splitlines():
        case, *rest = json.loads(line)
        said[case].append(rest)
    assert list(map(len, said.values())) == [RANKS] * len(part(name)), (done.stdout, done.stderr[-2000:])
    for case, ranks in said.items():
        named = [one for one in ranks if one[1] == "CollectiveMismatch"]
        assert named, (case, ranks)
        print(f"{case}: {len(named)} ranks name {named[0][2:4]}; {max(r[4] for r in ranks):.2f} s")
        for _, kind, rank, peer, took in ranks:
            assert took < LATEST_S, (case, ranks)
            assert kind != "nothing", (case, ranks)
            if kind == "CollectiveMismatch":
                assert ODD in (rank, peer)
                assert rank != peer
