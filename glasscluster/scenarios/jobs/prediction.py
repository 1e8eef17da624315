"""`glass predict`: a plan recorded dry, by the strategies' own code, and replayed on some hardware."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glasscluster.base.errors import GlassError, InputError
from glasscluster.base.files import read_text, replacing
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.stored import slow_ranks
from glasscluster.scenarios.requests.predict import CSV_COLUMNS, PredictRequest
from glasscluster.sim.ranks.collectives import load
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.advice import Advice, advise
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.trainer import train_rank

GIB = 1024**3
TRUTH = {"true": True, "false": False}
COLUMNS = (*Plan.model_fields, *ModelConfig.model_fields, *CSV_COLUMNS)


def predict_command(request: PredictRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `glass predict` for one plan, with advice where it does not fit."""
    slow, shape = slow_ranks(request.slow_rank), request.shape
    assert shape is not None  # `glass predict` has no --weights, so the request has a shape
    return predict(request.plan, shape, request.hardware, rank=request.rank, slow=slow, advised=True, say=say)


def predict(
    plan: Plan,
    model: ModelConfig,
    hardware: str,
    *,
    rank: str = "max",
    slow: dict[int, float] | None = None,
    advised: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """The `glass.predict/1` object of a plan, recorded dry: shapes only, nothing is computed.

    On NVIDIA GPUs collectives are NCCL's own. With `advised` a plan that does not fit also gets what holds
    the memory, and changes of the plan that would fit. Raises InputError for options that cannot run
    together.
    """
    begun = time.perf_counter()
    cluster = Cluster(hardware, plan.gpus, "dry", memory_bytes=None)
    cluster.hardware.gpu.peak(plan.precision)
    for number in slow or {}:
        if number >= plan.gpus:
            raise InputError(
                "slow_rank", number, f"the plan has ranks 0 to {plan.gpus - 1}", range(plan.gpus)
            )
    if cluster.hardware.gpu.sm and "algorithm" not in plan.model_fields_set:
        plan = plan.model_copy(update={"algorithm": "native"})
    load(plan.algorithm)
    precision = plan.precision
    if (
        precision == "fp8"
    ):  # weights, activations and gradients stay in bf16; the matrices' products are in fp8
        plan = plan.model_copy(update={"precision": "bf16"})
    job = Job(plan, model, steps=1)
    run = cluster.run(train_rank, job, info=job_info(job))
    timeline = run.replay(cluster.hardware, slow_ranks=slow, precision=precision)
    peaks, held = run.peak_memory(), [result.host_bytes for result in run.results]
    peak, split = peaks[_chosen(rank, [total for total, _ in peaks])]
    seconds, done = timeline.makespan, timeline.graph.info["model_flops"]
    capacity = cluster.hardware.gpu.memory_bytes
    fits = max(total for total, _ in peaks) <= capacity and max(held) <= cluster.hardware.host.memory_bytes
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
        "fits": fits,
        "wall_s": time.perf_counter() - begun,
        "simulated_gpus": plan.gpus,
        "events": len(timeline.graph),
    }
    if advised:
        advice = Advice() if fits else advise(plan, model, cluster.hardware, capacity, say=say)
        fullest = MemoryHistory(timeline.graph, _chosen(rank, [total for total, _ in peaks]))
        content["residents"] = [r.as_dict() for r in fullest.residents()]
        content["would_fit"] = [fit.as_dict() for fit in advice.best]
    return content


def _chosen(rank: str, peaks: list[int]) -> int:
    if rank == "max":
        return peaks.index(max(peaks))
    if rank == "last":
        return len(peaks) - 1
    if not rank.isdigit() or int(rank) >= len(peaks):
        raise InputError(
            "rank",
            rank,
            f"must be max, last or a rank from 0 to {len(peaks) - 1}",
            ["max", "last", str(len(peaks) - 1)],
        )
    return int(rank)


def predict_csv(request: PredictRequest, say: Callable[[str], None]) -> tuple[int, int, Path]:
    """Every row of a CSV with the predicted columns, or with `error` filled; one bad row stops nothing.

    Returns: the number of rows, how many of them have an error, and the file that was written.
    """
    assert request.csv is not None
    source, out = request.csv, request.out
    defaults = {k: v for k, v in request.given.items() if k in COLUMNS and k != "rank"}
    try:
        reader = csv.DictReader(io.StringIO(read_text("csv", source)))
        rows, header = list(reader), list(reader.fieldnames or [])
    except csv.Error as problem:
        raise InputError("csv", source, f"cannot be read: {problem}") from None
    if not header:
        raise InputError("csv", source, "is empty; the first line must name options, with _ for -")
    target = Path(out) if out else Path(source).with_suffix(".predicted.csv")
    answered: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        say(f"row {number + 1} of {len(rows)}")
        answered.append({**{k: v for k, v in row.items() if k is not None}, **_predict_row(row, defaults)})
    columns = list(dict.fromkeys([*header, *(k for a in answered for k in a)]))
    if "error" not in columns:
        columns.append("error")
    with replacing(target) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(answered)
    return len(answered), sum(bool(a.get("error")) for a in answered), target


def _predict_row(row: dict[Any, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    try:
        if None in row:
            raise InputError("row", row.get(None), "has more cells than the header")
        given = {**defaults, **{k: _value(v) for k, v in row.items() if v}}
        if unknown := sorted(set(given) - set(COLUMNS)):
            raise InputError(unknown[0], given[unknown[0]], "unknown column", COLUMNS, by_name=True)
        request = PredictRequest.of(**given | {k: str(given[k]) for k in CSV_COLUMNS if k in given})
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
        if isinstance(value, dict):
            stem, _, unit = key.rpartition("_")
            out |= {f"{stem}_{k}_{unit}": v for k, v in value.items()}
        elif key not in ("schema", "hardware"):
            out[key] = str(value).lower() if isinstance(value, bool) else value
    return out
