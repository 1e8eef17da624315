"""Small SPMD programs that several backends must agree on."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch


def ring_while_waiting(gpu: Any) -> list[float]:
    """An asynchronous dp ring is in flight while the rank waits in a pp receive."""
    mesh = gpu.make_mesh({"pp": 2, "dp": gpu.size // 2})
    x = torch.full((1000,), float(gpu.rank + 1))
    work = mesh["dp"].all_reduce(x, async_op=True)
    y = torch.full((7,), float(gpu.rank))
    if mesh["pp"].rank == 0:
        mesh["pp"].send(y, 1)
        mesh["pp"].recv(y, 1)
    else:
        mesh["pp"].recv(y, 0)
        mesh["pp"].send(y + 100, 0)
    work.wait()
    return [float(x[0]), float(x[-1]), float(y[0])]


def receive_before_reduce(gpu: Any) -> list[float]:
    """Rank 0 launches an all-reduce and sends; its peer receives before it joins the all-reduce."""
    x, y = torch.full((513,), float(gpu.rank)), torch.zeros(5)
    if gpu.rank == 0:
        work = gpu.comm.all_reduce(x, async_op=True)
        gpu.comm.send(torch.arange(5.0), 1)
        work.wait()
    else:
        if gpu.rank == 1:
            gpu.comm.recv(y, 0)
        gpu.comm.all_reduce(x)
    return [float(x[0]), *y.tolist()]


def two_in_flight(gpu: Any) -> list[float]:
    """Two collectives in flight on one communicator, of different sizes, awaited in the other order."""
    a, b = torch.full((400,), float(gpu.rank)), torch.full((31,), 10.0 * gpu.rank)
    first = gpu.comm.all_reduce(a, async_op=True)
    second = gpu.comm.all_reduce(b, async_op=True)
    second.wait()
    first.wait()
    return [float(a[0]), float(a[-1]), float(b[0]), float(b[-1])]


OUTSTANDING = (ring_while_waiting, receive_before_reduce, two_in_flight)


def expected(program: Any, rank: int, size: int) -> list[float]:
    """What each of OUTSTANDING must return."""
    total = float(sum(range(size)))
    if program is ring_while_waiting:
        half = size // 2
        stage, place = divmod(rank, half)
        summed = float(sum(stage * half + i + 1 for i in range(half)))
        return [summed, summed, float(place + 100) if stage == 0 else float(place)]
    if program is receive_before_reduce:
        return [total, *([0.0, 1.0, 2.0, 3.0, 4.0] if rank == 1 else [0.0] * 5)]
    return [total, total, 10 * total, 10 * total]


def all_send_first(gpu: Any) -> None:
    """Every rank sends to the right before it receives from the left."""
    x = torch.ones(4)
    gpu.comm.send(x, (gpu.rank + 1) % gpu.size)
    gpu.comm.recv(x, (gpu.rank - 1) % gpu.size)


def one_raises(gpu: Any) -> None:
    """Rank 1 fails in the middle of a step."""
    x = torch.ones(1000)
    gpu.comm.all_reduce(x)
    if gpu.rank == 1:
        raise ValueError("planted")
    gpu.comm.all_reduce(x)


def one_is_killed(gpu: Any) -> None:
    """Rank 2's process vanishes in the middle of a step."""
    x = torch.ones(1000)
    gpu.comm.all_reduce(x)
    if gpu.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    gpu.comm.all_reduce(x)


def pipeline_of_spans(gpu: Any, m: int, schedule: str = "gpipe") -> None:
    """A pipeline whose forward and backward are one planted event each: as many spans as a picture needs,
    cheaply.
    """
    p, s = gpu.size, gpu.rank
    x = torch.ones(1024)
    forward = [("F", i) for i in range(m)]
    backward = [("B", i) for i in range(m)]
    warm = m if schedule == "gpipe" else min(m, p - s)
    order = forward[:warm]
    for i in range(m - warm):
        order += [backward[i], forward[warm + i]]
    order += backward[m - warm :]
    for kind, i in order:
        step, phase = (1, "forward") if kind == "F" else (-1, "backward")
        if 0 <= s - step < p:
            gpu.comm.recv(x, s - step, tag=2 * i + (kind == "B"))
        with gpu.region(phase, micro_batch=i):
            gpu.recorder.compute("work", 10**6 * (2 if kind == "B" else 1) * (1 + s % 3), 100)
        if 0 <= s + step < p:
            gpu.comm.isend(x, s + step, tag=2 * i + (kind == "B"))


def library_sums(gpu: Any) -> None:
    """Unequal work, then a collective handed to the library, then one of ours."""
    x = torch.ones(64, 64)
    for _ in range(1 + gpu.rank):
        x = x @ x
    gpu.comm.all_reduce(x, algorithm="native")
    gpu.comm.all_reduce(x)
