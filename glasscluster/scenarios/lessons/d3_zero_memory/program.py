"""D3: what each ZeRO stage leaves on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.memory import StateBook, memory_by_strategy
from glasscluster.visualize.figures.plots import bars

STAGES = range(4)
BILLIONS, MANY = 7.5, 64  # parameters and GPUs of the question
KINDS = ("parameters", "gradients", "optimizer")
# GB of 7.5 billion parameters as the paper prints them: GPUs -> stages 1, 2, 3, each with its digits after
# the point
TABLE_1 = {
    4: ((52.5, 1), (41.3, 1), (30.0, 0)),
    16: ((35.6, 1), (21.6, 1), (7.5, 1)),
    64: ((31.4, 1), (16.6, 1), (1.88, 2)),
}
WAYS: dict[str, dict[str, str]] = {
    "plain": {},
    "recompute": {"recompute": "full"},
    "offload": {"offload": "optimizer"},
    "both": {"recompute": "full", "offload": "optimizer"},
}


@lesson
def zero_memory(lab: Lab, gpus: int = 4, hidden: int = 64) -> None:
    """The same bf16 training at stages 0 to 3; every rank's live tensors are counted before the optimizer
    step.
    """
    model = make_model("tiny", hidden=hidden, seq=64)
    plan: dict[str, Any] = {"model": model, "dp": gpus, "precision": "bf16", "global_batch": 2 * gpus}
    lab.figure("table_1", lambda lang: table_1(lab, lang))
    sent = []  # bytes of gradients and parameters that all ranks sent, at every stage
    each = []  # bytes a parameter of a rank, by kind, at every stage
    for stage in STAGES:
        title = lab.text("stage", stage=stage) if stage else lab.text("data_parallel")
        trained = lab.train(f"zero{stage}", title, steps=1, checked=stage == 3, zero=stage, **plan)
        rank = trained.run.results[0]
        padded = sum(size for _, _, size in rank.units)
        of_gradients, of_parameters, of_optimizer = (gpus if stage >= s else 1 for s in (2, 3, 1))
        expected = 2 * padded / of_parameters + 2 * padded / of_gradients + 12 * padded / of_optimizer
        counted, source = sum(rank.state_bytes.values()), "Eq 15, each unit padded to N"
        lab.row("states_of_a_rank", expected, counted, source, stage=stage)
        purposes = ("gradients", "parameters")
        sent.append(sum(sum(trained.run.graph.bytes_sent(axis="dp", purpose=what)) for what in purposes))
        each.append({kind: nbytes / model.parameters() for kind, nbytes in rank.state_bytes.items()})
    totals = [sum(kinds.values()) for kinds in each]
    check_table_1(lab, gpus, totals)
    widths = {f"of_{kind}": each[0][kind] for kind in KINDS}
    paper: dict[str, Any] = {
        "many": MANY,
        "billions": BILLIONS,
        "billions_zh": round(10 * BILLIONS),
        **widths,
    }
    gigabytes = check_scaled(lab, each[0])
    lab.ask("gigabytes", gigabytes["gb_2"], **paper)
    m = make_plan(**{k: v for k, v in plan.items() if k != "model"}).micro_batches
    traffic = sent[3] / sent[0]
    lab.row("traffic", 3 * m / 2, traffic, "Eq 16: padding aside", unit="", tolerance=1e-3, m=m)

    books = {
        (stage, way): book(lab, zero=stage, **more, **plan) for stage in STAGES for way, more in WAYS.items()
    }
    figures(lab, each, books, gpus)
    left = books[3, "plain"]
    beside = sum(left.more.values()) / model.parameters()
    shown = listed(f"{total:.3g}" for total in totals)
    lab.tell("counted", view="tab=memory&run=zero3", by_stage=shown, gpus=gpus)
    lab.tell("scaled", **paper, **gigabytes)
    lab.tell("beside", view="tab=memory&run=zero3", beside=beside, states=totals[3])
    lab.conclude(whole=totals[0], stage_3=totals[3], gpus=gpus, **paper, **gigabytes)
    lab.explain(sharded=widths["of_gradients"] + widths["of_optimizer"], gpus=gpus, **paper, **gigabytes)
    layers = next(int(row.counted) for row in trained.checks if row.key == "layers_whole")
    lab.card(whole=totals[0], each=widths["of_optimizer"] / 3, layers=layers, **paper, **gigabytes)
    lab.card(beside=beside, traffic=traffic, m=m)
    lab.own_number(stage_2=totals[2], gpus=gpus)


def figures(lab: Lab, each: list[dict[str, float]], books: dict[Any, StateBook], gpus: int) -> None:
    """Draw the bytes a parameter by kind and stage, and what lives at the peak of each stage."""

    def by_kind(lang: str) -> Any:
        series = {lab.word(kind, lang): [kinds[kind] for kinds in each] for kind in KINDS}
        names = [lab.word("stage", lang, stage=stage) for stage in STAGES]
        return bars(names, series, lab.word("bytes_a_parameter", lang), stack=True)

    def peaks(lang: str) -> Any:
        named = [
            replace(book, name=lab.word("stage", lang, stage=stage) + lab.word(way, lang))
            for (stage, way), book in books.items()
        ]
        return memory_by_strategy(named, lang)

    lab.figure("by_kind", by_kind, gpus=gpus)
    lab.figure("peak", peaks)


def table_1(lab: Lab, lang: str) -> Any:
    """The paper's table from the formula: GB of 7.5 billion parameters by stage and number of GPUs."""
    sizes = (1, 4, 16, 64, 256, 1024)
    rows = [[sum(predict_state(s, 7_500_000_000, n, 2, 2, 12).values()) / 1e9 for n in sizes] for s in STAGES]
    text = [[f"{gb:.3g}" for gb in row] for row in rows]
    fill = [[shade(gb / 120) for gb in row] for row in rows]
    names = [lab.word("stage", lang, stage=stage) for stage in STAGES]
    return cells_figure([Table("", names, [str(n) for n in sizes], text, fill, x=lab.word("gpus", lang))])


