"""Replay: events a second of the compiled longest path, on a graph sorted when it was built.

Goal: 100 million events a second. The graph is a recorded one, repeated end to end until it is large.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from glasscluster.sim.run import Cluster
from glasscluster.sim.time.cost import costs
from glasscluster.sim.time.replay import longest_path, replay
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank

REPEATS = 9


def measure() -> dict[str, Any]:
    """Events, seconds and events/s of the kernel alone and of a whole `replay` call."""
    plan = make_plan(dp=2, tp=2, pp=2, zero=1, global_batch=64)
    job = Job(plan, make_model("tiny", layers=8), steps=1)
    graph = (
        Cluster("classroom", plan.gpus, "dry", memory_bytes=None)
        .run(train_rank, job, info=job_info(job))
        .graph
    )
    cost = costs(graph, replay(graph, "classroom").hardware, "fp32", None)
    copies = max(
        1, 1_000_000 // len(graph)
    )  # results small enough for malloc to keep their pages: the loop is measured, not page faults
    n, edges = len(graph), len(graph.dep_idx)
    shift = np.repeat(np.arange(copies), edges) * n
    dep_idx = np.tile(graph.dep_idx, copies) + shift.astype(graph.dep_idx.dtype)
    starts = (np.tile(graph.dep_ptr[:-1], copies) + np.repeat(np.arange(copies), n) * edges).astype(
        graph.dep_ptr.dtype
    )
    dep_ptr = np.append(starts, np.asarray([copies * edges], graph.dep_ptr.dtype))
    matched = np.tile(graph.match, copies)
    match = np.where(matched >= 0, matched + np.repeat(np.arange(copies), n) * n, -1).astype(
        graph.match.dtype
    )
    duration, latency = np.tile(cost.duration, copies), np.tile(cost.latency, copies)
    longest_path(dep_ptr, dep_idx, match, duration, latency)
    kernel, whole = [], []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        longest_path(dep_ptr, dep_idx, match, duration, latency)
        kernel.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        replay(graph, "classroom")
        whole.append(time.perf_counter() - begun)
    events = copies * n
    return {
        "events": events,
        "dependencies_per_event": round(edges / n, 2),
        "kernel_events_per_s": round(events / median(kernel)),
        "whole_call_events": n,
        "whole_call_ms": round(median(whole) * 1e3, 2),
        "whole_call_events_per_s": round(n / median(whole)),
        "goal_events_per_s": 100_000_000,
    }
