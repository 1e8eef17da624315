"""What cannot be started or held is refused before it is tried, with the number and the machine's."""

from __future__ import annotations

import pytest

from glasscluster import Cluster
from glasscluster.base import limits
from glasscluster.base.errors import InputError


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
    from glasscluster.cli import main

    monkeypatch.setattr(limits, "machine_bytes", lambda: 10**5)
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--backend", "threads"])
    assert end.value.code == 2
    assert "this machine has 0.0001 GB" in capsys.readouterr().err


def test_a_model_of_a_terabyte_is_refused(capsys):
    from glasscluster.cli import main

    words = "train --layers 1 --hidden 1048576 --heads 1 --memory 900000GB --backend threads".split()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "this machine has" in capsys.readouterr().err
