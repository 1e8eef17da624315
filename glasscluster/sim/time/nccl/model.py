"""What NCCL would choose, and how long it would take: its own tuning model on the hardware of the catalogue.

    estimate  latency + bytes / bandwidth, for every (algorithm, protocol) that may run; the least one wins
    time      the estimate, and for a ring its copy out: in the last step of a pass (src/device/all_reduce.h)
              a channel only receives; bytes/N are moved from the FIFO into the result, read and written at
              memory bandwidth / 2, unsent

The copy out is ours, its rate from the data sheet; NCCL does not plan with it. We looked for it because the
estimate is too short on large A100 messages, by an amount proportional to 1/N. The measured rows are
therefore divided into two halves by message size: one that we looked at, and one held out, which decides
whether the tests pass (tests/test_nccl.py). The term is rough: buffers that are registered or written
directly skip it, few channels copy slower than the memory allows. On A100 times stay too short, by 16 to 21 %
in the median. `benchmarks/nccl.py` prints the errors of both halves, with and without it.

Follows NVIDIA/nccl src/graph/tuning.cc and search.cc, commit 5067397: figures in constants.py, formulas
written anew.

The search. NCCL looks for channels (rings, trees) through the node's links: it tries speeds from a short
list, high to low, counts the channels that fit and keeps the greatest speed × count; wide channels are then
split in two. Where all links are alike a count replaces its graph search:

    one node       channels · speed ≤ NVLinks · their rate (without NVLink: PCIe, or the link between
                   the sockets)
    several nodes  each port carries ⌊port / speed⌋ channels, a port being min(NIC, PCIe) wide; a GPU's
                   NVLinks carry the (g-1)/g of the channels that do not leave the node from it
    tree           the ring's channels; between nodes the speed inside the node goes up while NVLink has room
    NVLS           one channel a GPU; every GPU carries each channel once and its own twice:
                   (g + 1) · speed ≤ NVLink

That gives what NCCL logs: 12 rings of 20 on A100, 12 of 30 and 8 NVLS channels of 40 on H100, 8 rings of 48
between H200 nodes (published logs: NVIDIA/nccl issue 1197 and others). Approximated: every GPU reaches every
other at full width (an NVSwitch; a V100 cube mesh is not that for fewer than 8 GPUs); half of a node's GPUs
sit on each socket; where nodes are partly filled the nearest ports serve; trees are balanced unless a node
has one GPU; NICs add no latency of their own (graph.latencyInter = 0).

But: no CollNet and no NVLS between nodes, which need SHARP in the network; no user buffer registration,
symmetric memory or MNNVL. NCCL caps NVLS by its speed between nodes, on one node too, where nothing crosses:
here only between nodes. NCCL's own choice of NVLS for few GPUs has changed between its releases. The wire's
rate is NCCL's for the GPU's generation: `Link` is not asked, except for the rate of the ports. all_to_all is
no tuned collective in NCCL (grouped sends): bytes over the busiest port.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from glasscluster.base.errors import InputError
from glasscluster.sim.time.hardware import GB, Hardware, hardware
from glasscluster.sim.time.nccl import constants as K

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "all_reduce": ("Ring", "Tree", "NVLS", "NVLSTree"),
    "reduce_scatter": ("Ring", "NVLS", "PAT"),
    "all_gather": ("Ring", "NVLS", "PAT"),
    "broadcast": ("Ring",),
    "reduce": ("Ring",),
    "all_to_all": ("P2P",),
}
MORE_RATIO = 0.49  # search.cc: a speed below this share of the best one found is not tried


@dataclass(frozen=True)
class Channels:
    """The channels that the search gives one algorithm: `count` of them, each with these speeds (GB/s) inside
    a node and between nodes.
    """

    count: int
    bw_intra: float
    bw_inter: float


@dataclass(frozen=True)
class Setup:
    """A communicator as NCCL's tuning sees it. Speeds in GB/s; `wire` and `port` are a GPU's NVLink or PCIe
    and its share of the ports.
    """

    generation: str
    sm: int
    cpu: str
    ranks: int
    nodes: int
    link: str  # NVLINK | PCI
    ring: Channels
    tree: Channels
    nvls: Channels | None
    same_channels: bool
    ll128: bool
    wire: float
    port: float
    copy_rate: float  # bytes/s of a copy in a GPU's own memory

    @property
    def ppn(self) -> float:
        """The mean number of ranks in a node; nodes need not be equally full."""
        return self.ranks / self.nodes

    @property
    def channels(self) -> int:
        """The number of ring channels."""
        return self.ring.count

    def channels_of(self, algorithm: str) -> Channels | None:
        """The channels an algorithm runs on: NVLSTree shares those of NVLS, PAT those of the trees."""
        return {
            "Ring": self.ring,
            "Tree": self.tree,
            "PAT": self.tree,
            "NVLS": self.nvls,
            "NVLSTree": self.nvls,
        }[algorithm]


@dataclass(frozen=True)
class Choice:
    """One way to run a collective. `bandwidth_bytes_per_s` is bytes of the buffer a second once latency is
    paid.

    `estimate_s` is NCCL's tuning estimate (what it compares), `time_s` our prediction (estimate +
    `copy_out_s`), and `bus_bandwidth_bytes_per_s` belongs to `time_s`, as nccl-tests define it.
    """

    algorithm: str
    protocol: str
    channels: int
    latency_s: float
    bandwidth_bytes_per_s: float
    estimate_s: float
    copy_out_s: float
    time_s: float
    bus_bandwidth_bytes_per_s: float


def generation(sm: int) -> str:
    """Return the row of NCCL's tables that a compute capability uses."""
    return "Blackwell" if sm >= 100 else "Hopper" if sm >= 90 else "Ampere" if sm >= 80 else "Volta"


