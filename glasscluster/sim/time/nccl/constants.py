"""The numbers NCCL plans with, as data: NVIDIA/nccl, commit 5067397 (2026-06-11).

Only figures are taken over, each block with the file it stands in. Units: microseconds and GB/s (1e9
bytes/s), as there. A triple is (LL, LL128, Simple) in the latency tables and (1 node, 2 nodes, more) in the
tables of caps.
But: NVLS and the collectives of one-GPU nodes (PAT) are here, CollNet is not: no switch of the catalogue
reduces in the network.
"""

from __future__ import annotations

from typing import TypeVar

PROTOCOLS = ("LL", "LL128", "Simple")
Triple = tuple[float, float, float]

# src/graph/tuning.cc: launch and protocol latency of a collective, us.
BASE_LATENCY: dict[str, Triple] = {
    "Ring": (6.6, 14.0, 8.4),
    "Tree": (6.8, 14.0, 8.4),
    "NVLS": (0.0, 0.0, 0.0),
    "NVLSTree": (0.0, 0.0, 0.0),
    "PAT": (8.0, 8.0, 8.0),
}

# src/graph/tuning.cc: latency of one step over a kind of link, us.
HW_LATENCY: dict[str, dict[str, Triple]] = {
    "NVLINK": {
        "Ring": (0.6, 1.9, 3.4),
        "Tree": (0.6, 1.25, 4.0),
        "NVLS": (0.0, 0.0, 25.0),
        "NVLSTree": (0.0, 0.0, 25.0),
        "PAT": (0.0, 0.0, 4.0),
    },
    "PCI": {
        "Ring": (1.0, 2.5, 5.7),
        "Tree": (1.0, 1.9, 4.0),
        "NVLS": (0.0, 0.0, 0.0),
        "NVLSTree": (0.0, 0.0, 0.0),
        "PAT": (0.0, 0.0, 4.0),
    },
    "NET": {
        "Ring": (2.7, 4.0, 14.0),
        "Tree": (5.0, 8.5, 14.0),
        "NVLS": (0.0, 0.0, 18.0),
        "NVLSTree": (0.0, 0.0, 20.9),
        "PAT": (0.0, 0.0, 14.0),
    },
}

# src/graph/tuning.cc: the most bandwidth that LL reaches, GB/s. One node: the row of the GPU; several:
# Ampere's row for AMD CPUs, else Volta's.
LL_MAX_BW: dict[str, Triple] = {
    "Volta": (39.0, 39.0, 20.4),
    "Ampere": (87.7, 22.5, 19.0),
    "Hopper": (141.0, 45.0, 35.0),
    "Blackwell": (282.0, 90.0, 70.0),
}

# src/graph/tuning.cc: the most bandwidth that a channel reaches, GB/s.
RING_LL128_MAX_BW: dict[str, Triple] = {
    "Volta": (20.0, 20.0, 20.0),
    "Ampere": (20.0, 20.0, 20.0),
    "Hopper": (36.7, 36.7, 36.7),
    "Blackwell": (40.0, 40.0, 40.0),
}
TREE_LL128_MAX_BW: dict[str, Triple] = {
    "Volta": (20.0, 20.0, 20.0),
    "Ampere": (20.0, 20.0, 20.0),
    "Hopper": (36.7, 36.7, 29.0),
    "Blackwell": (55.6, 31.67, 20.0),
}
TREE_MAX_BW: dict[str, Triple] = {
    "Volta": (26.5, 18.5, 10.0),
    "Ampere": (24.0, 23.6, 17.8),
    "Hopper": (38.7, 41.4, 36.0),
    "Blackwell": (70.0, 42.8, 24.0),
}
NVLS_TREE_MAX_BW: dict[str, Triple] = {
    "Volta": (26.5, 18.5, 10.0),
    "Ampere": (24.0, 23.6, 17.8),
    "Hopper": (0.0, 57.7, 45.5),
    "Blackwell": (0.0, 96.0, 80.0),
}

# src/graph/tuning.cc: the share of the NVLink rate that remains when the switch reduces.
NVLS_EFFICIENCY: dict[str, float] = {"Volta": 0.0, "Ampere": 0.0, "Hopper": 0.85, "Blackwell": 0.74}

