"""C4: what collectives are made of, and what can be made of them: an all-reduce, a transpose, a ZeRO step."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import THEORY
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.cells import blocks_figure
from glasscluster.visualize.figures.plots import bars

RATE = 0.25  # a power of two: with whole-number data every result is exact
PICTURED = 4  # ranks of the block pictures
WHAT = ("all-reduce", "halves", "scatter", "root", "transpose", "zero")


def whole(rank: int, elements: int) -> Any:
    """A buffer of small whole numbers, different on every rank."""

    return ((torch.arange(elements) * 7 + rank * 5) % 11 - 5).float()


def program(gpu: Any, what: str, block: int) -> Any:
    """Run one composition on N·block² elements; return this rank's result. Only messages are recorded."""

    comm, n = gpu.comm, gpu.size
    with gpu.unrecorded():
        x, w = whole(gpu.rank, n * block * block), whole(n, n * block * block)
        # each block of a row of blocks, transposed
        columns = x.view(block, n, block).permute(1, 2, 0).contiguous()
        out = torch.zeros_like(columns)
    if what == "all-reduce":
        comm.all_reduce(x, algorithm="ring")
    elif what == "root":
        comm.reduce(x, dst=0, algorithm="tree")
        comm.scatter(x, src=0, algorithm="tree")
    elif what == "transpose":
        comm.all_to_all(columns, out)
    else:
        comm.reduce_scatter(x, algorithm="ring")
        with gpu.unrecorded():  # ZeRO: each rank updates its shard with its chunk of the summed gradient
            comm.chunk(w).sub_(RATE * comm.chunk(x))
        if what != "scatter":
            comm.all_gather(x if what == "halves" else w, algorithm="ring")
    with gpu.unrecorded():
        rows = out.permute(1, 0, 2).reshape(block, -1)  # rows of the transposed matrix
        return {"all-reduce": x, "halves": x, "transpose": rows, "zero": w}.get(what, comm.chunk(x)).clone()


def digits(gpu: Any) -> list[Any]:
    """Run the same collectives on numbers whose digit k is chunk + 1 where rank k has contributed.

    Returns this rank's contributions to every chunk, before and after each collective.
    """

    n, mine = gpu.size, torch.arange(gpu.size) == gpu.rank
    start = torch.arange(1, n + 1) * 10**gpu.rank
    alone = torch.where(mine, start, 0)
    scattered, gathered, reduced, out = start.clone(), alone.clone(), start.clone(), torch.zeros_like(start)
    gpu.comm.reduce_scatter(scattered)
    gpu.comm.all_gather(gathered)
    gpu.comm.all_reduce(reduced)
    gpu.comm.all_to_all(start, out)
    scattered = torch.where(mine, scattered, 0)  # reduce-scatter leaves scratch in other chunks
    stages = [start, scattered, reduced, alone, gathered, out]
    return [[contributions(value) for value in stage.tolist()] for stage in stages]


def contributions(value: int) -> list[tuple[int, int]]:
    """The (rank, chunk) of every rank that has contributed to a number."""
    return [(rank, int(digit) - 1) for rank, digit in enumerate(str(value)[::-1]) if digit != "0"]


