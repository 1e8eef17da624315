"""C3: ring all-reduce, message by message."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.visualize.figures.plots import lines, messages

SWEEP = (2, 3, 4, 6, 8)  # rank counts; the buffer of the sweep is cut evenly by all of them
SWEEP_ELEMENTS = 24 * 10_000


def program(gpu: Any, elements: int, members: int) -> float:
    """Sum a vector over the first `members` ranks with our ring."""
    group = gpu.comm if members == gpu.size else gpu.comm.split(int(gpu.rank < members))
    x = torch.full((elements,), float(gpu.rank))
    if gpu.rank < members:
        group.all_reduce(x, algorithm="ring")
    return float(x[0])


@lesson
def ring_all_reduce(lab: Lab, gpus: int = 8, elements: int = 800_000) -> None:
    """The ring that trains the models sums one vector; every message is drawn."""
    elements -= elements % gpus
    size = 4 * elements
    run = lab.run("ring", lab.text("ring"), program, elements, gpus, gpus=gpus)
    sent = run.graph.bytes_sent()
    ratio = sent[0] / size
    lab.ask("bytes_sent", ratio, gpus=gpus)

    lab.row("sent_by_every_rank", 2 * (gpus - 1) * size // gpus, sent[0], "Eq 9")
    others = sum(s != sent[0] for s in sent)
    lab.row("ranks_that_sent_something_else", 0, others, "Eq 9", unit="ranks")
    wrong = sum(result != sum(range(gpus)) for result in run.results)
    lab.row("ranks_with_a_wrong_sum", 0, wrong, "definition", unit="ranks")
    lab.row(
        "time",
        ring_seconds(lab.hardware, gpus, size),
        None,
        "Eq 8",
        simulated=moving(run.timeline),
        unit="s",
        match="virtual",
        tolerance=1e-9,
        hardware=lab.hardware,
    )

    counts = [n for n in SWEEP if n <= gpus]
    volumes, chains = zip(*(over_some_ranks(lab, gpus, n) for n in counts), strict=True)

    def growth(lang: str) -> Any:
        series = {
            lab.word("sent_per_gpu", lang): (counts, volumes),
            lab.word("steps", lang): (counts, [steps / 10 for steps in chains]),
        }
        return lines(series, lab.word("gpus", lang), "")

    lab.figure("every_message", lambda lang: messages(run.timeline, lang))
    lab.figure("what_grows_with_n", growth)

    steps, took = run.graph.message_chain(), moving(run.timeline)
    lab.tell("every_rank_sent", view="tab=network", sent=sent[0], size=size, ratio=ratio, steps=steps)
    growths: dict[str, Any] = {"fewest": counts[0], "least": volumes[0], "fewest_steps": chains[0]}
    growths |= {"most": counts[-1], "largest": volumes[-1], "most_steps": chains[-1]}
    lab.tell("growth", **growths)
    latency = steps * hardware(lab.hardware).link(0, 1).alpha / took
    lab.tell(
        "time", view="tab=timeline", hardware=lab.hardware, took_us=took * 1e6, steps=steps, latency=latency
    )
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.card(**growths)
    lab.own_number(ratio=ratio, gpus=gpus)


def ring_seconds(machine: str, n: int, size: int) -> float:
    """The seconds of Eq 8 with the additions: 2(N−1) messages of S/N bytes, and N−1 times S/N bytes to
    add.
    """
    link, add_rate = hardware(machine).link(0, 1), hardware(machine).gpu.reduce_rate
    return 2 * (n - 1) * (link.alpha + size / n / link.bandwidth) + (n - 1) * size / n / add_rate


def moving(timeline: Any) -> float:
    """The seconds from the launch of the all-reduce to its end on the last rank."""
    works = timeline.communications()
    return max(w["end"] for w in works) - max(w["launched"] for w in works)


def over_some_ranks(lab: Lab, gpus: int, members: int) -> tuple[float, int]:
    """Sum a vector over the first `members` ranks, and check what that takes.

    Returns the bytes that a rank sends, over the vector's bytes, and the steps.
    """
    graph = lab.cluster(gpus).run(program, SWEEP_ELEMENTS, members).graph
    size, sent, steps = 4 * SWEEP_ELEMENTS, max(graph.bytes_sent()), graph.message_chain()
    lab.row("sent_over_n", 2 * (members - 1) * size // members, sent, "Eq 9", n=members)
    lab.row("steps_over_n", 2 * (members - 1), steps, "Eq 8", unit="steps", n=members)
    return sent / size, steps
