"""Parameter servers: workers push gradients and pull weights; the weights live on K servers, a shard each.

Follows Li et al., OSDI 2014, Algorithm 1; bounded staleness: Ho et al., NIPS 2013 (stale synchronous
parallel), section 2. Symbols: W workers, K shards, S bytes of all parameters, clock c (gradients a worker has
pushed), staleness s, rate η.

    worker w, clock c                           server k
      w_w ← pull from every server
      g ← gradient(w_w, own part of batch c)
      push g to every server  ─── S/K each ──►    push of worker v arrives:
                                                    synchronous   sum g over all W, one step for all
                                                    asynchronous  a step at once, on whatever w is now
                                                  c_v ← c_v + 1
      ◄──────── S/K each ───                      answer every u that has pushed and  c_u − min c ≤ s

So no worker computes while it is more than s clocks ahead of the slowest one. A gradient may belong to
weights that the server has since replaced; it is really computed on those older weights. With s = 0 and SGD
the result equals that of the synchronous mode. The order in which servers take pushes is fixed by the arrival
plan (arrivals.py). Each run must equal the reference below, which follows the same plan in one process,
without messages.

But: no replication, no key ranges, no user-defined filters, no clipping by the gradient norm (no server sees
the whole gradient). A rank that is both worker and server does one thing at a time, so that a push waits
while the rank computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.exchange.arrivals import WORK, Arrivals, Layout
from glasscluster.strategies.exchange.replica import Replica
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import difference, largest
from glasscluster.strategies.numerics.formats import DTYPES

PUSH, PULL = 0, 1  # tags: with servers on the workers both go from rank to rank


@dataclass
class Exchanged:
    """What a rank brings back.

    Attributes:
        losses: of a worker: its loss at every clock.
        pushes: of a worker, with capture: the gradients that it pushed.
        pulled: of a worker: the weights that it pulled last.
        shard: of a server: its shard of the weights at the end.
        leads: of a server, for every answer: how many clocks the worker was ahead of the slowest.
        missed: of a server, for every push: how many pushes it had served since it sent the weights that the
            gradient belongs to.
        history: of a server, with capture: its shard after every W pushes.
        state_bytes: bytes of parameters, gradients and optimizer state on the rank.
    """

    losses: list[float] = field(default_factory=list)
    pushes: list[Tensor] = field(default_factory=list)
    pulled: Tensor | None = None
    shard: Tensor | None = None
    leads: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    history: list[Tensor] = field(default_factory=list)
    state_bytes: dict[str, int] = field(default_factory=dict)


def exchange(gpu: GPU, job: Job, plan: Arrivals) -> Exchanged:
    """Train on this rank (an SPMD program: every rank runs it): follow the rank's script in the plan."""
    comm, layout = gpu.make_mesh({"dp": gpu.size})["dp"], plan.layout
    replica = Replica(gpu, job)
    cuts = torch.tensor_split(torch.arange(len(replica.flat)), layout.servers)
    where = [slice(int(c[0]), int(c[-1]) + 1) for c in cuts]
    worker = Worker(gpu, comm, plan, replica, where) if gpu.rank < layout.workers else None
    shard = layout.shard_of(gpu.rank)
    server = Server(gpu, comm, plan, replica, where[shard], job) if shard is not None else None
    gpu.start_step()
    for entry in plan.scripts[gpu.rank]:
        if entry == WORK:
            assert worker is not None
            worker.work()
        else:
            assert server is not None
            server.serve(entry)
    return bring_back(gpu, worker, server)