def setup(hw: str | Hardware, ranks: int, node_size: int | None = None) -> Setup:
    """Return what NCCL's search gives for `ranks` GPUs of a cluster, `node_size` in each node. A last node
    that is not full counts as a node.
    """
    hw = hardware(hw)
    sm, size = hw.gpu.sm, node_size or hw.node_size
    if sm == 0:
        raise InputError(
            "algorithm",
            "nccl",
            f"NCCL needs an NVIDIA GPU, {hw.gpu.name} is none",
            ["ring", "tree", "direct"],
        )
    if ranks < 2:
        raise InputError("ranks", ranks, "a collective needs at least two ranks", [2])
    if not 1 <= size <= hw.node_size:
        raise InputError(
            "node_size", size, f"a node of {hw.name} has {hw.node_size} GPUs", range(1, hw.node_size + 1)
        )
    nodes = math.ceil(ranks / size)
    local = min(ranks, size)
    pci = K.PCI_BW * 2 ** (K.since(K.PCIE_GENERATION, sm) - 3)
    wire = hw.gpu.nvlinks * K.since(K.NVLINK_BW, sm) or pci
    inside = (
        K.LOC_BW
        if local == 1
        else wire
        if hw.gpu.nvlinks or local <= hw.node_size / 2
        else min(wire, _socket(sm, hw.cpu))
    )
    all_ports = hw.nics or hw.node_size
    ports = max(1, all_ports * local // hw.node_size)
    nic = hw.inter.bandwidth * hw.node_size / all_ports / (100 * GB / 8) * K.NET_BW
    port = min(nic, pci)
    ring, tree = _ring_and_tree(sm, nodes, local, inside, ports, port)
    switch = hw.gpu.nvlinks > 0 and sm >= 90 and local >= 2
    links = {
        "wire": inside if local > 1 else wire,
        "port": port * ports / local,
        "copy_rate": hw.gpu.memory_bandwidth / 2,
    }
    link, nvls = (
        ("NVLINK" if hw.gpu.nvlinks else "PCI"),
        (_nvls(sm, nodes, local, wire, ports, port) if switch else None),
    )
    one_port, ll128 = nodes == 1 or ports == 1, hw.gpu.nvlinks > 0 and sm >= 70
    return Setup(
        generation(sm),
        sm,
        hw.cpu,
        ranks,
        nodes,
        link,
        ring,
        tree,
        nvls,
        same_channels=one_port,
        ll128=ll128,
        **links,
    )


def _socket(sm: int, cpu: str) -> float:
    """Return the GB/s between two sockets. The age of an Intel CPU is taken to be that of the GPU, which is
    an approximation.
    """
    return K.AMD_BW if cpu == "amd" else K.SRP_QPI_BW if sm >= 90 else K.SKL_QPI_BW


def _whole(x: float) -> int:
    return math.floor(x + 1e-9)


def _search(
    speeds: tuple[float, ...], top: float, total: float, count: Callable[[float], int]
) -> tuple[int, float]:
    """Return the count and the speed with the greatest product. No speed above `top` is tried, and none after
    `total` is reached.
    """
    best, at = 0, 0.0
    for speed in speeds:
        if speed > top + 1e-9:
            continue
        if best and (speed / at <= MORE_RATIO or best * at >= total):
            break
        if count(speed) * speed > best * at:
            best, at = count(speed), speed
    return best, at


def _ring_and_tree(
    sm: int, nodes: int, local: int, inside: float, ports: int, port: float
) -> tuple[Channels, Channels]:
    limit = K.MAX_CHANNELS // 2
    speeds = K.since(K.SPEEDS_INTRA if nodes == 1 else K.SPEEDS_INTER, sm)

    def count(speed: float) -> int:
        if nodes == 1:
            return min(limit, _whole(inside / speed))
        through = _whole(inside / speed * local / (local - 1)) if local > 1 else limit
        return min(limit, through, ports * _whole(port / speed))

    channels, speed = _search(speeds, min(inside, port) if nodes > 1 else inside, inside, count)
    if channels == 0:  # NCCL's last resort
        return Channels(1, 0.1, 0.1), Channels(1, 0.1, 0.1)
    if speed >= 25 and not (sm > 80 and speed < 50 and channels > 4):
        doubled = min(2 * channels, limit)
        channels, speed = doubled, speed / math.ceil(doubled / channels)
    faster = [s for s in speeds if s > speed and count(s) >= channels]
    speed = max(faster, default=speed)
    intra = speed
    for s in sorted(s for s in speeds if s > speed) if nodes > 1 else ():
        if intra >= 2 * speed or channels * s > inside + 1e-9:
            break
        intra = s
    return Channels(channels, speed, speed), Channels(channels, intra, speed)


def _nvls(sm: int, nodes: int, local: int, wire: float, ports: int, port: float) -> Channels | None:
    heads = min(K.MAX_NVLS_HEADS, local)
    if nodes == 1:  # every GPU is a head: one channel each
        speed = max((s for s in K.since(K.SPEEDS_INTRA, sm) if (heads + 1) * s <= wire), default=0.0)
        return Channels(heads, speed, speed) if speed else None

    def count(speed: float) -> int:
        return min(heads, ports * _whole(port / speed), _whole(wire / speed) - 1)

    speeds = K.since(K.SPEEDS_INTER, sm)
    channels, speed = _search(speeds, port, wire, count)
    inter = speed
    for s in sorted(s for s in speeds if speed < s <= port):
        if inter >= 2 * speed or ports * _whole(port / s) < channels:
            break
        inter = s
    return Channels(channels, speed, inter) if channels else None


def steps(operation: str, ranks: int) -> int:
    """Return the steps of a ring: 2(n-1) for all-reduce, n-1 for reduce-scatter and all-gather, n for
    broadcast and reduce.
    """
    return (
        2 * (ranks - 1)
        if operation == "all_reduce"
        else ranks - 1
        if operation in ("reduce_scatter", "all_gather")
        else ranks
    )


def allowed_here(operation: str, algorithm: str, protocol: str, s: Setup) -> bool:
    """Whether NCCL lets this algorithm and protocol run the operation on this communicator."""
    if protocol == "LL128" and not s.ll128:
        return False
    if algorithm in ("NVLS", "NVLSTree"):
        one_node = s.nodes == 1
        return (
            protocol == "Simple"
            and s.nvls is not None
            and s.nvls.count >= 2
            and one_node == (algorithm == "NVLS")
        )
    if algorithm == "PAT":
        return protocol == "Simple" and s.nodes == s.ranks
    return algorithm in ALGORITHMS[operation]


def latency(operation: str, algorithm: str, protocol: str, s: Setup) -> float:
    """Return the latency in seconds: base + steps inside the node + steps between nodes."""
    p = K.PROTOCOLS.index(protocol)
    base = K.BASE_LATENCY[algorithm][p]
    intra, net = K.HW_LATENCY[s.link][algorithm][p], K.HW_LATENCY["NET"]
    inter = net["Tree" if s.ppn == 1 else algorithm][p]
    hops = int(math.log2(s.nodes))
    n = steps(operation, s.ranks)
    if algorithm == "NVLS":
        us = intra + (inter if s.nodes > 1 else 0)
    elif algorithm == "NVLSTree":
        us = base + intra + 2 * hops * inter
    elif algorithm == "PAT":
        us = base + hops * inter / 3.5 + s.ranks * 2.8
    elif algorithm == "Tree":
        us = base + 2 * ((s.ranks // s.nodes - 1) * intra + hops * inter)
    elif operation in ("broadcast", "reduce"):
        kind = K.HW_LATENCY[s.link if s.nodes == 1 else "NET"]
        chunked = not s.same_channels and protocol == "Simple"
        us = base + (1 if s.same_channels else n) * kind["Tree" if chunked else "Ring"][p]
    else:
        crossing = (2 if operation == "all_reduce" else 1) * (s.nodes - 1)
        if s.nodes > 1:
            intra = max(intra, K.NET_OVERHEAD.get(s.cpu, 1.0) * (3 if protocol == "Simple" else 1))
        us = base + (n - crossing) * intra + crossing * inter
    return us * 1e-6


def bandwidth(operation: str, algorithm: str, protocol: str, s: Setup) -> float:
    """Return the algorithm bandwidth in bytes/s before the correction by size; 0 where the algorithm may not
    run.
    """
    if not allowed_here(operation, algorithm, protocol, s):
        return 0.0
    channels = s.channels_of(algorithm)
    assert channels is not None
    c, column, gen = channels.count, min(s.nodes, 3) - 1, s.generation
    bus = c * (channels.bw_intra if s.nodes <= 2 else channels.bw_inter)
    ll_row = gen if s.nodes == 1 else "Ampere" if s.cpu == "amd" else "Volta"
    ll_max = K.LL_MAX_BW[ll_row][column]
    if algorithm in ("NVLS", "NVLSTree"):
        speed = channels.bw_intra * K.NVLS_EFFICIENCY[gen] * (c - 1) / c
        speed *= 2 if operation == "all_reduce" else (s.ppn - 1) / s.ppn
        if algorithm == "NVLSTree":
            speed = min(
                speed, channels.bw_inter * (2 if s.nodes <= 2 else 1), K.NVLS_TREE_MAX_BW[gen][column]
            )
        bus = c * speed
    elif algorithm == "Ring" and protocol == "LL":
        bus = min(ll_max, bus / 2)
    elif algorithm == "Ring" and protocol == "LL128":
        bus = min(0.92 * bus, c * K.RING_LL128_MAX_BW[gen][column])
    elif algorithm == "Tree":
        bus = min(0.92 * bus, c * K.TREE_MAX_BW[gen][column])
        if protocol == "LL":
            bus = min(bus / 3.8, ll_max)
        elif protocol == "LL128":
            bus = min(bus * (7 / 9 if s.nodes == 1 else 120 / 128), c * K.TREE_LL128_MAX_BW[gen][column])
        if s.ppn == 1:  # all of a node's traffic goes through one GPU
            bus *= 0.85
    elif algorithm == "PAT":
        bus *= 0.75
    if algorithm == "Tree":
        bus /= 2
    elif algorithm == "Ring" or operation == "all_reduce":
        bus *= s.ranks / steps(operation, s.ranks)
    return bus * GB


def _choice(operation: str, algorithm: str, protocol: str, nbytes: int, s: Setup) -> Choice:
    lat, bw = latency(operation, algorithm, protocol, s), bandwidth(operation, algorithm, protocol, s)
    channels = s.channels_of(algorithm)
    assert channels is not None
    size = int(math.log2(nbytes // 64)) if nbytes >= 64 else 0
    corrected = algorithm == "Tree" or (algorithm == "NVLSTree" and s.sm >= 100)
    if corrected and size < len(K.TREE_CORRECTION[protocol]):
        bw *= K.TREE_CORRECTION[protocol][size]
    plateau = algorithm == "Ring" and protocol == "Simple" and operation == "all_reduce" and s.nodes > 1
    if plateau and nbytes // (min(K.MAX_CHANNELS, 2 * channels.count) * s.ranks) >= 64:
        lat *= K.RING_PLATEAU[s.sm >= 80]
    copies = algorithm == "Ring" and operation in ("all_reduce", "reduce_scatter", "all_gather")
    return _timed(
        operation,
        algorithm,
        protocol,
        channels.count,
        lat,
        bw,
        nbytes,
        nbytes / s.ranks / s.copy_rate if copies else 0.0,
        s,
    )


def _timed(
    operation: str,
    algorithm: str,
    protocol: str,
    channels: int,
    lat: float,
    bw: float,
    nbytes: int,
    copy: float,
    s: Setup,
) -> Choice:
    estimate = lat + nbytes / bw
    n = s.ranks
    share = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0, "reduce": 1.0}.get(operation, (n - 1) / n)
    return Choice(
        algorithm,
        protocol,
        channels,
        lat,
        bw,
        estimate,
        copy,
        estimate + copy,
        nbytes * share / (estimate + copy),
    )


def candidates(
    operation: str, nbytes: int, hw: str | Hardware, ranks: int, node_size: int | None = None
) -> list[Choice]:
    """Every (algorithm, protocol) NCCL may choose from. `nbytes` is the full buffer of a rank (of all_gather:
    the gathered one).

    all_to_all: each GPU sends (n-1)/n of its buffer, inside and between nodes at once; the slower of the two
    counts.
    """
    if operation not in ALGORITHMS:
        raise InputError("operation", operation, "NCCL has no such collective", list(ALGORITHMS))
    if nbytes < 0:
        raise InputError("bytes", nbytes, "a buffer has no negative size", [0])
    s = setup(hw, ranks, node_size)
    if operation == "all_to_all":
        near = min(s.ppn, s.ranks) - 1
        seconds_per_byte = max(near / s.wire, (s.ranks - s.ppn) / s.port) / s.ranks / GB
        lat = (K.BASE_LATENCY["Ring"][2] + K.HW_LATENCY[s.link if s.nodes == 1 else "NET"]["Ring"][2]) * 1e-6
        return [_timed(operation, "P2P", "Simple", s.ring.count, lat, 1 / seconds_per_byte, nbytes, 0.0, s)]
    return [
        _choice(operation, algorithm, protocol, nbytes, s)
        for algorithm in ALGORITHMS[operation]
        for protocol in K.PROTOCOLS
        if allowed_here(operation, algorithm, protocol, s)
    ]


def choose(
    operation: str,
    nbytes: int,
    hw: str | Hardware,
    ranks: int,
    allowed: Collection[str] | None = None,
    node_size: int | None = None,
) -> Choice:
    """Return NCCL's choice, the one with the least estimate. `allowed` names the algorithms it may use, like
    NCCL_ALGO.
    """
    options = candidates(operation, nbytes, hw, ranks, node_size)
    chosen = [c for c in options if allowed is None or c.algorithm in allowed]
    if not chosen:
        names = sorted({c.algorithm for c in options})
        raise InputError(
            "algorithm", ", ".join(sorted(allowed or ())), f"NCCL cannot run {operation} so here", names
        )
    return min(chosen, key=lambda c: c.estimate_s)