@lesson
def collective_algebra(lab: Lab, gpus: int = 8, block: int = 200) -> None:
    """Six compositions of collectives run on whole-number data, where equal means equal in every bit."""
    runs = {what: lab.run(what, lab.text(f"title_{what}"), program, what, block, gpus=gpus) for what in WHAT}
    sent = {what: run.graph.bytes_sent() for what, run in runs.items()}
    size = 4 * gpus * block * block
    gathered = [a - b for a, b in zip(sent["halves"], sent["scatter"], strict=True)]
    check_results(lab, {what: torch.stack(run.results) for what, run in runs.items()}, gpus, block)
    halves = {"reduce-scatter": sent["scatter"], "all-gather": gathered, "all-to-all": sent["transpose"]}
    wholes = {"all-reduce": sent["all-reduce"], "both_halves": sent["halves"], "zero_step": sent["zero"]}
    for parts, each in ((1, halves), (2, wholes)):
        for what, by_rank in each.items():
            expected, name = parts * (gpus - 1) * size // gpus, lab.text(what)
            lab.row("sent_by_each_rank", expected, by_rank[0], "Eq 10", what=name)
            others = sum(b != by_rank[0] for b in by_rank)
            lab.row("ranks_that_sent_something_else", 0, others, "Eq 10", unit="ranks", what=name)
    port = {what: through_port(runs[what].graph) for what in ("scatter", "root")}
    doublings = (gpus - 1).bit_length()
    received = port["root"][0] - sent["root"][0]
    lab.row("received_on_the_detour", doublings * size, received, "binomial tree")
    spent = {what: run.timeline.makespan for what, run in runs.items()}
    check_time(lab, "name_ring", "ring", (gpus - 1) / gpus, spent["scatter"], gpus, size)
    check_time(lab, "name_detour", "tree", doublings, spent["root"], gpus, size)

    ratio = spent["root"] / spent["scatter"]
    link = hardware(lab.hardware).link(0, 1)
    wire: dict[str, Any] = {"alpha_us": link.alpha * 1e6, "beta_gb": link.bandwidth / 1e9}
    lab.ask("ratio", ratio, gpus=gpus, size=size, **wire)
    seen = lab.cluster(PICTURED).run(digits).results
    lab.figure("who_is_where", lambda lang: who_is_where(lab, seen, lang))

    def two_ways(lang: str) -> Any:
        series = {lab.word(way, lang): [b / size for b in port[way]] for way in port}
        return bars([f"rank {r}" for r in range(gpus)], series, lab.word("through_port", lang))

    lab.figure("two_ways", two_ways)
    lab.tell(
        "halves", view="tab=network&run=halves", a=sent["all-reduce"][0], b=sent["scatter"][0], c=gathered[0]
    )
    lab.tell("zero", view="tab=timeline&run=zero", zero=sent["zero"][0])
    elements = gpus * block
    lab.tell("transpose", view="tab=network&run=transpose", elements=elements, transpose=sent["transpose"][0])
    times: dict[str, Any] = {f"{what}_us": spent[what] * 1e6 for what in port}
    ports: dict[str, Any] = {f"{what}_port": by_rank[0] / size for what, by_rank in port.items()}
    lab.tell("over_rank_0", view="tab=timeline&run=root", **times, **ports)
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.own_number(ratio=ratio, gpus=gpus, **ports)


def check_results(lab: Lab, results: dict[str, Any], gpus: int, block: int) -> None:
    """Check the results of the compositions, element by element."""
    count = gpus * block * block
    matrix = torch.cat([whole(r, count).view(block, -1) for r in range(gpus)])
    updated = whole(gpus, count) - RATE * results["all-reduce"]
    pairs = {
        "pair_halves": (results["all-reduce"], results["halves"]),
        "pair_detour": (results["scatter"], results["root"]),
        "pair_transpose": (results["transpose"].view(-1, gpus * block), matrix.T),
        "pair_zero": (results["zero"], updated),
    }
    for pair, (one, other) in pairs.items():
        differ = int((one != other).sum())
        lab.row("elements_that_differ", 0, differ, "definition", unit="elements", pair=lab.text(pair))


def check_time(
    lab: Lab, name: str, algorithm: str, sums: float, simulated: float, gpus: int, size: int
) -> None:
    """Check the seconds of a reduce-scatter by an algorithm that adds `sums` whole buffers one after the
    other.
    """
    machine = hardware(lab.hardware)
    wires = THEORY[algorithm]("reduce_scatter", gpus, size, machine.link(0, 1)).time_s
    seconds = wires and wires + sums * size / machine.gpu.reduce_rate
    virtual: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    lab.row("time", seconds, None, "Eq 8, Eq 10", simulated=simulated, **virtual, name=lab.text(name))


def through_port(graph: Any) -> list[int]:
    """The bytes that each rank sends and receives."""
    return [int(graph.bytes[(graph.rank == r) & (graph.peer >= 0)].sum()) for r in range(graph.ranks)]


def who_is_where(lab: Lab, seen: list[Any], lang: str) -> Any:
    """Draw every rank's blocks before and after each collective."""
    moments = ["before", "after_reduce_scatter", "after_all_reduce"]
    moments += ("before_all_gather", "after_all_gather", "after_all_to_all")
    titles = tuple(lab.word(moment, lang) for moment in moments)
    tables = [list(table) for table in zip(*seen, strict=True)]
    return blocks_figure(titles, tables, lab.word("chunk", lang), "rank")