class Worker:
    """A worker: it pulls weights, computes a gradient on its part of the batch, and pushes it."""

    def __init__(
        self, gpu: GPU, comm: Communicator, plan: Arrivals, replica: Replica, where: list[slice]
    ) -> None:
        self.gpu, self.comm, self.layout, self.replica, self.where = gpu, comm, plan.layout, replica, where
        self.clock, self.leaving, self.pushes = 0, list[Work](), list[Tensor]()

    def work(self) -> None:
        """Run one clock: pull the weights (but for the first, which all workers have), compute, push."""
        if self.clock:
            self.pull()
        self.replica.gradient(self.clock, self.gpu.rank, self.layout.workers)
        if self.replica.job.capture:
            with self.gpu.unrecorded():
                self.pushes.append(self.replica.grad.clone())
        for k in self.layout.push_order(self.gpu.rank):
            if self.layout.home(k) != self.gpu.rank:  # a shard on this rank reads the gradient in place
                piece = self.replica.grad[self.where[k]]
                self.leaving.append(
                    self.comm.isend(piece, self.layout.home(k), PUSH, purpose="gradients", label=f"push {k}")
                )
        self.clock += 1

    def pull(self) -> None:
        """Receive the weights of every shard, as they were when the server answered."""
        for k, part in enumerate(self.where):
            if self.layout.home(k) != self.gpu.rank:
                self.comm.recv(
                    self.replica.flat[part],
                    self.layout.home(k),
                    PULL,
                    purpose="parameters",
                    label=f"pull {k}",
                )
        for work in self.leaving:  # a server that answered has received the push, so this does not wait
            work.wait()
        self.leaving.clear()


class Server:
    """A shard of the weights, its optimizer state, and every worker's clock."""

    def __init__(
        self, gpu: GPU, comm: Communicator, plan: Arrivals, replica: Replica, part: slice, job: Job
    ) -> None:
        self.gpu, self.comm, self.layout, self.replica, self.part = gpu, comm, plan.layout, replica, part
        self.job, self.optimizer, remember, self.history = (
            job,
            job.optimizer,
            gpu.memory.register,
            list[Tensor](),
        )
        with gpu.unrecorded():
            self.shard = remember(replica.flat[part].clone(), "parameters", "shard")
            self.moments = [
                remember(torch.zeros_like(self.shard), "optimizer", "shard")
                for _ in range(self.optimizer.moments)
            ]
            self.incoming = remember(torch.zeros_like(self.shard), "buffers", "push")
            self.total = remember(torch.zeros_like(self.shard), "gradients", "sum of pushes")
        self.clocks, self.waiting, self.version = [0] * self.layout.workers, set[int](), 0
        self.sent: dict[int, Work] = {}
        self.served, self.leads, self.missed, self.given = (
            0,
            list[int](),
            list[int](),
            [0] * self.layout.workers,
        )

    def serve(self, v: int) -> None:
        """Receive worker v's next push, apply it, then answer all waiting workers that may go on."""
        if v == self.gpu.rank:
            gradient = self.replica.grad[self.part]
        else:
            gradient = self.comm.recv(self.incoming, v, PUSH, purpose="gradients", label="push")
        self.missed.append(self.served - self.given[v])
        self.served += 1
        self.clocks[v] += 1
        self.waiting.add(v)
        with self.gpu.region("optimizer", layer=-1, micro_batch=-1), torch.no_grad():
            self.apply(gradient)
            if self.job.capture and self.served % self.layout.workers == 0:
                with self.gpu.unrecorded():
                    self.history.append(self.shard.clone())
            for u in [u for u in sorted(self.waiting) if self.may_go_on(u)]:
                self.answer(u)

    def apply(self, gradient: Tensor) -> None:
        """Update the shard: asynchronously at every push, synchronously when all workers have pushed."""
        if self.layout.staleness is None:
            self.total.add_(gradient)
            if min(self.clocks) == self.version:
                return
            gradient = self.total
        self.version += 1
        self.optimizer.update(self.shard, gradient, self.moments, self.version)
        if self.layout.staleness is None:
            self.total.zero_()

    def may_go_on(self, u: int) -> bool:
        """Whether worker u is at most s clocks ahead of the slowest worker."""
        return self.clocks[u] - min(self.clocks) <= (self.layout.staleness or 0)

    def answer(self, u: int) -> None:
        """Send the shard, as it is now, to worker u."""
        self.waiting.remove(u)
        self.leads.append(self.clocks[u] - min(self.clocks))
        self.given[u] = self.served
        if u == self.gpu.rank:
            self.replica.flat[self.part].copy_(self.shard)
            return
        if u in self.sent:
            self.sent[u].wait()
        self.sent[u] = self.comm.isend(self.shard.clone(), u, PULL, purpose="parameters", label="pull")


