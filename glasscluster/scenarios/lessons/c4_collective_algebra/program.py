"""C4: what collectives are made of, and what can be made of them: an all-reduce, a transpose, a ZeRO step."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.collectives import MODULES
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.cells import blocks_figure
from glasscluster.visualize.figures.plots import bars

RATE = 0.25  # a power of two: with whole-number data every result is exact
PICTURED = 4  # ranks of the block pictures
TITLES = {
    "all-reduce": ("All-reduce", "all-reduce"),
    "halves": ("Reduce-scatter, then all-gather", "先 reduce-scatter 再 all-gather"),
    "scatter": ("Reduce-scatter alone", "单独的 reduce-scatter"),
    "root": ("Reduce to rank 0, then scatter", "归约到 rank 0 再散发"),
    "transpose": ("Transpose by all-to-all", "用 all-to-all 转置"),
    "zero": ("A ZeRO step", "一步 ZeRO"),
}


def whole(rank: int, elements: int) -> Any:
    """A buffer of small whole numbers, another on every rank."""

    return ((torch.arange(elements) * 7 + rank * 5) % 11 - 5).float()


def program(gpu: Any, what: str, block: int) -> Any:
    """One composition on N·block² elements; returns what this rank ends with. Only messages are recorded."""

    comm, n = gpu.comm, gpu.size
    with gpu.unrecorded():
        x, w = whole(gpu.rank, n * block * block), whole(n, n * block * block)
        columns = (
            x.view(block, n, block).permute(1, 2, 0).contiguous()
        )  # of a row of blocks, each block transposed
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
        rows = out.permute(1, 0, 2).reshape(block, -1)  # of the transposed matrix
        return {"all-reduce": x, "halves": x, "transpose": rows, "zero": w}.get(what, comm.chunk(x)).clone()


def digits(gpu: Any) -> list[Any]:
    """The same collectives on numbers in which digit k is chunk + 1 where rank k has contributed."""

    n, mine = gpu.size, torch.arange(gpu.size) == gpu.rank
    start = torch.arange(1, n + 1) * 10**gpu.rank
    alone = torch.where(mine, start, 0)
    scattered, gathered, reduced, out = start.clone(), alone.clone(), start.clone(), torch.zeros_like(start)
    gpu.comm.reduce_scatter(scattered)
    gpu.comm.all_gather(gathered)
    gpu.comm.all_reduce(reduced)
    gpu.comm.all_to_all(start, out)
    stages = [
        start,
        torch.where(mine, scattered, 0),
        reduced,
        alone,
        gathered,
        out,
    ]  # reduce-scatter leaves scratch in other chunks
    return [
        [[(r, int(d) - 1) for r, d in enumerate(str(v)[::-1]) if d != "0"] for v in stage.tolist()]
        for stage in stages
    ]


@lesson
def collective_algebra(lab: Lab, gpus: int = 8, block: int = 200) -> None:
    """Six compositions of collectives run on whole-number data, where equal means equal in every bit."""

    runs = {what: lab.run(what, title, program, what, block, gpus=gpus) for what, title in TITLES.items()}
    got, sent = (
        {what: torch.stack(run.results) for what, run in runs.items()},
        {what: run.graph.bytes_sent() for what, run in runs.items()},
    )
    size, link = 4 * gpus * block * block, hardware(lab.hardware).link(0, 1)
    matrix = torch.cat([whole(r, gpus * block * block).view(block, -1) for r in range(gpus)])
    pairs = {
        "all-reduce and its two halves": (got["all-reduce"], got["halves"]),
        "reduce-scatter and a detour over rank 0": (got["scatter"], got["root"]),
        "all-to-all and torch's transpose": (got["transpose"].view(-1, gpus * block), matrix.T),
        "ZeRO step and full update": (
            got["zero"],
            whole(gpus, gpus * block * block) - RATE * got["all-reduce"],
        ),
    }
    for pair, (one, other) in pairs.items():
        lab.row("elements_differ", 0, int((one != other).sum()), "definition", unit="elements", pair=pair)
    half = {
        "reduce-scatter": sent["scatter"],
        "all-gather": [a - b for a, b in zip(sent["halves"], sent["scatter"], strict=True)],
        "all-to-all": sent["transpose"],
    }
    whole_ones = {
        "all-reduce": sent["all-reduce"],
        "reduce-scatter and all-gather": sent["halves"],
        "a ZeRO step": sent["zero"],
    }
    for parts, each in ((1, half), (2, whole_ones)):
        for what, by_rank in each.items():
            lab.row("sent_rank", parts * (gpus - 1) * size // gpus, by_rank[0], "F10", what=what)
            lab.row(
                "ranks_sent_something_else",
                0,
                sum(b != by_rank[0] for b in by_rank),
                "F10",
                unit="ranks",
                what=what,
            )
    port = {
        what: [int(g.bytes[(g.rank == r) & (g.peer >= 0)].sum()) for r in range(gpus)]
        for what in ("scatter", "root")
        for g in [runs[what].graph]
    }
    lab.row(
        "received_rank_detour",
        (gpus - 1).bit_length() * size,
        port["root"][0] - sent["root"][0],
        "binomial tree",
    )
    spent = {what: run.timeline.makespan for what, run in runs.items()}
    added = size / hardware(lab.hardware).gpu.reduce_rate  # additions, where they take time
    for what, name, algorithm, adds in (
        ("scatter", "a ring's reduce-scatter", "ring", (gpus - 1) / gpus),
        ("root", "the detour over rank 0", "tree", (gpus - 1).bit_length()),
    ):
        seconds = MODULES[algorithm].predict("reduce_scatter", gpus, size, link).time_s
        lab.row(
            "time",
            seconds and seconds + adds * added,
            None,
            "F8, F10",
            simulated=spent[what],
            unit="s",
            match="virtual",
            tolerance=1e-9,
            name=name,
        )
    ratio = spent["root"] / spent["scatter"]
    lab.ask("number", ratio, "×", gpus=gpus, size=size)
    seen = lab.cluster(PICTURED).run(digits).results
    lab.figure(
        "who_block_letter_rank",
        lambda lang: blocks_figure(
            (
                lab.word("before", lang),
                lab.word("after_reduce_scatter", lang),
                lab.word("after_all_reduce", lang),
                lab.word("before_all_gather", lang),
                lab.word("after_all_gather", lang),
                lab.word("after_all_all", lang),
            ),
            [list(table) for table in zip(*seen, strict=True)],
            lab.word("chunk", lang),
            "rank",
        ),
    )
    lab.figure(
        "reduce_scatter_two_ways",
        lambda lang: bars(
            [f"rank {r}" for r in range(gpus)],
            {ways[lang][k]: [b / size for b in port[w]] for k, w in enumerate(port)},
            lab.word("through_port", lang),
        ),
    )
    a, b, c = sent["all-reduce"][0], half["reduce-scatter"][0], half["all-gather"][0]
    lab.tell("all_reduce_sends_bytes", view="tab=network&run=halves", a=a, b=b, c=c)
    lab.tell("optimizer_between_halves_zero", view="tab=timeline&run=zero", zero=sent["zero"][0])
    lab.tell(
        "all_all_transposes_matrix",
        view="tab=network&run=transpose",
        elements=gpus * block,
        transpose=sent["transpose"][0],
    )
    lab.tell(
        "over_rank_reduce_scatter",
        view="tab=timeline&run=root",
        root_us=spent["root"] * 1000000.0,
        scatter_us=spent["scatter"] * 1000000.0,
        root_port=port["root"][0] / size,
        scatter_port=port["scatter"][0] / size,
    )
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.own_number(ratio=ratio, gpus=gpus)
