"""Local SGD and DiLoCo: every rank trains alone for H steps, then the changes of the weights are averaged.

Follows Stich, 1805.09767, Algorithm 1 (local SGD) and Douillard et al., 2311.08105, Algorithm 1 (DiLoCo).
Symbols: N replicas, Ψ parameters, H inner steps, θ shared weights, μ outer momentum, η outer rate.

    for every replica i, alone:   θ_i ← θ
       H times  θ_i ← inner(θ_i, gradient of its own batch)   no communication
    Δ ← mean over i of (θ − θ_i)                              one all-reduce of Ψ
    u ← μu + Δ;   θ ← θ − η(Δ + μu)                           Nesterov, on every rank alike

Local SGD is η = 1, μ = 0, inner SGD: θ becomes the mean of the replicas. DiLoCo is inner AdamW, η = 0.7, μ =
0.9, H = 500. The inner optimizer's state stays on its rank and is never sent.

But: replicas neither leave nor join, all make the same number of steps, and Δ is sent uncompressed, in the
precision of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.exchange.replica import Replica
from glasscluster.strategies.job import Job
from glasscluster.strategies.numerics.formats import DTYPES


@dataclass(frozen=True)
class Outer:
    """The outer optimizer: Nesterov momentum with rate η and momentum μ, once every H inner steps."""

    every: int = 8
    rate: float = 1.0
    momentum: float = 0.0

    def step(self, shared: Tensor, moved: Tensor, velocity: Tensor) -> None:
        """Take an outer step in place: u ← μu + Δ, then θ ← θ − η(Δ + μu).

        All tensors are [Ψ]: `shared` is θ, `moved` is Δ (overwritten), `velocity` is u.
        """
        velocity.mul_(self.momentum).add_(moved)
        shared.sub_(moved.add_(velocity, alpha=self.momentum), alpha=self.rate)


DILOCO = Outer(every=500, rate=0.7, momentum=0.9)


@dataclass
class Locally:
    """What a rank brings back: its own losses, and the shared weights after the last averaging.

    With capture `weights` has the shared weights after every averaging.
    """

    losses: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)


def train_locally(gpu: GPU, job: Job, outer: Outer) -> Locally:
    """Train on this rank (an SPMD program: every rank runs it) for `job.steps` inner steps.

    Changes are averaged after every H steps and after the last step.
    """
    comm, replica, out = gpu.make_mesh({"dp": gpu.size})["dp"], Replica(gpu, job), Locally()
    keep = gpu.memory.register
    with gpu.unrecorded():
        inner = [
            keep(torch.zeros_like(replica.flat), "optimizer", "inner") for _ in range(job.optimizer.moments)
        ]
        shared = keep(replica.flat.clone(), "parameters", "shared weights")
        moved, velocity = (
            keep(torch.zeros_like(shared), "buffers", "moved"),
            keep(torch.zeros_like(shared), "optimizer", "outer momentum"),
        )
    gpu.start_step()
    for step in range(job.steps):
        replica.gradient(step, comm.rank, comm.size, whole=False)
        with gpu.region("optimizer", layer=-1, micro_batch=-1), torch.no_grad():
            job.optimizer.update(replica.flat, replica.grad, inner, step + 1)
            if (step + 1) % outer.every and step + 1 < job.steps:
                continue
            torch.sub(shared, replica.flat, out=moved)
            comm.all_reduce(moved, purpose="parameters", label="what moved")
            moved.div_(comm.size)
            outer.step(shared, moved, velocity)
            replica.flat.copy_(shared)
        with gpu.unrecorded():
            out.weights = (out.weights if job.capture else []) + [shared.clone()]
    with gpu.unrecorded():
        if gpu.device.type != "meta":
            out.losses = [float(x) for x in replica.losses]
            out.weights = [w.cpu() for w in out.weights]
    return out


# ---- its own reference -------------------------------------------------------------------------------------


@one_thread()
def one_after_the_other(job: Job, outer: Outer, replicas: int) -> tuple[list[Tensor], list[list[float]]]:
    """The reference: N replicas in one process, which train one after the other in each round of H steps.

    Returns:
        The shared weights after each round, and each replica's losses.
    """
    model = GPTStage(job.model, seed=job.seed, dtype=DTYPES[job.plan.precision])
    parameters = [p for p, _ in model.full_names().values()]
    theta = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    state = [[torch.zeros_like(theta) for _ in range(job.optimizer.moments)] for _ in range(replicas)]
    u, rounds, losses = torch.zeros_like(theta), list[Tensor](), [list[float]() for _ in range(replicas)]
    each = job.plan.global_batch // replicas
    for begin in range(0, job.steps, outer.every):
        ends = []
        for i in range(replicas):
            own = theta.clone()
            for step in range(begin, min(begin + outer.every, job.steps)):
                tokens, targets = (t[i * each : (i + 1) * each] for t in job.batch(step))
                torch.nn.utils.vector_to_parameters(own, parameters)
                model.zero_grad()
                loss = model(tokens, targets)
                loss.backward()
                count = count_targets(targets)
                gradient = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]) / count
                with torch.no_grad():
                    job.optimizer.update(own, gradient, state[i], step + 1)
                losses[i].append(float(loss.detach()) / count)
            ends.append(own)
        delta = theta - sum(ends) / replicas
        u = outer.momentum * u + delta
        theta = theta - outer.rate * (delta + outer.momentum * u)
        rounds.append(theta.clone())
    return rounds, losses


# ---- theory ------------------------------------------------------------------------------------------------


def predict(parameters: int, replicas: int, steps: int, every: int, width: int) -> dict[str, int]:
    """Bytes that all N ranks send together: a ring all-reduce of Ψ parameters every H steps (Eq 9).

    An all-reduce sends 2 (N-1) Ψ parameters. Data parallelism has one at every step,
    `every_step_bytes_total`. `width`: bytes a parameter; `meetings`: how often changes are averaged.
    """
    meetings, once = -(-steps // every), 2 * (replicas - 1) * parameters * width
    return {
        "meetings": meetings,
        "parameters_bytes_total": meetings * once,
        "every_step_bytes_total": steps * once,
    }
