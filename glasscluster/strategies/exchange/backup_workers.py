"""Backup workers: of N + b workers the fastest N gradients make the step, the others are dropped.

Follows Chen et al., "Revisiting distributed synchronous SGD", 1604.00981, Algorithms 3 and 4. Symbols: N
gradients a step, b backup workers, λ rate of an exponential time, H_n = 1 + 1/2 + ... + 1/n.

    worker, step t  w ← newest weights;  g ← gradient(w, own part of batch t);
                    if among the first N of step t: send g
    server          add up the first N gradients of step t, divide by their tokens, step;
                    send the weights to all N + b

Still synchronous: every gradient that counts belongs to the newest weights. Who counts is drawn beforehand
(`fastest`): the run repeats, and each step equals one device on the batch of those who counted.

But: a dropped gradient is computed and not sent, where the paper sends it and drops it on arrival; one
server.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.exchange.replica import Replica, one_thread
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.single_device import Reference, train_one_device

Chosen = tuple[tuple[int, ...], ...]  # step -> the N workers that counted, in rank order


def fastest(seconds: np.ndarray, needed: int) -> Chosen:
    """For each step the `needed` workers with the shortest times [steps, workers]; equal times in
    rank order.
    """
    order = np.argsort(seconds, axis=1, kind="stable")[:, :needed]
    return tuple(tuple(sorted(row)) for row in order.tolist())


@dataclass
class Counted:
    """What a rank brings back: its losses; of the server its gradients (with capture) and weights after each
    step.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)


def train_with_backups(gpu: GPU, job: Job, chosen: Chosen) -> Counted:
    """The SPMD program: workers on all ranks but the last, which is the server."""
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
    """A worker's steps. Losses and gradients are sums over its own tokens: the server divides, once."""
    replica.gpu.start_step()
    for step, counted in enumerate(chosen):
        replica.gradient(step, comm.rank, comm.size - 1, divide=False)
        if comm.rank in counted:
            comm.send(replica.grad, comm.size - 1, purpose="gradients", label="push")
        comm.recv(replica.flat, comm.size - 1, purpose="parameters", label="pull")


def rows(job: Job, counted: tuple[int, ...], workers: int) -> list[int]:
    """The sequences of a batch that counted."""
    each = job.plan.global_batch // workers
    return [v * each + i for v in counted for i in range(each)]


def tokens(gpu: GPU, job: Job, step: int, counted: tuple[int, ...], workers: int) -> int:
    """Targets of a step that count: the server knows the data as well as any worker."""
    if gpu.device.type == "meta":
        return 1
    with gpu.unrecorded():
        return count_targets(job.batch(step)[1][rows(job, counted, workers)])


# ---- its own reference -------------------------------------------------------------------------------------


@one_thread()
def one_device_on_what_counted(
    job: Job, chosen: Chosen, workers: int, dtype: torch.dtype = torch.float64
) -> Reference:
    """One device, trained on the parts of each batch whose gradients counted."""
    batches = []
    for step, counted in enumerate(chosen):
        inputs, targets = job.batch(step)
        mine = rows(job, counted, workers)
        batches.append((inputs[mine], targets[mine]))
    return train_one_device(job.model, batches, job.optimizer, 0.0, job.seed, dtype)


# ---- theory ------------------------------------------------------------------------------------------------


def predict(needed: int, backups: int, rate: float = 1.0) -> float:
    """Eq 36: expected time of a step whose workers take Exp(λ): the N-th of N + b, (H_(N+b) - H_b) / λ; b =
    0: H_N / λ.
    """
    return sum(1.0 / k for k in range(backups + 1, needed + backups + 1)) / rate
