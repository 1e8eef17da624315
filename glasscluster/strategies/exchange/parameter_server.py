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

So nobody computes who is more than s clocks ahead of the slowest, and a gradient may belong to weights that
are long gone: it is really computed on them. With s = 0 and SGD the weights are those of the synchronous
mode; in which order pushes are served is the arrival plan (arrivals.py). Each run equals its own reference
below: the plan, in one process, without a message.

But: no replication, no ranges of keys, no user-defined filters, no norm clipping (no server sees the whole
gradient), and a server answers when it has room for nothing else: a rank computes or serves, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import count_targets
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.exchange.arrivals import WORK, Arrivals, Layout
from glasscluster.strategies.exchange.replica import Replica, one_thread
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import difference, largest
from glasscluster.strategies.numerics.formats import DTYPES

PUSH, PULL = 0, 1  # tags: with servers on the workers both go from rank to rank


@dataclass
class Exchanged:
    """What a rank brings back: of a worker its losses, pushes (with capture) and last pull; of a server its
    shard and its log.
    """

    losses: list[float] = field(default_factory=list)
    pushes: list[Tensor] = field(default_factory=list)
    pulled: Tensor | None = None
    shard: Tensor | None = None
    leads: list[int] = field(
        default_factory=list
    )  # of every answer: how many clocks that worker was ahead of the slowest
    missed: list[int] = field(
        default_factory=list
    )  # of every push served: how many others were served since its weights were sent
    history: list[Tensor] = field(default_factory=list)  # with capture: a server's shard after every W pushes
    state_bytes: dict[str, int] = field(default_factory=dict)


def exchange(gpu: GPU, job: Job, plan: Arrivals) -> Exchanged:
    """The SPMD program: a rank follows its script."""
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
    """Pull, compute, push."""

    def __init__(
        self, gpu: GPU, comm: Communicator, plan: Arrivals, replica: Replica, where: list[slice]
    ) -> None:
        self.gpu, self.comm, self.layout, self.replica, self.where = gpu, comm, plan.layout, replica, where
        self.clock, self.leaving, self.pushes = 0, list[Work](), list[Tensor]()

    def work(self) -> None:
        """One clock. The weights it starts from are those everybody started from, then what was pulled."""
        if self.clock:
            self.pull()
        self.replica.gradient(self.clock, self.gpu.rank, self.layout.workers)
        if self.replica.job.capture:
            with self.gpu.unrecorded():
                self.pushes.append(self.replica.grad.clone())
        for k in self.layout.turn(self.gpu.rank):
            if self.layout.home(k) != self.gpu.rank:  # a shard on this rank finds the gradient where it is
                piece = self.replica.grad[self.where[k]]
                self.leaving.append(
                    self.comm.isend(piece, self.layout.home(k), PUSH, purpose="gradients", label=f"push {k}")
                )
        self.clock += 1

    def pull(self) -> None:
        """The weights as each server had them when it answered."""
        for k, part in enumerate(self.where):
            if self.layout.home(k) != self.gpu.rank:
                self.comm.recv(
                    self.replica.flat[part],
                    self.layout.home(k),
                    PULL,
                    purpose="parameters",
                    label=f"pull {k}",
                )
        for work in self.leaving:  # whoever was answered has been heard
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
        """Worker v's next push: apply it, then answer whoever may go on."""
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
        """Asynchronous: a step for every push. Synchronous: a step when all have come."""
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
        """Not more than s clocks ahead of the slowest."""
        return self.clocks[u] - min(self.clocks) <= (self.layout.staleness or 0)

    def answer(self, u: int) -> None:
        """The shard as it is now."""
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
    """The last pull, then results; no message is left under way."""
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
    """The same plan in one process: weights at the end, each worker's last pull, pushes and losses (worker ->
    clock).
    """

    weights: Tensor
    pulled: list[Tensor]
    pushes: list[list[Tensor]]
    losses: list[list[float]]


@one_thread()
def in_one_process(job: Job, plan: Arrivals) -> Alone:
    """Follow all scripts, a rank as far as it goes, then the next: no messages, one model, W copies of its
    weights.
    """
    layout, s = plan.layout, plan.layout.staleness or 0
    model = GPTStage(job.model, seed=job.seed, dtype=DTYPES[job.plan.precision])
    parameters = [p for p, _ in model.full_names().values()]
    weights = torch.cat([p.detach().reshape(-1) for p in parameters])
    shards = list(torch.tensor_split(torch.arange(len(weights)), layout.servers))
    state = [[torch.zeros(len(c), dtype=weights.dtype) for _ in range(job.optimizer.moments)] for c in shards]
    everyone = range(layout.workers)
    out = Alone(weights, [weights.clone() for _ in everyone], [[] for _ in everyone], [[] for _ in everyone])
    at, heard = (
        [0] * layout.ranks,
        [[0] * layout.workers for _ in shards],
    )  # place in the script; pushes each shard has heard
    answered, sums = (
        [[0] * layout.workers for _ in shards],
        [torch.zeros(len(c), dtype=weights.dtype) for c in shards],
    )
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
        gradient = out.pushes[v][heard[k][v]][here]
        heard[k][v] += 1
        if layout.staleness is None:
            sums[k] = sums[k] + gradient
        if layout.staleness is not None or min(heard[k]) > steps[k]:
            steps[k] += 1
            job.optimizer.update(
                weights[here], gradient if layout.staleness is not None else sums[k], state[k], steps[k]
            )
            sums[k] = torch.zeros_like(sums[k])
        for u in everyone:
            if answered[k][u] < heard[k][u] <= min(heard[k]) + s:
                answered[k][u] += 1
                out.pulled[u][here] = weights[here]

    def can(rank: int, entry: int) -> bool:
        if entry == WORK:
            return all(a[rank] == len(out.pushes[rank]) for a in answered)
        shard = layout.shard_of(rank)
        return shard is not None and heard[shard][entry] < len(out.pushes[entry])

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
    """Largest differences from the reference: every pushed gradient, the weights on the servers, every last
    pull, every loss.
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
    found = {"grad": largest(grad), "weight": largest(weight), "loss": largest(loss)}
    return {f"max_rel_{what}_diff": most for what, most in found.items()}


# ---- theory ------------------------------------------------------------------------------------------------


def predict(layout: Layout, parameters: int, width: int) -> dict[str, list[int]]:
    """Eq 11, exact: bytes every rank sends and receives in the whole run.

    Apart: a worker 2S a clock, a server 2W·S/K (S/K: its shard). On the workers: a rank sends S less its own
    shard as a worker and W-1 times its shard as a server; with K = W that is 2S(N-1)/N.
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
