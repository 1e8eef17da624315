"""A8: what a source's weight does, and how ranks resume reading without losing a row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from glasscluster.model.text.mixture import Mixture, read
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.plots import bars


def read_on(gpu: Any, order: Any, consumed: int, batch: int, steps: int) -> list[list[Any]]:
    """Read a data-parallel rank's samples, step by step, from the one saved number of consumed rows.

    All ranks sum how much they read of each source. Returns the rank's samples of each step.
    """

    comm, shares = gpu.make_mesh({"dp": gpu.size})["dp"], []
    for step in range(steps):
        gpu.start_step()
        with gpu.unrecorded():
            share = order.share(consumed + step * batch, batch, comm.rank, comm.size)
            counts = torch.tensor([float(sum(s.source == i for s in share)) for i in range(len(order.sizes))])
        comm.all_reduce(counts, purpose="scalars", label="rows read of each source")
        shares.append(share)
    return shares


NAMES = ("python", "english", "chinese")
WEIGHTS = (0.7, 0.2, 0.1)


def own_places(ranks: int, others: int, place: int) -> tuple[int, int]:
    """Count the faults if rank r of R read numbers r, r + R, r + 2R, ..., saved how many it had read, and a
    different number of ranks resumed there.

    Args:
        ranks: before the stop.
        others: ranks that go on.
        place: rows that each rank has read.

    Returns:
        How many numbers would be read twice, and how many never.
    """
    before = {n * ranks + rank for rank in range(ranks) for n in range(place)}
    start = place * others  # rank r of the others goes on with its own `place`-th number
    return len(before & set(range(start, start + len(before)))), len(set(range(start)) - before)


@lesson
def data_mix(lab: Lab, ranks: int = 4, others: int = 3, stopped: int = 3, seq: int = 128) -> None:
    """Four ranks read three real sources by weight until the smallest has come nine times; a second reading
    is stopped and goes on with fewer ranks.
    """
    mixture = Mixture(tuple(zip(NAMES, WEIGHTS, strict=True)), block=100)
    order = read(mixture, seq).sampler(lab.seed)
    total = round(9 * order.sizes[2] / WEIGHTS[2] / order.block) * order.block
    batch = ranks * others
    model = make_model("tiny", layers=1, hidden=32, seq=seq)
    trained = lab.train(
        "mixed", lab.text("mixed"), model=model, steps=1, dp=ranks, global_batch=batch, data=mixture
    )
    before = lab.run("before", lab.text("before", ranks=ranks), read_on, order, 0, batch, stopped, gpus=ranks)
    read_so_far = stopped * batch
    reading = (read_on, order, read_so_far, batch, stopped)
    after = lab.run("after", lab.text("after", others=others), *reading, gpus=others)
    long = lab.cluster(ranks).run(read_on, order, 0, total // 20, 20, record=False)
    if not lab.leader:
        return
    for entry in lab.entries:
        entry.compared = False  # a training step and two readings: bars side by side would compare nothing

    counted = check_epochs(lab, order, samples(long), total)
    check_the_stop(lab, order, samples(before) + samples(after), ranks, others)
    epochs = [many / size for many, size in zip(counted, order.sizes, strict=True)]
    share = [size / sum(order.sizes) for size in order.sizes]
    rows: dict[str, Any] = dict(zip(NAMES, order.sizes, strict=True))
    lab.ask("epochs", max(epochs), total=total, **rows)
    figures_of_sources(lab, order, epochs, counted, total)
    lab.figure("who_reads_which", lambda lang: who_reads_which(lab, before, after, batch, lang))

    read_by_source: dict[str, Any] = {
        f"epochs_{name}": epoch for name, epoch in zip(NAMES, epochs, strict=True)
    }
    lab.tell("python", share=share[0], total=total, epochs_python=epochs[0])
    lab.tell("small_sources", epochs_english=epochs[1], epochs_chinese=epochs[2])
    sizes: dict[str, Any] = {"ranks": ranks, "others": others}
    lab.tell("stopped", view="tab=ledger", stopped=stopped, **sizes, read=read_so_far)
    places = check_own_places(lab, ranks, others, batch // ranks * stopped)
    resumed = {f"resume_{what}": places["place"] * n for what, n in (("fewer", others), ("more", 2 * ranks))}
    lab.tell("own_places", **places, **resumed, batch=batch, ranks=ranks, last=read_so_far - 1)
    loss = float(trained.run.results[-1].losses[0])
    lab.tell("first_step", view="tab=checks&run=mixed", ranks=ranks, loss=loss)
    lab.conclude(**read_by_source, **sizes)
    lab.explain()
    lab.card(**places, ranks=ranks, block=order.block)
    lab.own_number(**read_by_source)


def samples(run: Any) -> list[Any]:
    """All samples that a run read: step by step, and rank by rank within a step."""
    return [sample for step in zip(*run.results, strict=True) for share in step for sample in share]


def check_epochs(lab: Lab, order: Any, rows: list[Any], total: int) -> list[int]:
    """Check how often each source was read, against Eq 40; returns the rows read of each source."""
    counted = [sum(sample.source == i for sample in rows) for i in range(len(NAMES))]
    for name, weight, size, many in zip(NAMES, WEIGHTS, order.sizes, counted, strict=True):
        blanks: dict[str, Any] = {"name": lab.text(f"name_{name}"), "total": total}
        expected = weight * total / size
        lab.row("epochs_of_a_source", expected, many / size, "Eq 40", unit="epochs", tolerance=1e-9, **blanks)
    twice = sum(n - 1 for n in Counter(rows).values())
    lab.row("twice_in_an_epoch", 0, twice, "an epoch is a permutation", unit="rows")
    return counted


def check_the_stop(lab: Lab, order: Any, rows: list[Any], ranks: int, others: int) -> None:
    """Check the samples read before and after the stop against the same numbers read without one."""
    wanted = [order.sample(n) for n in range(len(rows))]
    missing, twice = Counter(wanted) - Counter(rows), Counter(rows) - Counter(wanted)
    sizes: dict[str, Any] = {"ranks": ranks, "others": others}
    lab.row("lost", 0, missing.total(), "state: one number", unit="rows", **sizes)
    lab.row("read_twice", 0, twice.total(), "state: one number", unit="rows", **sizes)
    different = sum(a != b for a, b in zip(rows, wanted, strict=True))
    lab.row("other_rows", 0, different, "the n-th row is a function of n", unit="rows", others=others)


def check_own_places(lab: Lab, ranks: int, others: int, place: int) -> dict[str, Any]:
    """Check what would be read twice or never if ranks saved places of their own; returns these numbers."""
    workers = 2 * ranks
    repeated, skipped = own_places(ranks, others, place)[0], own_places(ranks, workers, place)[1]
    source, twice = "rank r of R reads r, r + R, r + 2R, ...", place * max(0, ranks - others)
    sizes: dict[str, Any] = {"unit": "rows", "ranks": ranks}
    lab.row("own_places_twice", twice, repeated, source, others=others, **sizes)
    lab.row("own_places_never", place * (workers - ranks), skipped, source, others=workers, **sizes)
    return {"repeated": repeated, "skipped": skipped, "workers": workers, "place": place, "others": others}


def figures_of_sources(lab: Lab, order: Any, epochs: list[float], counted: list[int], total: int) -> None:
    """Draw the epochs of each source, and its share of the text beside its share of the samples."""
    expected = [weight * total / size for weight, size in zip(WEIGHTS, order.sizes, strict=True)]

    def names(lang: str) -> list[str]:
        return [lab.word(name, lang) for name in NAMES]

    def by_source(lang: str) -> Any:
        series = {lab.word("f40", lang): expected, lab.word("counted", lang): epochs}
        figure = bars(names(lang), series, lab.word("epochs", lang))
        return figure.add_hline(y=4, line={"color": "#000000", "dash": "dash", "width": 2})

    def shares(lang: str) -> Any:
        series = {
            lab.word("share_text", lang): [100 * size / sum(order.sizes) for size in order.sizes],
            lab.word("share_read", lang): [100 * count / total for count in counted],
        }
        return bars(names(lang), series, lab.word("share", lang))

    lab.figure("epochs_by_source", by_source, total=total)
    lab.figure("weight_not_size", shares)


def who_reads_which(lab: Lab, before: Any, after: Any, batch: int, lang: str) -> Any:
    """Draw a row for each rank: the numbers of the samples that it reads, coloured by source."""
    stopped = len(before.results[0])
    title_before = lab.word("table_before", lang, ranks=len(before.results), stopped=stopped)
    title_after = lab.word("table_after", lang, others=len(after.results), read=stopped * batch)
    tables = []
    for title, run, first in ((title_before, before, 0), (title_after, after, stopped)):
        each = batch // len(run.results)
        text, fill = [], []
        for rank, shares in enumerate(run.results):
            read_here = [sample for share in shares for sample in share]
            numbers = [
                (first + step) * batch + rank * each + i for step in range(stopped) for i in range(each)
            ]
            text.append(["PEC"[s.source] + str(n) for n, s in zip(numbers, read_here, strict=True)])
            fill.append([SERIES[s.source] for s in read_here])
        ranks = [f"{lab.word('rank', lang)} {rank}" for rank in range(len(run.results))]
        columns = [str(first + step) if i == 0 else "" for step in range(stopped) for i in range(each)]
        tables.append(Table(title, ranks, columns, text, fill, x=lab.word("step", lang)))
    return cells_figure(tables)
