"""The hardware catalogue: what a GPU, a link and a node are, each figure with its source.

Data-sheet figures are peaks. The few constants that no data sheet prints (launch cost, latencies) are
marked so in their source and belong to a GPU or a link, never to a model or a table.
Units: FLOP/s, bytes, bytes/s, seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import is_file
from glasscluster.base.link import Link
from glasscluster.sim.time import profile
from glasscluster.sim.time.network.own import as_data, from_data
from glasscluster.sim.time.network.topology import Topology

GB = 1e9
GIB = 1024**3
US = 1e-6


@dataclass(frozen=True)
class GPU:
    """One accelerator.

    Attributes:
        name: as people call it.
        peak_flops: from a precision (fp64, fp32, bf16, fp16, fp8) to FLOP/s of dense products of matrices.
        memory_bytes: its memory's size.
        memory_bandwidth: bytes/s between its memory and its compute units.
        launch_s: seconds that launching one kernel adds.
        reduce_rate: γ, bytes/s of the local additions inside a reduction.
        source: where the figures come from.
        sm: CUDA compute capability times ten; 0 where it is no NVIDIA GPU.
        nvlinks: its NVLink connections.
    """

    name: str
    peak_flops: dict[str, float]
    memory_bytes: float
    memory_bandwidth: float
    launch_s: float = 0.0
    reduce_rate: float = float("inf")
    source: str = ""
    sm: int = 0  # CUDA compute capability times ten; 0 where it is no NVIDIA GPU
    nvlinks: int = 0  # NVLink connections of one GPU

    def peak(self, precision: str) -> float:
        """The peak at a precision.

        Args:
            precision: fp64, fp32, bf16, fp16 or fp8.

        Returns:
            FLOP/s of dense products of matrices.

        Raises:
            InputError: if no peak is known for it.
        """
        if precision not in self.peak_flops:
            raise InputError(
                "precision", precision, f"{self.name} lists no peak for it", list(self.peak_flops)
            )
        return self.peak_flops[precision]


@dataclass(frozen=True)
class HostShare:
    """One GPU's share of its node's host.

    Attributes:
        link: the GPU's own link to the host.
        memory_bytes: the host's memory, divided by the node's GPUs.
        memory_bandwidth: bytes/s of the host's memory, divided by the node's GPUs.
        source: where the figures come from.
    """

    link: Link
    memory_bytes: float
    memory_bandwidth: float
    source: str = ""


_INVENTED = "invented: 10 GB/s and 10 us to the host, 64 GB of memory at 20 GB/s for each GPU"
CLASSROOM_HOST = HostShare(
    Link("classroom host link", 10 * GB, 10 * US, 0.0, _INVENTED), 64e9, 20 * GB, _INVENTED
)


@dataclass(frozen=True)
class Hardware:
    """A cluster of equal nodes: GPUs joined by `intra` inside a node and by `inter` between nodes.

    Attributes:
        name: as the catalogue calls it.
        gpu: each GPU.
        intra: the link between two GPUs of a node.
        inter: the link between two GPUs of different nodes, its bandwidth that of one GPU.
        node_size: GPUs in a node.
        note: a remark for readers.
        nics: network ports of a node, each shared by node_size / nics GPUs; 0: one a GPU.
        cpu: intel or amd; NCCL's constants of the network differ.
        host: each GPU's share of its node's host.
        topology: a network of its own, in place of `intra` and `inter`; None: none.
        bandwidth_scale: the factor by which `scaled` changed the links' bandwidth; a library's collectives
            are costed on the links as built, and scaled afterwards.
        latency_scale: the factor by which it changed their latency.

    Example:
        >>> from glasscluster.sim.time.hardware import hardware
        >>> machine = hardware("dgx-h100")
        >>> machine.link(0, 7).name, machine.link(7, 8).name
        ('NVLink 4', 'NDR 400 Gb/s per GPU')
        >>> machine.scaled(bandwidth=2).intra.bandwidth / machine.intra.bandwidth
        2.0
    """

    name: str
    gpu: GPU
    intra: Link
    inter: Link
    node_size: int = 8
    note: str = field(default="", compare=False)
    nics: int = 0  # network ports of a node, each shared by node_size / nics GPUs; 0: one a GPU
    cpu: str = "intel"  # intel | amd: NCCL's constants of the network differ
    host: HostShare = CLASSROOM_HOST
    # in place of `intra` and `inter`: a network of its own
    topology: Topology | None = field(default=None, compare=False)
    # by which factors `scaled` changed the links; needed for a library's own figures (nccl/)
    bandwidth_scale: float = 1.0
    latency_scale: float = 1.0

    def link(self, src: int, dst: int) -> Link:
        """The wire between two ranks.

        Consecutive ranks share a node; through a topology, the route counts as one wire.

        Args:
            src: the rank that sends.
            dst: the rank that receives.

        Returns:
            The Link: bandwidth in bytes/s, latency and overhead in seconds.
        """
        if self.topology is not None:
            return self.topology.link(src, dst)
        return self.intra if src // self.node_size == dst // self.node_size else self.inter

    def scaled(self, *, bandwidth: float = 1.0, latency: float = 1.0, flops: float = 1.0) -> Hardware:
        """The same cluster with faster or slower links and GPUs.

        Args:
            bandwidth: factor on the bandwidth of every link.
            latency: factor on α, the latency and overhead of every link.
            flops: factor on the peaks of every GPU.

        Returns:
            Another Hardware of the same name.
        """
        gpu = replace(self.gpu, peak_flops={k: v * flops for k, v in self.gpu.peak_flops.items()})
        intra, inter = (
            replace(
                x,
                bandwidth=x.bandwidth * bandwidth,
                latency_s=x.latency_s * latency,
                overhead_s=x.overhead_s * latency,
            )
            for x in (self.intra, self.inter)
        )
        network = self.topology and self.topology.scaled(bandwidth=bandwidth, latency=latency)
        return replace(
            self,
            gpu=gpu,
            intra=intra,
            inter=inter,
            topology=network,
            bandwidth_scale=self.bandwidth_scale * bandwidth,
            latency_scale=self.latency_scale * latency,
        )

    def save(self, path: str | Path) -> None:
        """Write a file that `--hardware FILE` reads back as this machine, scaled links and topology too.

        Args:
            path: the file to write, or to replace.

        Raises:
            InputError: a node of the topology is neither a word, a number nor a tuple of them.
        """
        fields = asdict(replace(self, topology=None))
        profile.write(fields | {"topology": self.topology and as_data(self.topology)}, path)


_ML_ENG = "stas00/ml-engineering, compute/accelerator and network READMEs"
_NCCL = "latency per step: NCCL src/graph/tuning.cc hwLatency, Ring/Simple"
_LAUNCH = (
    "launch cost: not on a data sheet; 5 us is the order of an asynchronous CUDA kernel launch plus its gap"
)

CLASSROOM_GPU = GPU(
    "classroom GPU",
    dict.fromkeys(("fp64", "fp32", "bf16", "fp16"), 1000000000000.0),
    16e9,
    100 * GB,
    source="invented: round numbers that can be checked by hand (1 TFLOP/s, 100 GB/s, no launch cost)",
)
LAPTOP_GPU = GPU(
    "laptop GPU",
    {"fp64": 0.2e12, "fp32": 10e12, "bf16": 20e12, "fp16": 20e12},
    8e9,
    250 * GB,
    launch_s=5 * US,
    source="invented: the order of a mid-range laptop GPU; " + _LAUNCH,
)
V100 = GPU(
    "V100 SXM2 32GB",
    {"fp64": 7.8e12, "fp32": 15.67e12, "fp16": 125e12},
    32e9,
    897 * GB,
    5 * US,
    400 * GB,
    "hmc-tech.com (15.67 / 125 TFLOP/s), sysrqmts.com (897 GB/s); " + _LAUNCH,
    sm=70,
    nvlinks=6,
)
A100_40 = GPU(
    "A100 SXM 40GB",
    {"fp64": 19.5e12, "fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12},
    40e9,
    1555 * GB,
    5 * US,
    700 * GB,
    "NVIDIA A100 page (recalled); " + _LAUNCH,
    sm=80,
    nvlinks=12,
)
A100_80 = GPU(
    "A100 SXM 80GB",
    {"fp64": 19.5e12, "fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12},
    80e9,
    2000 * GB,
    5 * US,
    900 * GB,
    _ML_ENG + "; " + _LAUNCH,
    sm=80,
    nvlinks=12,
)
A100_PCIE = GPU(
    "A100 PCIe 80GB",
    {"fp64": 19.5e12, "fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12},
    80e9,
    1940 * GB,
    5 * US,
    900 * GB,
    _ML_ENG + "; " + _LAUNCH,
    sm=80,
    nvlinks=0,
)
H100 = GPU(
    "H100 SXM 80GB",
    {"fp64": 67e12, "fp32": 67e12, "bf16": 989e12, "fp16": 989e12, "fp8": 1979e12},
    80e9,
    3350 * GB,
    5 * US,
    1500 * GB,
    _ML_ENG + "; " + _LAUNCH,
    sm=90,
    nvlinks=18,
)
H200 = GPU(
    "H200 SXM",
    {"fp64": 67e12, "fp32": 67e12, "bf16": 989e12, "fp16": 989e12, "fp8": 1979e12},
    141e9,
    4800 * GB,
    5 * US,
    2100 * GB,
    _ML_ENG + "; " + _LAUNCH,
    sm=90,
    nvlinks=18,
)
B200 = GPU(
    "B200 SXM",
    {"fp64": 40e12, "fp32": 80e12, "bf16": 2250e12, "fp16": 2250e12, "fp8": 4500e12},
    180e9,
    8000 * GB,
    5 * US,
    3500 * GB,
    _ML_ENG + "; fp64 recalled; " + _LAUNCH,
    sm=100,
    nvlinks=18,
)
RTX_4090 = GPU(
    "RTX 4090 24GB",
    {"fp64": 1.29e12, "fp32": 82.6e12, "bf16": 165.2e12, "fp16": 165.2e12, "fp8": 330.3e12},
    24e9,
    1008 * GB,
    5 * US,
    450 * GB,
    "NVIDIA Ada whitepaper, fp16 with fp32 accumulate, dense (recalled); " + _LAUNCH,
    sm=89,
    nvlinks=0,
)

_DENSE = "dense, half of the sheet's figure with sparsity"
_EXPORT = "the H100's die with what export rules of 2023 limit; NVIDIA prints no public sheet"
B300 = GPU(
    "B300 SXM",
    {"fp64": 1.25e12, "fp32": 80e12, "bf16": 2250e12, "fp16": 2250e12, "fp8": 4500e12},
    288e9,
    8000 * GB,
    5 * US,
    3500 * GB,
    f"{_ML_ENG}; fp64: NVIDIA HGX B300 page, 10 TFLOP/s for 8 GPUs; {_DENSE}; {_LAUNCH}",
    sm=103,
    nvlinks=18,
)
GB200 = GPU(
    "GB200 SXM",
    {"fp64": 40e12, "fp32": 80e12, "bf16": 2500e12, "fp16": 2500e12, "fp8": 5000e12},
    186e9,
    8000 * GB,
    5 * US,
    3500 * GB,
    f"{_ML_ENG}; NVIDIA GB200 NVL72 page: a superchip has two GPUs, 5 PFLOP/s of bf16 between them, "
    f"{_DENSE}; fp64 recalled; {_LAUNCH}",
    sm=100,
    nvlinks=18,
)
H20 = GPU(
    "H20 SXM 96GB",
    {"fp64": 1e12, "fp32": 44e12, "bf16": 148e12, "fp16": 148e12, "fp8": 296e12},
    96e9,
    4000 * GB,
    5 * US,
    1800 * GB,
    f"{_EXPORT}: zangshuxian.com/new/674733024499207168 (dense peaks, 4.0 TB/s), willitrunai.com (96 GB); "
    f"{_LAUNCH}",
    sm=90,
    nvlinks=18,
)
H800 = GPU(
    "H800 SXM 80GB",
    {"fp64": 1e12, "fp32": 67e12, "bf16": 989e12, "fp16": 989e12, "fp8": 1979e12},
    80e9,
    3350 * GB,
    5 * US,
    1500 * GB,
    f"{_EXPORT}: philisun.com, NVIDIA H800 vs H100 (fp64 of 1 TFLOP/s, NVLink of 400 GB/s both ways, else "
    f"the H100's figures); {_LAUNCH}",
    sm=90,
    nvlinks=8,
)
L40S = GPU(
    "L40S",
    {"fp64": 1.43e12, "fp32": 91.6e12, "bf16": 362e12, "fp16": 362e12, "fp8": 733e12},
    48e9,
    864 * GB,
    5 * US,
    380 * GB,
    f"{_ML_ENG}; NVIDIA's L40S sheet prints 362.05 | 733*, the first is dense; fp64: itcreations.com, 1/64 "
    f"of fp32; {_LAUNCH}",
    sm=89,
    nvlinks=0,
)
MI300X = GPU(
    "MI300X",
    {"fp64": 163.4e12, "fp32": 163.4e12, "bf16": 1307.4e12, "fp16": 1307.4e12, "fp8": 2614.9e12},
    192e9,
    5300 * GB,
    5 * US,
    2300 * GB,
    f"AMD Instinct MI300X data sheet: matrix cores, dense; {_LAUNCH}",
)


def _nvlink(generation: int, gbps: float) -> Link:
    return Link(f"NVLink {generation}", gbps * GB, 3.4 * US, 0.0, f"{_ML_ENG}; {_NCCL} over NVLink 3.4 us")


def _nic(name: str, gbps: float) -> Link:
    return Link(
        name, gbps * GB, 14 * US, 0.0, f"unit conversion of the port rate; {_NCCL} over the network 14 us"
    )


def _pcie(generation: int, gbps: float) -> Link:
    return Link(f"PCIe {generation} x16", gbps * GB, 5.7 * US, 0.0, f"{_ML_ENG}; {_NCCL} over PCI 5.7 us")


def _host(
    generation: int, gpus: int, memory_gb: float, channels: int, mega_transfers: int, cpus: str
) -> HostShare:
    """Make a GPU's share of the host: its own PCIe x16 link, and its share of the memory, whose bandwidth is
    channels of all sockets x transfers/s x 8 bytes.
    """
    rate = {3: 16, 4: 31, 5: 63}[generation] * GB
    link = Link(
        f"PCIe {generation} x16 to the host", rate, 5.7 * US, 0.0, f"{_ML_ENG}; {_NCCL} over PCI 5.7 us"
    )
    source = (
        f"{cpus}: data sheet (recalled), {channels} channels of {mega_transfers} MT/s x 8 bytes, "
        f"shared by {gpus} GPUs"
    )
    return HostShare(link, memory_gb * GB / gpus, channels * mega_transfers * 1e6 * 8 / gpus, source)


_V100_HOST = _host(3, 8, 512, 8, 2400, "DGX-1: 2 x Xeon E5-2698 v4")
_A100_40_HOST = _host(4, 8, 1024, 16, 3200, "DGX A100: 2 x EPYC 7742")
_A100_HOST = _host(4, 8, 2048, 16, 3200, "DGX A100: 2 x EPYC 7742")
_H100_HOST = _host(5, 8, 2048, 16, 4800, "DGX H100, H200: 2 x Xeon 8480C")
_B200_HOST = _host(5, 8, 2048, 16, 5600, "DGX B200: 2 x Xeon 8570")
_H20_HOST = _host(5, 8, 2048, 16, 4800, "an HGX server with 2 x Xeon 8480")
_B300_HOST = _host(5, 8, 2048, 16, 6400, "DGX B300: 2 x Xeon 6776P, whose PCIe is generation 5")
_MI300X_HOST = _host(5, 8, 1536, 24, 4800, "a server with 2 x EPYC 9374F and 24 modules of 64 GB")
_GRACE = "NVIDIA GB200 NVL72 page: a Grace CPU shared by 2 GPUs,"
_GRACE_HOST = HostShare(
    Link("NVLink-C2C", 225 * GB, 5.7 * US, 0.0, f"{_GRACE} 900 GB/s both ways; latency as PCIe's"),
    240 * GB,
    256 * GB,
    f"{_GRACE} 480 GB of LPDDR5X at up to 512 GB/s",
)
_SERVER_HOST = _host(4, 8, 1024, 16, 3200, "a server with 2 x EPYC 7742")
_LAPTOP_HOST = _host(4, 1, 32, 2, 4800, "a laptop with two channels of DDR5")

# AMD prints no latency of a step, and this is no NCCL: those of the nearest link in NCCL's table
_XGMI = Link(
    "Infinity Fabric",
    448 * GB,
    3.4 * US,
    0.0,
    "AMD Instinct MI300X data sheet: a link to each of the 7 others, 64 GB/s one way; what a GPU sends to all "
    "of them together, which rings over every link share (one message alone has a single link's 64); latency "
    "as NVLink's",
)
_CLASS_LINK = Link(
    "classroom link", 10 * GB, 8 * US, 2 * US, "invented: 10 GB/s, 10 us = 2 us on the port + 8 us in flight"
)

MACHINES = Path(__file__).parent / "machines"  # profiles in this folder belong to the catalogue, too
CATALOGUE: dict[str, Hardware] = {
    h.name: h
    for h in (
        Hardware("classroom", CLASSROOM_GPU, _CLASS_LINK, _CLASS_LINK),
        Hardware(
            "laptop", LAPTOP_GPU, _pcie(4, 31), _nic("1 Gb/s Ethernet", 0.125), 1, nics=1, host=_LAPTOP_HOST
        ),
        Hardware(
            "dgx-v100", V100, _nvlink(2, 150), _nic("4x EDR 100 Gb/s per node", 6.25), nics=4, host=_V100_HOST
        ),
        Hardware(
            "dgx-a100-40gb",
            A100_40,
            _nvlink(3, 300),
            _nic("HDR 200 Gb/s per GPU", 25),
            cpu="amd",
            host=_A100_40_HOST,
        ),
        Hardware(
            "dgx-a100-80gb",
            A100_80,
            _nvlink(3, 300),
            _nic("HDR 200 Gb/s per GPU", 25),
            cpu="amd",
            host=_A100_HOST,
        ),
        Hardware("dgx-h100", H100, _nvlink(4, 450), _nic("NDR 400 Gb/s per GPU", 50), host=_H100_HOST),
        Hardware("dgx-h200", H200, _nvlink(4, 450), _nic("NDR 400 Gb/s per GPU", 50), host=_H100_HOST),
        Hardware(
            "dgx-b200", B200, _nvlink(5, 900), _nic("EFAv4 / NDR 400 Gb/s per GPU", 50), host=_B200_HOST
        ),
        Hardware("dgx-b300", B300, _nvlink(5, 900), _nic("XDR 800 Gb/s per GPU", 100), host=_B300_HOST),
        Hardware(
            "gb200-nvl72", GB200, _nvlink(5, 900), _nic("NDR 400 Gb/s per GPU", 50), 72, host=_GRACE_HOST
        ),
        Hardware("hgx-h20", H20, _nvlink(4, 450), _nic("NDR 400 Gb/s per GPU", 50), host=_H20_HOST),
        Hardware("hgx-h800", H800, _nvlink(4, 200), _nic("NDR 400 Gb/s per GPU", 50), host=_H20_HOST),
        Hardware("mi300x", MI300X, _XGMI, _nic("400 Gb/s per GPU", 50), cpu="amd", host=_MI300X_HOST),
        Hardware(
            "pcie-a100",
            A100_PCIE,
            _pcie(4, 31),
            _nic("HDR 200 Gb/s per 8 GPUs", 3.125),
            nics=1,
            cpu="amd",
            host=_SERVER_HOST,
        ),
        Hardware(
            "pcie-4090",
            RTX_4090,
            _pcie(4, 31),
            _nic("100 Gb/s per 8 GPUs", 1.5625),
            nics=1,
            host=_SERVER_HOST,
        ),
        Hardware(
            "pcie-l40s",
            L40S,
            _pcie(4, 31),
            _nic("200 Gb/s per 8 GPUs", 3.125),
            nics=1,
            host=_SERVER_HOST,
        ),
    )
}


def hardware(name: str | Hardware) -> Hardware:
    """Look hardware up by name, or read it from a profile file.

    Args:
        name: a name of `CATALOGUE`, a path of a file that `Hardware.save` wrote, or a Hardware, which is
            returned as it is.

    Returns:
        The Hardware.

    Raises:
        InputError: for an unknown name (with the nearest known one), or a file that cannot be read.

    Example:
        >>> from glasscluster.sim.time.hardware import hardware
        >>> hardware("dgx-h100").gpu.peak("bf16")
        989000000000000.0
    """
    if isinstance(name, Hardware):
        return name
    if name in CATALOGUE:
        return CATALOGUE[name]
    path = Path(name)
    if path.suffix == ".json" or is_file(path):
        return _read_profile(path)
    raise InputError("hardware", name, "not in the catalogue and not a profile file", list(CATALOGUE))


def _read_profile(path: Path) -> Hardware:
    fields = profile.read(path)
    built: dict[str, Any] = {wire: Link(**fields[wire]) for wire in ("intra", "inter")}
    built["gpu"] = GPU(**fields["gpu"])
    host = fields.pop("host", None)
    if host is not None:
        built["host"] = HostShare(**host | {"link": Link(**host["link"])})
    if fields.get("topology") is not None:
        built["topology"] = from_data(fields["topology"], name=path.stem)
    return Hardware(**fields | built)


CATALOGUE.update((machine.name, machine) for machine in map(_read_profile, sorted(MACHINES.glob("*.json"))))