def bring_back(gpu: GPU, worker: Worker | None, server: Server | None) -> Exchanged:
    """Pull for the last time, wait for all messages, and collect what the rank brings back."""
    held = gpu.memory.snapshot()
    out = Exchanged(state_bytes={k: held[k] for k in ("parameters", "gradients", "optimizer")})
    if worker is not None:
        worker.pull()
    if server is not None:
        for work in server.sent.values():
            work.wait()
        out.leads, out.missed = server.leads, server.missed
    if gpu.device.type == "meta":
        return out
    with gpu.unrecorded():
        if server is not None:
            out.shard, out.history = server.shard.cpu(), [h.cpu() for h in server.history]
        if worker is not None:
            out.pulled, out.pushes = worker.replica.flat.detach().cpu(), worker.pushes
            out.losses = [float(x) for x in worker.replica.losses]
    return out


# ---- its own reference -------------------------------------------------------------------------------------


@dataclass
class Alone:
    """What the reference computed, in one process.

    Attributes:
        weights: the weights at the end.
        pulled: for each worker, the weights that it pulled last.
        pushes: for each worker, its gradient at every clock.
        losses: for each worker, its loss at every clock.
    """

    weights: Tensor
    pulled: list[Tensor]
    pushes: list[list[Tensor]]
    losses: list[list[float]]


@one_thread()
def in_one_process(job: Job, plan: Arrivals) -> Alone:
    """The reference: follow an arrival plan in one process, with one model and each worker's weights.

    Each rank in turn follows its script until it has to wait for another rank.

    Raises:
        ValueError: if the plan cannot be followed to its end.
    """
    layout, s = plan.layout, plan.layout.staleness or 0
    model = GPTStage(job.model, seed=job.seed, dtype=DTYPES[job.plan.precision])
    parameters = [p for p, _ in model.full_names().values()]
    weights = torch.cat([p.detach().reshape(-1) for p in parameters])
    shards = list(torch.tensor_split(torch.arange(len(weights)), layout.servers))
    state = [[torch.zeros(len(c), dtype=weights.dtype) for _ in range(job.optimizer.moments)] for c in shards]
    everyone = range(layout.workers)
    out = Alone(weights, [weights.clone() for _ in everyone], [[] for _ in everyone], [[] for _ in everyone])
    at = [0] * layout.ranks  # each rank's place in its script
    served = [[0] * layout.workers for _ in shards]  # of each shard and worker, pushes applied
    answered = [[0] * layout.workers for _ in shards]  # of each shard and worker, answers sent
    sums = [torch.zeros(len(c), dtype=weights.dtype) for c in shards]
    steps = [0] * layout.servers

    def work(v: int) -> None:
        clock = len(out.pushes[v])
        tokens, targets = job.batch(clock)
        each = job.plan.global_batch // layout.workers
        with torch.no_grad():
            for p, value in zip(
                parameters, out.pulled[v].split([p.numel() for p in parameters]), strict=True
            ):
                p.copy_(value.view(p.shape))
        model.zero_grad()
        loss = model(tokens[v * each : (v + 1) * each], targets[v * each : (v + 1) * each])
        loss.backward()
        count = count_targets(targets)
        out.losses[v].append(float(loss.detach()) / count)
        out.pushes[v].append(
            torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]) * (1.0 / count)
        )

    def serve(k: int, v: int) -> None:
        here = slice(int(shards[k][0]), int(shards[k][-1]) + 1)
        gradient = out.pushes[v][served[k][v]][here]
        served[k][v] += 1
        if layout.staleness is None:
            sums[k] = sums[k] + gradient
        if layout.staleness is not None or min(served[k]) > steps[k]:
            steps[k] += 1
            job.optimizer.update(
                weights[here], gradient if layout.staleness is not None else sums[k], state[k], steps[k]
            )
            sums[k] = torch.zeros_like(sums[k])
        for u in everyone:
            if answered[k][u] < served[k][u] <= min(served[k]) + s:
                answered[k][u] += 1
                out.pulled[u][here] = weights[here]

    def can(rank: int, entry: int) -> bool:
        if entry == WORK:
            return all(a[rank] == len(out.pushes[rank]) for a in answered)
        shard = layout.shard_of(rank)
        return shard is not None and served[shard][entry] < len(out.pushes[entry])

    moved = True
    while moved:
        moved = False
        for rank, script in enumerate(plan.scripts):
            while at[rank] < len(script) and can(rank, script[at[rank]]):
                entry, shard = script[at[rank]], layout.shard_of(rank)
                if entry == WORK:
                    work(rank)
                else:
                    serve(shard if shard is not None else -1, entry)
                at[rank], moved = at[rank] + 1, True
    stuck = [r for r, script in enumerate(plan.scripts) if at[r] < len(script)]
    if stuck:
        raise ValueError(f"this arrival plan cannot happen: ranks {stuck} wait for what never comes")
    return out