# src/graph/tuning.cc: a tree's bandwidth is multiplied by entry floor(log2(bytes / 64)); from 1 GiB on by
# one.
TREE_CORRECTION: dict[str, tuple[float, ...]] = {
    "LL": (
        1.0,
        1.0,
        1.0,
        1.0,
        0.9,
        0.8,
        0.7,
        0.7,
        0.7,
        0.7,
        0.6,
        0.5,
        0.4,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
    ),
    "LL128": (
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        0.9,
        0.8,
        0.8,
        0.8,
        0.7,
        0.6,
        0.6,
        0.6,
        0.6,
        0.6,
        0.6,
        0.8,
        0.9,
        0.9,
        0.9,
        0.9,
        1.0,
        1.0,
        1.0,
    ),
    "Simple": (
        0.9,
        0.9,
        0.9,
        0.9,
        0.9,
        0.9,
        0.9,
        0.8,
        0.7,
        0.6,
        0.6,
        0.5,
        0.5,
        0.5,
        0.5,
        0.6,
        0.7,
        0.8,
        0.7,
        0.7,
        0.8,
        0.9,
        0.9,
        0.9,
    ),
}

# src/graph/tuning.cc: us of CPU time per step of a ring that crosses nodes, by CPU vendor (anything else:
# 1.0).
NET_OVERHEAD: dict[str, float] = {"intel": 1.0, "amd": 2.0}

# src/graph/tuning.cc: factor on the latency of Ring/Simple all-reduce over several nodes: before Ampere, from
# Ampere on.
RING_PLATEAU: tuple[float, float] = (1.9, 1.4)

# src/graph/topo.h: GB/s of one NVLink, by the compute capability (times ten) from which it holds, newest
# first.
NVLINK_BW: dict[int, float] = {100: 40.1, 90: 20.6, 86: 12.0, 80: 20.0, 70: 20.0, 60: 18.0}

# src/graph/topo.h: GB/s of PCIe gen3 x16 (each generation doubles), of a 100 Gb/s port, of a GPU to itself.
PCI_BW, NET_BW, LOC_BW = 12.0, 12.0, 5000.0

# src/graph/topo.h: GB/s between the sockets of a node: Intel before and from Sapphire Rapids, Emerald Rapids;
# AMD.
SKL_QPI_BW, SRP_QPI_BW, ERP_QPI_BW, AMD_BW = 10.0, 22.0, 40.0, 16.0

# src/graph/search.cc: the speeds a channel may have (GB/s), by compute capability from which they hold; a
# node, several nodes.
SPEEDS_INTRA: dict[int, tuple[float, ...]] = {
    100: (90.0, 80.0, 70.0, 60.0, 50.0, 45.0, 40.0, 30.0, 24.0, 20.0, 19.0, 18.0),
    90: (60.0, 50.0, 40.0, 30.0, 24.0, 20.0, 15.0, 12.0, 11.0, 6.0, 3.0),
    0: (40.0, 30.0, 20.0, 18.0, 15.0, 12.0, 10.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0),
}
SPEEDS_INTER: dict[int, tuple[float, ...]] = {
    100: (
        96.0,
        86.0,
        80.0,
        48.0,
        45.1,
        42.0,
        40.0,
        30.0,
        24.0,
        22.0,
        20.0,
        17.5,
        15.0,
        12.0,
        6.0,
        3.0,
        2.4,
        1.2,
        0.24,
        0.12,
    ),
    90: (48.0, 45.0, 42.0, 40.0, 30.0, 24.0, 22.0, 20.0, 17.5, 15.0, 12.0, 6.0, 3.0, 2.4, 1.2, 0.24, 0.12),
    0: (
        48.0,
        30.0,
        28.0,
        24.0,
        20.0,
        18.0,
        15.0,
        12.0,
        10.0,
        9.0,
        7.0,
        6.0,
        5.0,
        4.0,
        3.0,
        2.4,
        1.2,
        0.24,
        0.12,
    ),
}

# src/graph/search.cc, connect.cc: at most 64 channels, half of them found by the search and doubled when
# connected.
MAX_CHANNELS = 64
MAX_NVLS_HEADS = 32

# PCIe generation of a GPU's own slot, by compute capability (data sheets; recalled): V100 gen3, A100 and Ada
# gen4, Hopper and B200 gen5, B300 gen6 to its own ConnectX-8.
PCIE_GENERATION: dict[int, int] = {103: 6, 90: 5, 80: 4, 0: 3}

Value = TypeVar("Value")


def since(table: dict[int, Value], sm: int) -> Value:
    """The entry of the newest compute capability that is not above `sm`."""
    return table[max(k for k in table if k <= sm)]
