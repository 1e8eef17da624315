"""E11: the layout puzzle: every legal (dp, tp, pp, ZeRO) of eight GPUs in two nodes; the best ones run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from glasscluster.base.rows import FAILED, Row
from glasscluster.scenarios.jobs.trained import Trained
from glasscluster.scenarios.jobs.training import counted_rows
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.figures.breakdown import series
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.plots import stack

GPUS, NODE, LAYERS = 8, 4, 4
ZEROS = (0, 1, 3)
Choice = tuple[int, int, int, int]  # dp, tp, pp, ZeRO stage


def legal(zeros: tuple[int, ...] = ZEROS) -> list[Choice]:
    """All (dp, tp, pp, zero) of eight GPUs with at least one layer a stage.

    Without data parallelism ZeRO has nothing to shard, so there stage 0 stands alone.
    """
    sizes = [
        (d, t, GPUS // (d * t))
        for d, t in product((8, 4, 2, 1), (1, 2, 4, 8))
        if d * t <= GPUS and GPUS // (d * t) <= LAYERS
    ]
    return [(*size, z) for size in sizes for z in (zeros if size[0] > 1 else (0,))]


def layout(dp: int, tp: int, pp: int, zero: int, batch: int, precision: str) -> dict[str, Any]:
    """A plan's options: two micro-batches a stage, one where there are no stages; sequence parallelism
    wherever there is tensor parallelism.
    """
    m = 2 * pp if pp > 1 else 1
    return {
        "dp": dp,
        "tp": tp,
        "pp": pp,
        "zero": zero,
        "global_batch": batch,
        "micro_batch": max(1, batch // (m * dp)),
        "precision": precision,
        "sequence_parallel": tp > 1,
        "schedule": "1f1b",
    }


@dataclass(frozen=True)
class Recorded:
    """One layout, recorded from shapes alone."""

    run: Any
    ms: float  # of a step
    gb: float  # at the peak of the fullest GPU
    states: int  # bytes of model states of all GPUs
    split: dict[str, float]  # seconds of the last GPU to finish
    rows: list[Row]  # what was counted, against its formula


@lesson(hardware="dgx-h100")
def layout_puzzle(lab: Lab, hidden: int = 1024, batch: int = 32, cap_gb: float = 0.6) -> None:
    """Every legal layout of a GPT on two nodes of four GPUs is recorded on shapes, counted and timed; the
    quickest and the slowest then really train.
    """
    machine = replace(hardware(lab.hardware), name=f"{lab.hardware}, nodes of {NODE}", node_size=NODE)
    model = make_model("tiny", layers=LAYERS, hidden=hidden, heads=16, seq=512, vocab=2048)
    recorded = {choice: record(machine, model, choice, batch) for choice in legal()}
    fits = {choice: each for choice, each in recorded.items() if each.gb <= cap_gb}
    order = sorted(fits, key=lambda choice: fits[choice].ms)
    best, worst = order[0], order[-1]
    ratio = fits[worst].ms / fits[best].ms
    expected = sum(len(ZEROS) if d > 1 else 1 for d, t, p in all_sizes() if p <= LAYERS)
    lab.row("legal_layouts", expected, len(recorded), "dp·tp·pp = 8, ZeRO where dp > 1", unit="layouts")
    rows = [row for each in recorded.values() for row in each.rows]
    wrong = sum(row.verdict == FAILED for row in rows)
    lab.row("wrong_rows", 0, wrong, "Eq 15, Eq 16, Eq 18, Eq 19, Eq 22 and 2m·bsh a hop", unit="rows")
    for zero in ZEROS:
        check_states(lab, recorded[8, 1, 1, zero], zero)
    small = make_model("tiny", layers=LAYERS, hidden=32, heads=8, seq=16)
    for key, choice in (("best", best), ("worst", worst)):
        lab.train(key, lab.text(f"title_{key}"), model=small, steps=2, **layout(*choice, 16, "fp32"))

    across = min(each.ms for (_, tp, _, _), each in recorded.items() if tp == GPUS)
    slower = sum(each.ms > across for each in recorded.values())
    lab.row("slower_than_crossing", 0, slower, "Eq 18, over the network and exposed", unit="layouts")
    chain: dict[str, Any] = {
        "best_ms": fits[best].ms,
        "busy_ms": sum(fits[worst].split[part] for part in ("compute", "optimizer")) * 1e3,
        "gb": max(fits[worst].run.graph.bytes_sent()) / 1e9,
        "gb_s": machine.inter.bandwidth / 1e9,
    }
    million = model.parameters() / 1e6
    lab.ask("ratio", ratio, parameters=million, NODE=NODE, worst=spelled(worst), **chain)
    lab.figure("every_layout", lambda _lang: every_layout(recorded, cap_gb), cap_gb=cap_gb)
    lab.figure("where_time_goes", lambda lang: where_time_goes(lab, fits, order, lang))
    lab.figure("sixty_four_gpus", lambda _lang: sixty_four_gpus())
    counts: dict[str, Any] = {
        "legal_ones": len(recorded),
        "fitting": len(fits),
        "rows_seen": len(rows),
        "wrong": wrong,
    }
    lab.tell("legal", view="tab=ledger", cap_gb=cap_gb, **counts)
    names: dict[str, Any] = {"best": spelled(best), "worst": spelled(worst)}
    times: dict[str, Any] = {"best_ms": fits[best].ms, "worst_ms": fits[worst].ms, "ratio": ratio}
    lab.tell("best_and_worst", view="tab=story", **names, **times)
    lab.tell("across_nodes", view="tab=story", across_ms=across)
    lab.tell("trained", view="tab=checks&run=best")
    lab.conclude(legal_ones=len(recorded), ratio=ratio, best=spelled(best))
    lab.explain()
    near = sum(each.ms <= 1.1 * fits[best].ms for each in fits.values())
    lab.card(legal_ones=len(recorded), near=near, across_ms=across, **chain)
    lab.own_number(best=spelled(best), ratio=ratio)


def all_sizes() -> list[tuple[int, int, int]]:
    """Every (dp, tp, pp) whose product is the number of GPUs, by enumeration."""
    return [(d, t, p) for d, t, p in product(range(1, GPUS + 1), repeat=3) if d * t * p == GPUS]


def record(machine: Any, model: Any, choice: Choice, batch: int) -> Recorded:
    """Record one step of a layout, without data."""
    plan = make_plan(**layout(*choice, batch, "bf16"))
    plan.check(model)
    job = Job(plan, model, steps=1)
    run = Cluster(machine, GPUS, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
    rows = [
        r for r in counted_rows(Trained(job, run, None)) if r.match == "exact" and r.predicted is not None
    ]
    peak = max(total for total, _ in run.peak_memory())
    states = sum(sum(rank.state_bytes.values()) for rank in run.results)
    line = run.timeline
    return Recorded(run, line.makespan * 1e3, peak / 1e9, states, line.breakdown(), rows)


def check_states(lab: Lab, recorded: Recorded, zero: int) -> None:
    """Check the model states of eight data-parallel GPUs."""
    padded = sum(size for _, _, size in recorded.run.results[0].units)
    of_parameters, of_gradients, of_optimizer = (GPUS if zero >= stage else 1 for stage in (3, 2, 1))
    each = 2 * padded / of_parameters + 2 * padded / of_gradients + 12 * padded / of_optimizer
    lab.row("model_states", GPUS * each, recorded.states, "Eq 15, each unit padded to N", zero=zero)


def spelled(choice: Choice) -> str:
    """A layout as text: dp 4 · tp 2 · pp 1 · ZeRO-1."""
    dp, tp, pp, zero = choice
    return f"dp {dp} · tp {tp} · pp {pp} · ZeRO-{zero}"


def every_layout(recorded: dict[Choice, Recorded], cap_gb: float) -> Any:
    """Draw time and memory of every layout; those that do not fit are grey."""
    sizes = sorted({choice[:3] for choice in recorded}, key=lambda size: (-size[0], size[1]))
    quickest = min(each.ms for each in recorded.values())

    def text(each: Recorded | None) -> str:
        return f"{each.ms:.1f} ms · {each.gb:.2f} GB{'' if each.gb <= cap_gb else ' ✗'}" if each else ""

    def fill(each: Recorded | None) -> str:
        if each is None:
            return "#ffffff"
        return "#d9d9d9" if each.gb > cap_gb else shade(min(1.0, (each.ms / quickest - 1) / 3))

    cells = [[recorded.get((*size, zero)) for zero in ZEROS] for size in sizes]
    labels = [f"dp {d} · tp {t} · pp {p}" for d, t, p in sizes]
    texts, fills = [[text(x) for x in row] for row in cells], [[fill(x) for x in row] for row in cells]
    return cells_figure([Table("", labels, [f"ZeRO-{zero}" for zero in ZEROS], texts, fills)])


def where_time_goes(lab: Lab, fits: dict[Choice, Recorded], order: list[Choice], lang: str) -> Any:
    """Draw the milliseconds of the last GPU to finish, part by part, from the fastest layout to the
    slowest.
    """
    shown = series([fits[choice].split for choice in order], lang, 1e3)
    names = [f"{d}·{t}·{p} Z{zero}" for d, t, p, zero in order]
    return stack(names, shown, lab.word("layouts", lang), lab.word("milliseconds", lang))


def sixty_four_gpus() -> Any:
    """Draw GB of model states a GPU by Eq 15: 13 billion parameters on 64 GPUs of 80 GB."""
    sizes = [
        (d, t, 64 // (d * t))
        for t, d in product((1, 2, 4, 8), (64, 16, 8, 4, 2))
        if d * t <= 64 and 64 // (d * t) <= 8
    ]
    giga = [
        [sum(predict_state(zero, round(13e9 / (t * p)), d, 2, 2, 12).values()) / 1e9 for zero in ZEROS]
        for d, t, p in sizes
    ]
    labels = [f"dp {d} · tp {t} · pp {p}" for d, t, p in sizes]
    text = [[f"{gb:.3g}" for gb in row] for row in giga]
    fill = [["#d9d9d9" if gb > 80 else shade(gb / 160) for gb in row] for row in giga]
    return cells_figure([Table("", labels, [f"ZeRO-{zero}" for zero in ZEROS], text, fill)])