def check_scaled(lab: Lab, widths: dict[str, float]) -> dict[str, Any]:
    """Check the paper's GB on 64 GPUs against the bytes a parameter counted by kind without sharding.

    Returns the GB of each stage.
    """
    gigabytes = {}
    for stage in STAGES:
        state = predict_state(stage, 1, MANY, 1, 1, 1)
        gigabytes[f"gb_{stage}"] = BILLIONS * sum(widths[kind] * state[kind] for kind in KINDS)
    for stage, (printed, digits) in enumerate(TABLE_1[MANY], start=1):
        half: dict[str, Any] = {"unit": "GB", "tolerance": 0.5 * 10**-digits}
        source, scaled = "ZeRO 1910.02054 Table 1, as printed there", gigabytes[f"gb_{stage}"]
        lab.row("table_1_scaled", printed, scaled, source, **half, stage=stage, gpus=MANY)
    return gigabytes


def check_table_1(lab: Lab, gpus: int, totals: list[float]) -> None:
    """Check the bytes a parameter counted here against the paper's table.

    For 7.5 billion parameters they must be within half of the last digit that the paper prints.
    """
    for stage, (printed, digits) in enumerate(TABLE_1.get(gpus, ()), start=1):
        half: dict[str, Any] = {"unit": "GB", "tolerance": 0.5 * 10**-digits}
        source, counted = "ZeRO 1910.02054 Table 1, as printed there", 7.5 * totals[stage]
        lab.row("table_1", printed, counted, source, **half, stage=stage, gpus=gpus)


def book(lab: Lab, model: Any, **plan: Any) -> StateBook:
    """Record a plan dry; return its model states, counted and by the formula, and what else was live at the
    ranks' peaks.
    """
    layout, run = make_plan(**plan), lab.dry(model=model, **plan)
    rows = {row.key: row for row in accounts.rows(Judged(layout, model, results=run.results))}
    states = {kind: rows[f"{kind}_held"] for kind in ("parameters", "gradients", "optimizer")}
    counted = {kind: (row.counted or 0) / layout.gpus for kind, row in states.items()}
    predicted = {kind: (row.predicted or 0) / layout.gpus for kind, row in states.items()}
    peaks = run.peak_memory()
    more: dict[str, Any] = {
        kind: sum(split[kind] for _, split in peaks) / layout.gpus for kind in ("activations", "buffers")
    }
    return StateBook("", counted, predicted, more)
