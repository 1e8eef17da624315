"""Backup workers: of N + b workers' gradients the first N make the step, the others are dropped.

Follows Chen et al., "Revisiting distributed synchronous SGD", 1604.00981, Algorithms 3 and 4. Symbols: N
gradients a step, b backup workers, λ rate of an exponential time, H_n = 1 + 1/2 + ... + 1/n.

    worker, step t  w ← newest weights;  g ← gradient(w, own part of batch t);
                    if among the first N of step t: send g
    server          add up the first N gradients of step t, divide by their tokens, step;
                    send the weights to all N + b

Training is still synchronous: every gradient that is used belongs to the newest weights. Which workers are
used is chosen beforehand (`fastest`), so a run repeats, and each step equals a step of one device on the
parts of the batch that were used.

But: a dropped gradient is computed and not sent (in the paper it is sent, and dropped on arrival); there is
one server.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.exchange.replica import Replica
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.single_device import Reference, train_one_device

Chosen = tuple[tuple[int, ...], ...]  # step -> the N workers that counted, in rank order


def fastest(seconds: np.ndarray, needed: int) -> Chosen:
    """Choose, for each step, the `needed` workers with the shortest times.

    `seconds` [steps, workers] says how long each gradient takes. Of workers with equal times the one with the
    lower rank is chosen.
    """
    order = np.argsort(seconds, axis=1, kind="stable")[:, :needed]
    return tuple(tuple(sorted(row)) for row in order.tolist())


@dataclass
class Counted:
    """What a rank brings back.

    A worker has its losses. The server has its weights after the last step and, with capture, the weights and
    mean gradients of every step.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)


def train_with_backups(gpu: GPU, job: Job, chosen: Chosen) -> Counted:
    """Train on this rank (an SPMD program: every rank runs it). The last rank is the server."""
    comm, replica, out = gpu.make_mesh({"dp": gpu.size})["dp"], Replica(gpu, job), Counted()
    workers = comm.size - 1
    if comm.rank < workers:
        work(comm, replica, chosen)
        with gpu.unrecorded():
            out.losses = [float(x) for x in replica.losses] if gpu.device.type != "meta" else []
        return out
    with gpu.unrecorded():
        moments = [
            gpu.memory.register(torch.zeros_like(replica.flat), "optimizer", "server")
            for _ in range(job.optimizer.moments)
        ]
        incoming = gpu.memory.register(torch.zeros_like(replica.flat), "buffers", "push")
    gpu.start_step()
    leaving: list[Work] = []
    with gpu.region("optimizer", layer=-1, micro_batch=-1), torch.no_grad():
        for step, counted in enumerate(chosen):
            total = torch.zeros_like(replica.flat)
            for v in counted:
                total.add_(comm.recv(incoming, v, purpose="gradients", label="push"))
            total.div_(tokens(gpu, job, step, counted, workers))
            if job.capture:
                out.gradients.append(replica.named(total))
            job.optimizer.update(replica.flat, total, moments, step + 1)
            newest = replica.flat.clone()
            leaving += [comm.isend(newest, v, purpose="parameters", label="pull") for v in range(workers)]
            out.weights = (out.weights if job.capture else []) + [replica.named(replica.flat)]
    for sent in leaving:
        sent.wait()
    return out


def work(comm: Communicator, replica: Replica, chosen: Chosen) -> None:
    """Run a worker's steps. It pushes sums over its own tokens, which the server divides by their number."""
    replica.gpu.start_step()
    for step, counted in enumerate(chosen):
        replica.gradient(step, comm.rank, comm.size - 1, divide=False)
        if comm.rank in counted:
            comm.send(replica.grad, comm.size - 1, purpose="gradients", label="push")
        comm.recv(replica.flat, comm.size - 1, purpose="parameters", label="pull")


def rows(job: Job, counted: tuple[int, ...], workers: int) -> list[int]:
    """The indices of the sequences in a batch that belong to the workers `counted`."""
    each = job.plan.global_batch // workers
    return [v * each + i for v in counted for i in range(each)]


def tokens(gpu: GPU, job: Job, step: int, counted: tuple[int, ...], workers: int) -> int:
    """How many target tokens the workers `counted` have in a step; the server loads the batch to know."""
    if gpu.device.type == "meta":
        return 1
    with gpu.unrecorded():
        return count_targets(job.batch(step)[1][rows(job, counted, workers)])


# ---- its own reference -------------------------------------------------------------------------------------


@one_thread()
def one_device_on_what_counted(
    job: Job, chosen: Chosen, workers: int, dtype: torch.dtype = torch.float64
) -> Reference:
    """The reference: one device, trained on the parts of each batch whose gradients were used."""
    batches = []
    for step, counted in enumerate(chosen):
        inputs, targets = job.batch(step)
        mine = rows(job, counted, workers)
        batches.append((inputs[mine], targets[mine]))
    return train_one_device(job.model, batches, job.optimizer, 0.0, job.seed, dtype)


# ---- theory ------------------------------------------------------------------------------------------------


def predict(needed: int, backups: int, rate: float = 1.0) -> float:
    """Eq 36: the expected seconds until the first N of N + b gradients are there, (H_(N+b) - H_b) / λ.

    N = `needed`, b = `backups`; each gradient takes a time that is exponentially distributed with rate λ =
    `rate`, independently of the others.
    """
    return sum(1.0 / k for k in range(backups + 1, needed + backups + 1)) / rate