def compare(results: list[Exchanged], alone: Alone, layout: Layout) -> dict[str, float]:
    """The largest relative differences from the reference, of gradients, weights and losses.

    Gradients are those that workers pushed; weights are those on the servers at the end and those that
    workers pulled last.
    """
    servers = torch.cat(
        [r.shard for r in (results[layout.home(k)] for k in range(layout.servers)) if r.shard is not None]
    )
    weight = [difference(servers.double(), alone.weights.double(), 1.0)]
    grad, loss = [0.0], [0.0]
    for v in range(layout.workers):
        mine, theirs = results[v], alone.pushes[v]
        assert mine.pulled is not None
        weight.append(difference(mine.pulled.double(), alone.pulled[v].double(), 1.0))
        if mine.pushes:
            pairs = zip(mine.pushes, theirs, strict=True)
            grad += [difference(a.double().cpu(), b.double(), 1e-3 * float(b.abs().max())) for a, b in pairs]
        loss += [abs(a - b) / (abs(b) or 1.0) for a, b in zip(mine.losses, alone.losses[v], strict=True)]
    worst = {"grad": largest(grad), "weight": largest(weight), "loss": largest(loss)}
    return {f"max_rel_{what}_diff": value for what, value in worst.items()}


# ---- theory ------------------------------------------------------------------------------------------------


def predict(layout: Layout, parameters: int, width: int) -> dict[str, list[int]]:
    """Eq 11, exact: bytes that every rank sends and receives in the whole run.

    In each clock a worker sends and receives S bytes. With servers on ranks of their own, a server sends and
    receives W times its shard, W·S/K. With servers on the workers, what a rank would send itself is not sent:
    a rank sends S less its own shard as a worker, and W - 1 times its shard as a server. With K = W = N that
    is 2S (N-1)/N.

    Args:
        layout: where workers and shards are, and the number of clocks.
        parameters: elements of the model.
        width: bytes of one.

    Returns:
        For "sent" and "received", the bytes of every rank.
    """
    size, sizes = parameters * width, [n * width for n in layout.sizes(parameters)]
    sent = []
    for rank in range(layout.ranks):
        k = layout.shard_of(rank)
        own = sizes[k] if k is not None else 0
        as_worker = size - own if rank < layout.workers else 0
        others = layout.workers - (rank < layout.workers)
        sent.append(layout.clocks * (as_worker + others * own))
    return {"sent": sent, "received": sent}  # what is pushed is pulled again
