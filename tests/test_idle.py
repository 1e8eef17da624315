"""What an idle GPU waited for, on runs whose seconds can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware


def wait_for_one(gpu, side: int, elements: int) -> None:
    """Rank 1 computes a little, waits for a message of rank 0, which computes first, and computes again."""
    a = torch.ones(side if gpu.rank == 0 else 2, side if gpu.rank == 0 else 2)
    a @ a
    message = torch.ones(elements)
    if gpu.rank == 0:
        gpu.comm.send(message, 1)
    else:
        gpu.comm.recv(message, 0)
    message + message


CASES = {  # the sender's matrix, the message's elements: which of both takes longer
    "late sender": (1024, 1000, "dependency"),
    "long message": (32, 1_000_000, "communication"),
}


@pytest.mark.parametrize(("side", "elements", "cause"), CASES.values(), ids=CASES)
def test_a_wait_is_communication_if_the_message_was_on_the_wire_for_most_of_it(side, elements, cause):
    run = Cluster("classroom", 2, "dry", memory_bytes=None).run(wait_for_one, side, elements)
    wire = hardware("classroom").intra
    on_the_wire = wire.overhead_s + 4 * elements / wire.bandwidth + wire.latency_s
    (gap,) = [g for g in run.timeline.all_gaps if g.rank == 1 and g.row >= 0 and g.length > on_the_wire / 2]
    assert gap.comm == pytest.approx(on_the_wire, rel=1e-9)
    assert gap.comm < gap.length
    assert (gap.comm >= gap.length / 2) == (cause == "communication")
    assert gap.cause == cause
    assert run.timeline.exposed_comm()[1] == pytest.approx(on_the_wire)
    causes = run.timeline.idle_causes()[1]
    assert causes["communication"] == pytest.approx(on_the_wire)
    assert causes["dependency"] == pytest.approx(gap.length - on_the_wire)
