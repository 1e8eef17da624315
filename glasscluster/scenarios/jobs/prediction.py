"""`glass predict`: a plan recorded dry, by the strategies' own code, and replayed on some hardware."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from glasscluster.base.errors import GlassError, InputError
from glasscluster.base.files import is_there, read_text, replacing
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.csv_rows import in_order, processes_for
from glasscluster.scenarios.jobs.prediction_sentence import sentence
from glasscluster.scenarios.jobs.stored import launches, slow_ranks
from glasscluster.scenarios.requests.predict import CSV_COLUMNS, PredictRequest
from glasscluster.sim.ranks.collectives import load
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.sim.time.replay import replay
from glasscluster.strategies.folding import record
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.advice import Advice, advise
from glasscluster.strategies.plan import Plan

GIB = 1024**3
TRUTH = {"true": True, "false": False}
COLUMNS = (*Plan.model_fields, *ModelConfig.model_fields, *CSV_COLUMNS)


def predict_command(
    request: PredictRequest, say: Callable[[str], None], advised: bool = True
) -> dict[str, Any]:
    """Run `glass predict` for one plan; with `advised`, or where the request wants it, with changes of the
    plan that fit where this one does not.
    """
    advised = advised or request.advise
    slow, shape = request.prepared(prepare), request.shape
    assert shape is not None  # `glass predict` has no --weights, so the request has a shape
    return predict(
        request.plan,
        shape,
        request.hardware,
        rank=request.rank,
        slow=slow,
        expand=request.expand,
        residents=True,
        advised=advised,
        say=say,
    )


def prepare(request: PredictRequest) -> dict[int, float]:
    """The slow ranks, after every rule that needs no recording; InputError naming what cannot be."""
    slow, ranks = slow_ranks(request.slow_rank), request.plan.gpus
    hardware(request.hardware).gpu.peak(request.plan.precision)
    for number in slow:
        if number >= ranks:
            raise InputError("slow_rank", number, f"the plan has ranks 0 to {ranks - 1}")
    if request.rank not in ("max", "last") and not (request.rank.isdigit() and int(request.rank) < ranks):
        rule = f"must be max, last or a rank from 0 to {ranks - 1}"
        raise InputError("rank", request.rank, rule, ["max", "last", str(ranks - 1)])
    load(request.plan.algorithm)
    return slow


def predict(
    plan: Plan,
    model: ModelConfig,
    machine: str | Hardware,
    *,
    rank: str = "max",
    slow: dict[int, float] | None = None,
    expand: bool = False,
    residents: bool = False,
    advised: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """The `glass.predict/1` object of a plan, recorded dry: shapes only, nothing is computed.

    On NVIDIA GPUs collectives are NCCL's own; then ranks that are alike are recorded and replayed once,
    unless `expand` (strategies/folding.py). With `residents` it says what holds the memory; with `advised` a
    plan that does not fit also gets changes of it that would, which takes seconds. Raises InputError for
    options that cannot run together.
    """
    begun = time.perf_counter()
    cluster = Cluster(machine, plan.gpus, "dry", memory_bytes=None, say=say)
    cluster.hardware.gpu.peak(plan.precision)
    precision, plan = plan.precision, recorded_plan(plan, cluster.hardware)
    load(plan.algorithm)
    job = Job(plan, model, steps=1)
    recorded = record(cluster, job, slow, expand, say)
    timeline = replay(recorded.graph, cluster.hardware, slow_ranks=slow, precision=precision)
    peaks, held = recorded.peak_memory(), [result.host_bytes for result in recorded.results]
    peak, split = peaks[_chosen(rank, [total for total, _ in peaks])]
    seconds, done = timeline.makespan, timeline.graph.info["model_flops"]
    capacity = cluster.hardware.gpu.memory_bytes
    fullest_bytes = max(total for total, _ in peaks)
    fits = fullest_bytes <= capacity and max(held) <= cluster.hardware.host.memory_bytes
    content = {
        "schema": "glass.predict/1",
        "hardware": cluster.hardware.name,
        "gpus": plan.gpus,
        "collectives": "nccl" if plan.algorithm == "native" and cluster.hardware.gpu.sm else plan.algorithm,
        "iteration_time_s": seconds,
        "tokens_per_s_per_gpu": timeline.graph.info["tokens"] / seconds / plan.gpus,
        "tflops_per_gpu": done / seconds / plan.gpus / 1e12,
        "mfu": timeline.mfu(done),
        "mfu_causal": timeline.mfu(timeline.graph.info["causal_flops"]),
        "hfu": timeline.hfu(),
        **timeline.bubble(),
        "breakdown_s": timeline.breakdown(),
        "peak_memory_gib": peak / GIB,
        "memory_gib": {**{k: v / GIB for k, v in split.items()}, "context": 0.0},
        "host_gib": max(held) / GIB,
        "memory_capacity_gib": capacity / GIB,
        "memory_margin_gib": (capacity - fullest_bytes) / GIB,
        "fits": fits,
        **launches(timeline),
        "wall_s": time.perf_counter() - begun,
        "simulated_gpus": plan.gpus,
        "roles": recorded.roles,
        "events": recorded.events,
    }
    stage = [total for total, _ in peaks].index(fullest_bytes) // (plan.gpus // plan.pp)
    said = sentence(content, stage)
    content["sentence"] = {"en": said.en, "zh": said.zh}
    if residents:
        chosen = recorded.role_of(_chosen(rank, [total for total, _ in peaks]))
        fullest = MemoryHistory(timeline.graph, chosen)
        content["residents"] = [r.as_dict() for r in fullest.residents()]
        advice = Advice() if fits or not advised else advise(plan, model, cluster.hardware, capacity, say=say)
        content["would_fit"] = [fit.as_dict() for fit in advice.best]
    return content


def recorded_plan(plan: Plan, machine: Hardware) -> Plan:
    """The plan as it is recorded: with NCCL's collectives on NVIDIA GPUs unless others are named, and for fp8
    with weights, activations and gradients in bf16, where only the matrices' products are in fp8.
    """
    if machine.gpu.sm and "algorithm" not in plan.model_fields_set:
        plan = plan.model_copy(update={"algorithm": "native"})
    return plan.model_copy(update={"precision": "bf16"}) if plan.precision == "fp8" else plan


def _chosen(rank: str, peaks: list[int]) -> int:
    if rank == "max":
        return peaks.index(max(peaks))
    if rank == "last":
        return len(peaks) - 1
    return int(rank)


def predict_csv(request: PredictRequest, say: Callable[[str], None]) -> tuple[int, int, Path]:
    """Every row of a CSV with the predicted columns, or with `error` filled; one bad row stops nothing.

    Returns: the number of rows, how many of them have an error, and the file that was written.
    """
    assert request.csv is not None
    defaults = {k: v for k, v in request.given.items() if k in COLUMNS}
    header, rows = read_rows(request.csv)
    strange = strange_columns(request.csv, header, rows)
    for problem in strange.values():
        say(problem.message)
    target = Path(request.out) if request.out else Path(request.csv).with_suffix(".predicted.csv")
    if is_there(target) and target.samefile(request.csv):
        raise InputError("out", str(target), "is the file of rows itself, which would be lost")
    if not rows:
        raise InputError("csv", request.csv, "holds a header and no rows")
    answered: list[dict[str, Any]] = []
    of_a_row = partial(_predict_row, header, defaults, strange)
    for row, answer in zip(
        rows, in_order(of_a_row, rows, processes_for(len(rows), request.processes)), strict=True
    ):
        answered.append({**dict(zip(header, row, strict=False)), **answer})
        say(f"row {len(answered)} of {len(rows)}")
    columns = list(dict.fromkeys([*header, *(k for a in answered for k in a)]))
    if "error" not in columns:
        columns.append("error")
    with replacing(target) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(answered)
    return len(answered), sum(bool(a.get("error")) for a in answered), target


def read_rows(source: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV, blanks around cells taken off, and no lines without any text (a spreadsheet
    ends in such: `,,,`).

    Raises:
        InputError: the file cannot be read, is empty, or names a column twice.
    """
    try:
        reader = csv.reader(io.StringIO(read_text("csv", source)), skipinitialspace=True)
        lines = [[cell.strip() for cell in line] for line in reader]
    except csv.Error as problem:
        raise InputError("csv", source, f"cannot be read: {problem}") from None
    header, *rows = [line for line in lines if any(line)] or [[]]
    if not any(header):
        raise InputError("csv", source, "is empty; the first line must name options, with _ for -")
    options = [name.replace("-", "_") for name in header]
    named = [name for name in options if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError("csv", source, f"names the column {twice[0]} twice")
    return header, rows


def strange_columns(source: str, header: list[str], rows: list[list[str]]) -> dict[str, InputError]:
    """The columns that some row fills though they are no options: by name, what is wrong with each."""
    strange = {}
    for column, cell in enumerate(header):
        name = cell.replace("-", "_")
        filled = [row[column] for row in rows if row[column : column + 1] not in ([], [""])]
        if name and name not in COLUMNS and filled:
            strange[cell] = _strange_column(source, name, filled[0])
    return strange


def _strange_column(source: str, name: str, value: str) -> InputError:
    these = f"the options of a plan and of a model are, as dp, and {', '.join(CSV_COLUMNS)}"
    if name in PredictRequest.names():
        rule = f"is an option of a single prediction, and no column of {source}: {these}"
        return InputError(name, value, rule)
    return InputError(name, value, f"is no column of {source}: {these}", COLUMNS, by_name=True)


def _predict_row(
    header: list[str],
    defaults: dict[str, Any],
    strange: dict[str, InputError],
    row: list[str],
) -> dict[str, Any]:
    """The predicted columns of a row, or its error. A cell without a column, or below a column without a
    name (a spreadsheet's row numbers), is not an option.
    """
    try:
        if any(row[len(header) :]):
            raise InputError("row", ",".join(row), f"has more cells than the header, which has {len(header)}")
        cells = {name: cell for name, cell in zip(header, row, strict=False) if name and cell}
        for name in cells:
            if name in strange:
                raise strange[name]
        given = {**defaults, **{name.replace("-", "_"): _value(cell) for name, cell in cells.items()}}
        request = PredictRequest.of(**given | {k: str(given[k]) for k in CSV_COLUMNS if k in given})
        request.prepared(prepare)
        assert request.shape is not None
        return flat(predict(request.plan, request.shape, request.hardware, rank=request.rank))
    except GlassError as problem:
        return {"error": problem.message}


def _value(text: str) -> Any:
    """Parse a cell: a truth value, a whole number, a number; anything else stays text."""
    if text.lower() in TRUTH:
        return TRUTH[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def flat(content: dict[str, Any]) -> dict[str, Any]:
    """Nested keys joined with _ for a CSV row."""
    out: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and key != "sentence":
            stem, _, unit = key.rpartition("_")
            out |= {f"{stem}_{k}_{unit}": v for k, v in value.items()}
        elif key not in ("schema", "hardware", "sentence"):
            out[key] = str(value).lower() if isinstance(value, bool) else value
    return out
