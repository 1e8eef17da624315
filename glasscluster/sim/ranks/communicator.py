"""The communicator, by which a program sends messages. Everything here is written once, above two primitives.

A backend gives each rank a `Wire` (wire.py) with `isend`, `irecv` and `block`. Above it, this file adds
groups, checks and recording, work.py the operations under way, and collectives/ the algorithms, one in each
file. Each communicator runs its collectives in one queue, in launch order (as NCCL does on a stream).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.agreement import describe
from glasscluster.sim.ranks.collectives import find, with_option
from glasscluster.sim.ranks.collectives.own import begun
from glasscluster.sim.ranks.wire import TAGS_PER_GROUP, Wire
from glasscluster.sim.ranks.work import REDUCTIONS, CollectiveWork, Done, MessageWork, Progress, Steps, Work
from glasscluster.sim.recording.cuts import Cut
from glasscluster.sim.recording.events import PURPOSES, RECV, SEND, group_lane
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder


class Communicator:
    """A group of ranks that send each other messages and run collectives together.

    A program gets its communicators from its GPU: `gpu.comm` joins all ranks, `gpu.mesh["tp"]` those along
    one axis. Shapes below: n is `size`, the number of ranks in the group; a rank's chunk is its slice of a
    flat buffer, the buffer cut into n equal slices (`chunks`).

    Attributes:
        ranks: the group's ranks as the cluster numbers them.
        size: n, how many they are.
        rank: this rank's number within the group, from 0 to n - 1. Peers and roots are numbered so too.
        axis: the name under which its messages stand on the graph, such as `dp`.

    Args:
        wire: the backend's two primitives, send and receive.
        progress: drives this rank's collectives.
        recorder: writes down what this rank does.
        ledger: counts the bytes that live on this rank.
        ranks: as above.
        axis: as above.
        group: a number of its own, for its lanes on the graph and the tags of its messages.
        mesh: how many meshes its rank had made before; the groups of each have the same numbers.
        cut: how the mesh is cut into the groups of this kind; None: it is no part of a mesh.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     x = torch.tensor([1.0, 2.0]) * (gpu.rank + 1)
        ...     gpu.comm.all_reduce(x, op="max", algorithm="ring")
        ...     return x.tolist()
        >>> Cluster("classroom", gpus=3).run(program).results
        [[3.0, 6.0], [3.0, 6.0], [3.0, 6.0]]
    """

    def __init__(
        self,
        wire: Wire,
        progress: Progress,
        recorder: Recorder,
        ledger: Ledger,
        ranks: Sequence[int],
        axis: str,
        group: int,
        mesh: int = 0,
        cut: Cut | None = None,
    ) -> None:
        self.wire, self.progress, self.recorder, self.ledger = wire, progress, recorder, ledger
        self.ranks, self.axis, self.group = tuple(ranks), axis, group
        self.size, self.rank = len(self.ranks), self.ranks.index(wire.rank)
        self.tag_base = group * TAGS_PER_GROUP
        self.identity = f"{group}.{mesh}"
        self.cut = cut
        self.meshes = mesh  # made up to now: what a new subgroup belongs to
        self._queue: deque[CollectiveWork] = deque()
        progress.queues.append(self._queue)
        progress.communicators.append(self)
        recorder.groups[group], recorder.cuts[group] = (axis, self.ranks), cut
        self.launched = 0
        self.last_collective = -1  # row of the one that finished last
        self._next_split = (group + 1) * 64

    def __repr__(self) -> str:
        return f"Communicator({self.axis}, rank {self.rank} of {self.size}, ranks {list(self.ranks)})"

    # ---- point to point ------------------------------------------------------------------------------------
    def isend(
        self, x: torch.Tensor, dst: int, tag: int = 0, *, purpose: str = "data", label: str = ""
    ) -> Work:
        """Launch a send and return at once.

        Args:
            x: what to send, of any shape. It must not change before `wait()` returns.
            dst: the group rank that receives it.
            tag: messages between the same two ranks match by tag, and those of one tag in order; 0 to 65534.
            purpose: what the message carries, one of `PURPOSES`: activations, gradients, parameters, scalars,
                data.
            label: a name for it on the graph.

        Returns:
            A Work; its `wait()` returns when the message has left.

        Raises:
            InputError: if `dst` is no rank of the group, or the tag is out of range.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     other, x = 1 - gpu.rank, torch.full((2,), float(gpu.rank))
            ...     out = torch.empty(2)
            ...     works = [gpu.comm.irecv(out, other), gpu.comm.isend(x, other)]
            ...     for work in works:
            ...         work.wait()
            ...     return out.tolist()
            >>> Cluster("classroom", gpus=2).run(program).results
            [[1.0, 1.0], [0.0, 0.0]]
        """
        return self._message(SEND, x.contiguous(), dst, tag, purpose, label, None)

    def irecv(
        self, out: torch.Tensor, src: int, tag: int = 0, *, purpose: str = "data", label: str = ""
    ) -> Work:
        """Launch a receive and return at once.

        Args:
            out: where the message goes: the shape and dtype that the sender sends. It is filled when `wait()`
                returns.
            src: the group rank that sends it.
            tag: as the sender's.
            purpose: as the sender's, one of `PURPOSES`.
            label: a name for it on the graph.

        Returns:
            A Work; its `wait()` returns when the message is in `out`.

        Raises:
            InputError: if `src` is no rank of the group, or the tag is out of range.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.full((2,), float(gpu.rank))
            ...     arriving = gpu.comm.irecv(x, src=0) if gpu.rank else gpu.comm.isend(x + 5, dst=1)
            ...     arriving.wait()
            ...     return x.tolist()
            >>> Cluster("classroom", gpus=2).run(program).results
            [[0.0, 0.0], [5.0, 5.0]]
        """
        if out.is_contiguous():
            return self._message(RECV, out, src, tag, purpose, label, None)
        buffer = torch.empty_like(out, memory_format=torch.contiguous_format)
        return self._message(RECV, buffer, src, tag, purpose, label, lambda: out.copy_(buffer))

    def send(self, x: torch.Tensor, dst: int, tag: int = 0, **labels: str) -> None:
        """Send and wait: `isend(...).wait()`. Two ranks that both send first wait for each other forever.

        Args:
            x: what to send, of any shape.
            dst: the group rank that receives it.
            tag: as in `isend`.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the message on the graph.

        Raises:
            Deadlock: if the wait can never end, with the cycle of ranks that wait for each other.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.tensor([7.0])
            ...     if gpu.rank == 0:
            ...         gpu.comm.send(x, dst=1, purpose="activations")
            ...         return None
            ...     return gpu.comm.recv(torch.empty(1), src=0).item()
            >>> Cluster("classroom", gpus=2).run(program).results
            [None, 7.0]
        """
        self.isend(x, dst, tag, **labels).wait()

    def recv(self, out: torch.Tensor, src: int, tag: int = 0, **labels: str) -> torch.Tensor:
        """Receive and wait: `irecv(...).wait()`.

        Args:
            out: where the message goes: the shape and dtype that the sender sends.
            src: the group rank that sends it.
            tag: as the sender's.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the message on the graph.

        Returns:
            `out`, filled.

        Raises:
            Deadlock: if nobody will ever send it.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.tensor([7.0])
            ...     if gpu.rank == 0:
            ...         gpu.comm.send(x, dst=1)
            ...         return None
            ...     return gpu.comm.recv(torch.empty(1), src=0).item()
            >>> Cluster("classroom", gpus=2).run(program).results
            [None, 7.0]
        """
        self.irecv(out, src, tag, **labels).wait()
        return out

    def sendrecv(
        self, x: torch.Tensor, dst: int, out: torch.Tensor, src: int, tag: int = 0, **labels: str
    ) -> torch.Tensor:
        """Send and receive at once, and wait for both. A ring of these cannot deadlock.

        Args:
            x: what to send, of any shape.
            dst: the group rank that receives `x`.
            out: where the message from `src` goes: the shape and dtype that it sends.
            src: the group rank that `out` comes from.
            tag: of both messages.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the message on the graph.

        Returns:
            `out`, filled.

        Raises:
            InputError: if `dst` or `src` is no rank of the group, or the tag is out of range.
            Deadlock: if a wait can never end, with the cycle of ranks that wait for each other.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     out = torch.empty(1)
            ...     right, left = (gpu.rank + 1) % 3, (gpu.rank - 1) % 3
            ...     return gpu.comm.sendrecv(torch.tensor([float(gpu.rank)]), right, out, left).item()
            >>> Cluster("classroom", gpus=3).run(program).results
            [2.0, 0.0, 1.0]
        """
        works = [self.irecv(out, src, tag, **labels), self.isend(x, dst, tag, **labels)]
        for work in works:
            work.wait()
        return out

    def ring_shift(self, x: torch.Tensor, tag: int = 0, **labels: str) -> tuple[torch.Tensor, list[Work]]:
        """Launch one step round the ring: `x` goes to rank + 1, what rank - 1 sends arrives. Returns at once.

        Args:
            x: what to send, of the same shape on every rank. It must not change before the works are done.
            tag: as in `isend`.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the message on the graph.

        Returns:
            A buffer of `x`'s shape, and the works after whose `wait()` it holds what came from rank - 1. In a
            group of one rank, `x` itself and no works.

        Raises:
            InputError: if the tag is out of range.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     arriving, works = gpu.comm.ring_shift(torch.tensor([gpu.rank]))
            ...     for work in works:
            ...         work.wait()
            ...     return arriving.item()
            >>> Cluster("classroom", gpus=4).run(program).results
            [3, 0, 1, 2]
        """
        if self.size == 1:
            return x, []
        room, left, right = torch.empty_like(x), (self.rank - 1) % self.size, (self.rank + 1) % self.size
        with self.wire.group():
            return room, [self.irecv(room, left, tag, **labels), self.isend(x, right, tag, **labels)]

    def ring_rotate(self, x: torch.Tensor, tag: int = 0, **labels: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Let every rank's `x` pass by, as the keys and values of ring attention do: n - 1 steps of
        `ring_shift`.

        The next tensor is on the wire while the caller uses the one at hand.

        Args:
            x: this rank's tensor, of the same shape on every rank.
            tag: as in `isend`.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the message on the graph.

        Returns:
            An iterator over (group rank whose tensor it is, that tensor): first one's own, then rank - 1's,
            and so on.

        Raises:
            InputError: if the tag is out of range.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.tensor([10 * gpu.rank])
            ...     return [(source, y.item()) for source, y in gpu.comm.ring_rotate(x)]
            >>> Cluster("classroom", gpus=3).run(program).results[1]
            [(1, 10), (0, 0), (2, 20)]
        """
        for step in range(self.size):
            following, works = self.ring_shift(x, tag, **labels) if step < self.size - 1 else (x, [])
            yield (self.rank - step) % self.size, x
            for work in works:
                work.wait()
            x = following

    def _message(
        self,
        kind: int,
        x: torch.Tensor,
        peer: int,
        tag: int,
        purpose: str,
        label: str,
        finish: Callable[[], object] | None,
    ) -> Work:
        name = "send" if kind == SEND else "recv"
        if not 0 <= peer < self.size:
            raise InputError(
                f"{name} peer", peer, f"the {self.axis} group has ranks 0..{self.size - 1}", range(self.size)
            )
        if not 0 <= tag < TAGS_PER_GROUP - 1:
            raise InputError("tag", tag, f"a tag lies in 0..{TAGS_PER_GROUP - 2}")
        world, recorder = self.ranks[peer], self.recorder
        post = self.wire.isend if kind == SEND else self.wire.irecv
        ticket = post(x.detach(), world, self.tag_base + 1 + tag, name)
        if not recorder.paused:
            lane = self.lane(
                4 if kind == SEND else 5
            )  # not the lanes of collectives, because when their steps run depends on the CPU
            nbytes = x.numel() * x.element_size()
            more = {"peer": world, "tag": 1 + tag, "purpose": PURPOSES.index(purpose), "label": label}
            ticket.row = recorder.row(lane, kind, name, 0, nbytes, recorder.frontier, **more)
            if kind == RECV:
                self.ledger.call(x, f"{label or 'message'} received")
        return MessageWork(self, ticket, x, finish)

    # ---- collectives ---------------------------------------------------------------------------------------
    def all_reduce(
        self,
        x: torch.Tensor,
        op: str = "sum",
        algorithm: str = "ring",
        async_op: bool = False,
        *,
        servers: int | None = None,
        node_size: int | None = None,
        pieces: int | None = None,
        **labels,
    ) -> Work:
        """Every rank ends with the elementwise `op` over all ranks' tensors, in place.

        Args:
            x: a contiguous tensor of the same shape on every rank. A ring sends 2(n-1)/n of its bytes from
                each rank.
            op: `sum`, `max`, `min` or `avg` (the sum divided by n; whole numbers are rounded towards zero).
            algorithm: a name that is registered with `@collective`, or `native` for gloo's or NCCL's own.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            servers: of `parameter-server`: how many ranks hold a shard of the sum; all by default.
            node_size: of the algorithm `hierarchical`: ranks that share a node; 8 by default.
            pieces: of the trees that pipeline (`binary-tree`, `double-tree`): into how many pieces the
                message is cut.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.arange(4.0) + gpu.rank
            ...     work = gpu.comm.all_reduce(x, op="avg", async_op=True)
            ...     work.wait()  # compute here, before the wait, overlaps with the collective
            ...     return x.tolist()
            >>> Cluster("classroom", gpus=3).run(program).results[0]
            [1.0, 2.0, 3.0, 4.0]
        """
        options = self._options("all_reduce", algorithm, servers=servers, node_size=node_size, pieces=pieces)
        return self._collective("all_reduce", algorithm, x, async_op, labels, op=op, **options)

    def reduce_scatter(
        self,
        x: torch.Tensor,
        op: str = "sum",
        algorithm: str = "ring",
        async_op: bool = False,
        *,
        node_size: int | None = None,
        **labels,
    ) -> Work:
        """Each rank's chunk of `x` ends with the elementwise `op` over all ranks; the other chunks are
        scratch afterwards.

        Args:
            x: a contiguous tensor of the same shape on every rank; read the result with `chunk(x)`, [numel /
                n]. A ring sends (n-1)/n of its bytes from each rank.
            op: `sum`, `max`, `min` or `avg` (the sum divided by n; whole numbers are rounded towards zero).
            algorithm: a registered name, or `native`.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            node_size: of the algorithm `hierarchical`: ranks that share a node; 8 by default.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.arange(4.0) + 10 * gpu.rank
            ...     gpu.comm.reduce_scatter(x)
            ...     return gpu.comm.chunk(x).tolist()
            >>> Cluster("classroom", gpus=2).run(program).results
            [[10.0, 12.0], [14.0, 16.0]]
        """
        options = self._options("reduce_scatter", algorithm, node_size=node_size)
        return self._collective("reduce_scatter", algorithm, x, async_op, labels, op=op, **options)

    def all_gather(
        self,
        x: torch.Tensor,
        algorithm: str = "ring",
        async_op: bool = False,
        *,
        node_size: int | None = None,
        **labels,
    ) -> Work:
        """Every rank ends with every rank's chunk.

        Args:
            x: the whole buffer, contiguous, of the same shape on every rank; its `chunk(x)` holds what this
                rank contributes. A ring sends (n-1)/n of its bytes from each rank.
            algorithm: a registered name, or `native`.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            node_size: of the algorithm `hierarchical`: ranks that share a node; 8 by default.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.zeros(4)
            ...     gpu.comm.chunk(x).fill_(gpu.rank + 1)
            ...     gpu.comm.all_gather(x)
            ...     return x.tolist()
            >>> Cluster("classroom", gpus=2).run(program).results
            [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
        """
        options = self._options("all_gather", algorithm, node_size=node_size)
        return self._collective("all_gather", algorithm, x, async_op, labels, **options)

    def broadcast(
        self,
        x: torch.Tensor,
        src: int = 0,
        algorithm: str = "ring",
        async_op: bool = False,
        *,
        node_size: int | None = None,
        pieces: int | None = None,
        **labels,
    ) -> Work:
        """Every rank ends with the root's tensor, in place.

        Args:
            x: a contiguous tensor of the same shape on every rank.
            src: the root: the group rank whose tensor it is.
            algorithm: a registered name, or `native`.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            node_size: of the algorithm `hierarchical`: ranks that share a node; 8 by default.
            pieces: of the trees that pipeline (`binary-tree`, `double-tree`): into how many pieces the
                message is cut.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.tensor([1.0, 2.0]) * gpu.rank
            ...     gpu.comm.broadcast(x, src=2)
            ...     return x.tolist()
            >>> Cluster("classroom", gpus=3).run(program).results
            [[2.0, 4.0], [2.0, 4.0], [2.0, 4.0]]
        """
        options = self._options("broadcast", algorithm, node_size=node_size, pieces=pieces)
        return self._collective(
            "broadcast", algorithm, x, async_op, labels, src=self._member("broadcast src", src), **options
        )

    def reduce(
        self,
        x: torch.Tensor,
        op: str = "sum",
        dst: int = 0,
        algorithm: str = "tree",
        async_op: bool = False,
        *,
        node_size: int | None = None,
        pieces: int | None = None,
        **labels,
    ) -> Work:
        """The root ends with the elementwise `op` over all ranks, in place; on other ranks `x` is scratch
        afterwards.

        Args:
            x: a contiguous tensor of the same shape on every rank.
            op: `sum`, `max`, `min` or `avg` (the sum divided by n; whole numbers are rounded towards zero).
            dst: the root: the group rank that gets the result.
            algorithm: a registered name.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            node_size: of the algorithm `hierarchical`: ranks that share a node; 8 by default.
            pieces: of the trees that pipeline (`binary-tree`, `double-tree`): into how many pieces the
                message is cut.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.tensor([1.0, 10.0])
            ...     gpu.comm.reduce(x, dst=1)
            ...     return x.tolist() if gpu.rank == 1 else None
            >>> Cluster("classroom", gpus=3).run(program).results
            [None, [3.0, 30.0], None]
        """
        options = self._options("reduce", algorithm, node_size=node_size, pieces=pieces)
        return self._collective(
            "reduce", algorithm, x, async_op, labels, op=op, dst=self._member("reduce dst", dst), **options
        )

    def scatter(
        self, x: torch.Tensor, src: int = 0, algorithm: str = "direct", async_op: bool = False, **labels: str
    ) -> Work:
        """Each rank's chunk of `x` ends as the root's; the other chunks are scratch afterwards.

        Args:
            x: a contiguous tensor of the same shape on every rank; its values matter on the root alone. Read
                the result with `chunk(x)`, [numel / n].
            src: the root: the group rank whose chunks are handed out.
            algorithm: a registered name.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.arange(6.0) if gpu.rank == 0 else torch.zeros(6)
            ...     gpu.comm.scatter(x, src=0)
            ...     return gpu.comm.chunk(x).tolist()
            >>> Cluster("classroom", gpus=3).run(program).results
            [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        """
        return self._collective(
            "scatter", algorithm, x, async_op, labels, src=self._member("scatter src", src)
        )

    def gather(
        self, x: torch.Tensor, dst: int = 0, algorithm: str = "direct", async_op: bool = False, **labels: str
    ) -> Work:
        """The root ends with every rank's chunk.

        Args:
            x: the whole buffer, contiguous, of the same shape on every rank; its `chunk(x)` holds what this
                rank contributes.
            dst: the root: the group rank that gets all chunks.
            algorithm: a registered name.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `x` may be read or changed only after its `wait()`.

        Raises:
            InputError: for an unknown algorithm or option, or a tensor that is not contiguous.
            CollectiveMismatch: where a backend sees that ranks of the group launched different collectives.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     x = torch.full((4,), float(gpu.rank))
            ...     gpu.comm.gather(x, dst=0)
            ...     return x.tolist() if gpu.rank == 0 else None
            >>> Cluster("classroom", gpus=2).run(program).results
            [[0.0, 0.0, 1.0, 1.0], None]
        """
        return self._collective("gather", algorithm, x, async_op, labels, dst=self._member("gather dst", dst))

    def all_to_all(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        send_splits: Sequence[int] | None = None,
        recv_splits: Sequence[int] | None = None,
        *,
        algorithm: str = "direct",
        async_op: bool = False,
        **labels: str,
    ) -> Work:
        """Every rank sends a slice of `x` to each rank: rank i's slice j becomes slice i of rank j's `out`.

        Without splits `x` is cut into chunks, and every slice of `out` is as long as this rank's chunk. What
        is empty sends nothing.

        Args:
            x: what to send, contiguous, [sum of send_splits] elements.
            out: what arrives, contiguous, [sum of recv_splits] elements.
            send_splits: n lengths in elements: the first send_splits[0] elements of `x` go to rank 0, and so
                on.
            recv_splits: n lengths in elements: the first recv_splits[0] elements of `out` come from rank 0,
                and so on.
            algorithm: a registered name.
            async_op: return at once; otherwise only when the collective has finished on this rank.
            **labels: `purpose` (one of `PURPOSES`) and `label`, which name the collective on the graph.

        Returns:
            A Work. With `async_op`, `out` may be read only after its `wait()`.

        Raises:
            InputError: if lengths are missing, negative, or do not add up to the tensors' sizes.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     out = torch.zeros(2)
            ...     gpu.comm.all_to_all(torch.tensor([0.0, 1.0]) + 10 * gpu.rank, out)
            ...     return out.tolist()
            >>> Cluster("classroom", gpus=2).run(program).results
            [[0.0, 10.0], [1.0, 11.0]]
        """
        if send_splits is None and recv_splits is None:
            send_splits, recv_splits = (
                [c.numel() for c in self.chunks(x)],
                [self.chunk(x).numel()] * self.size,
            )
        sends, receives = (
            self._splits("send_splits", send_splits, x.numel()),
            self._splits("recv_splits", recv_splits, None),
        )
        if out.numel() != sum(receives) or not out.is_contiguous():
            raise InputError(
                "all_to_all out", tuple(out.shape), f"must be contiguous and hold {sum(receives)} elements"
            )
        if sends[self.rank] != receives[self.rank]:
            raise InputError(
                "recv_splits", receives, f"rank {self.rank} keeps {sends[self.rank]} elements of its own"
            )
        if self.size == 1:
            out.view(-1).copy_(x.view(-1))
        splits = {"sends": sends, "receives": receives}
        return self._collective(
            "all_to_all", algorithm, x, async_op, labels, out=out.detach().view(-1), **splits
        )

    def _splits(self, name: str, splits: Sequence[int] | None, total: int | None) -> list[int]:
        """The lengths as a list: one a rank, adding up to `total` elements where that is known; else an
        InputError.
        """
        given = [] if splits is None else [int(n) for n in splits]
        if len(given) != self.size or min(given) < 0:
            raise InputError(name, splits, f"all_to_all needs {self.size} lengths of 0 or more, one a rank")
        if total is not None and sum(given) != total:
            raise InputError(name, splits, f"they add up to {sum(given)}, the buffer holds {total} elements")
        return given

    def _options(self, operation: str, algorithm: str, **options: int | None) -> dict[str, int]:
        """The options that were given.

        An InputError names one that the algorithm has not, or that is below 1.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            owners = with_option(operation, name)
            if algorithm not in owners or value < 1:
                raise InputError(
                    name, value, f"is a number from 1, of the algorithm {' or '.join(owners)}", owners
                )
        return given

    def _member(self, what: str, rank: int) -> int:
        """The group rank, or an InputError that names the ranks there are."""
        if not 0 <= rank < self.size:
            raise InputError(what, rank, f"the group has ranks 0..{self.size - 1}", range(self.size))
        return rank

    def barrier(self, algorithm: str = "dissemination") -> None:
        """Return when every rank of the group has arrived.

        Args:
            algorithm: a registered name: `dissemination`, or any all-reduce (of one byte).

        Raises:
            InputError: for an unknown algorithm.
            Deadlock: if a rank of the group never arrives, where the backend can see it.

        Example:
            >>> from glasscluster import Cluster
            >>> Cluster("classroom", gpus=3).run(lambda gpu: gpu.comm.barrier()).graph.bytes_sent()
            [2, 2, 2]
        """
        with self.recorder.unrecorded():
            signal = torch.zeros(1, dtype=torch.uint8, device=self.wire.device)
        self._collective("barrier", algorithm, signal, False, {"purpose": "scalars", "label": "barrier"})

    def chunks(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Cut a buffer into n chunks, as the collectives do.

        Args:
            x: a contiguous tensor; it is read flat.

        Returns:
            n views of it, [numel / n] each. Where n does not divide, the first ones are an element longer.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     return [len(chunk) for chunk in gpu.comm.chunks(torch.zeros(5))]
            >>> Cluster("classroom", gpus=2).run(program).results
            [[3, 2], [3, 2]]
        """
        return list(torch.tensor_split(x.view(-1), self.size))

    def chunk(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's chunk of a buffer.

        Args:
            x: a contiguous tensor; it is read flat.

        Returns:
            A view, [numel / n]: `chunks(x)[rank]`.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     return gpu.comm.chunk(torch.arange(4)).tolist()
            >>> Cluster("classroom", gpus=2).run(program).results
            [[0, 1], [2, 3]]
        """
        return self.chunks(x)[self.rank]

    def split(self, color: int, axis: str | None = None) -> Communicator:
        """Split the group: ranks that give the same colour form a new one.

        All of its ranks must call it, in the same order.

        Args:
            color: any whole number.
            axis: the name under which the new group's messages stand on the graph; by default `AXIS.COLOR`.

        Returns:
            The communicator of this rank's colour, its ranks in the order of this group.

        Raises:
            InputError: on the dry backend, where no other rank can be asked for its colour.

        Example:
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     return gpu.comm.split(gpu.rank % 2).ranks
            >>> Cluster("classroom", gpus=4).run(program).results
            [(0, 2), (1, 3), (0, 2), (1, 3)]
        """
        colors = torch.zeros(self.size, dtype=torch.int64, device=self.wire.device)
        colors[self.rank] = color
        with self.recorder.unrecorded():
            self.all_gather(colors)
        if colors.device.type == "meta":
            raise InputError(
                "backend", "dry", "split() needs to hear from other ranks; use a mesh axis instead"
            )
        members = [r for r, c in zip(self.ranks, colors.tolist(), strict=True) if c == color]
        self._next_split += 1
        return self.subgroup(members, axis or f"{self.axis}.{color}", self._next_split)

    def subgroup(self, ranks: Sequence[int], axis: str, group: int, cut: Cut | None = None) -> Communicator:
        """A communicator over some of the cluster's ranks, this one among them.

        Every one of them must make it.

        Args:
            ranks: the cluster's ranks, in the order that numbers them within the new group.
            axis: the name under which its messages stand on the graph.
            group: its number, the same on all its ranks and used by no other group that one of them is in.
            cut: how a mesh is cut into the groups of this kind; None: these are no part of a mesh.

        Returns:
            The communicator.

        Example:
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     if gpu.rank == 1:
            ...         return None
            ...     ends = gpu.comm.subgroup([0, 2], axis="ends", group=100)
            ...     return ends.rank, ends.size
            >>> Cluster("classroom", gpus=3).run(program).results
            [(0, 2), None, (1, 2)]
        """
        shared = (self.wire, self.progress, self.recorder, self.ledger)
        return Communicator(*shared, ranks, axis, group, self.meshes, cut)

    def _collective(
        self, operation: str, algorithm: str, x: torch.Tensor, async_op: bool, labels: dict, **options
    ) -> Work:
        purpose, label = labels.pop("purpose", "data"), labels.pop("label", "")
        if labels:
            raise TypeError(f"{operation}() got unexpected arguments {sorted(labels)}")
        if not x.is_contiguous():
            raise InputError(
                f"{operation} tensor", tuple(x.shape), "must be contiguous: call .contiguous() first"
            )
        algorithm, steps = find(operation, algorithm)
        given, average = dict(options), options.get("op") == "avg"
        if average:
            options["op"] = "sum"
        if options.get("op", "sum") not in REDUCTIONS:
            raise InputError("op", options["op"], "unknown reduction", [*REDUCTIONS, "avg"])
        if self.size == 1:
            return Done()
        x = x.detach()
        call = describe(operation, algorithm, x, (self.identity, self.axis, self.ranks), given)
        self.wire.agree(call, self.ranks, options.get("sends", ()), options.get("receives", ()))
        work = CollectiveWork(self, operation, algorithm, purpose, label, x)
        work.steps = (
            self._native(work, operation, x, options)
            if steps is None
            else begun(work, steps, x.view(-1), options)
        )
        if average:
            work.steps = _then(
                work.steps, lambda: _average(self.chunk(x) if operation == "reduce_scatter" else x, self.size)
            )
        self._queue.append(work)
        self.progress.drive()
        if not async_op:
            work.wait()
        return work

    def _native(self, work: CollectiveWork, operation: str, x: torch.Tensor, options: dict) -> Steps:
        whole = "all_reduce" if operation == "barrier" else operation
        self.wire.native(whole, x, self.ranks, options.get("src", 0), options.get("op", "sum"))
        yield []

    # ---- for the recorder ----------------------------------------------------------------------------------
    def lane(self, which: int) -> int:
        """The number of one of the group's lanes on the graph.

        Args:
            which: 0 collectives and local additions, 1 their sends, 2 their receives, 3 their launches, 4 the
                program's own sends, 5 its own receives.

        Returns:
            The lane's number; lane 0 is compute's.

        Example:
            >>> from glasscluster import Cluster
            >>> Cluster("classroom", gpus=1).run(lambda gpu: [gpu.comm.lane(which) for which in range(6)]).results
            [[1, 2, 3, 4, 5, 6]]
        """
        return group_lane(self.group, which)

    def next_sequence(self) -> int:
        """Count one more collective.

        Returns:
            Its number on this communicator, from 0.

        Example:
            >>> from glasscluster import Cluster
            >>> Cluster("classroom", gpus=1).run(lambda gpu: [gpu.comm.next_sequence() for _ in range(3)]).results
            [[0, 1, 2]]
        """
        self.launched += 1
        return self.launched - 1

    def restart_numbering(self) -> None:
        """Number collectives from 0 again, because a new recording starts.

        Example:
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     first = gpu.comm.next_sequence(), gpu.comm.next_sequence()
            ...     gpu.comm.restart_numbering()
            ...     return first, gpu.comm.next_sequence()
            >>> Cluster("classroom", gpus=1).run(program).results
            [((0, 1), 0)]
        """
        self.launched, self.last_collective = 0, -1


def _average(x: torch.Tensor, n: int) -> None:
    """Divide a tensor in place; whole numbers are rounded towards zero."""
    x.div_(n) if x.is_floating_point() else x.copy_(torch.div(x, n, rounding_mode="trunc"))


def _then(steps: Steps, last: Callable[[], object]) -> Steps:
    yield from steps
    last()
