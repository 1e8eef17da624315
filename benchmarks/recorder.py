"""What recording costs: the same training step with and without the recorder, interleaved in one process.

Goal: at most 10 % at hidden 512, sequence 512, micro-batch 4. Also microseconds an operation, and the tiny
model's ratio.
"""

from __future__ import annotations

import contextlib
import os
import time
from statistics import median
from typing import Any

import torch

from glasscluster.sim.ranks.backends.threads import ThreadsBackend
from glasscluster.sim.recording.recorder import RecordingMode
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Trainer

REPEATS = 9


def program(gpu: Any, job: Job, repeats: int) -> dict[str, Any]:
    """Alternate bare and recorded steps on one rank. Run with record=False: the mode is entered here."""
    trainer = Trainer(gpu, job)
    trainer.train_step(0)
    bare, recorded, events = [], [], 0
    for number in range(repeats):
        for recording in (number % 2 == 0, number % 2 == 1):
            gpu.recorder.paused = not recording
            gpu.start_step()
            begun = time.perf_counter()
            with RecordingMode(gpu.recorder) if recording else contextlib.nullcontext():
                trainer.train_step(number + 1)
            (recorded if recording else bare).append(time.perf_counter() - begun)
            if recording:
                events = gpu.recorder.lane_length.get(0, 0)
    return {"bare": bare, "recorded": recorded, "events": events}


def _one(label: str, job: Job) -> dict[str, Any]:
    spent = ThreadsBackend(1).run(program, (job, REPEATS), False, None)[0].result
    bare, recorded = median(spent["bare"]), median(spent["recorded"])
    pairs = sorted(r / b for r, b in zip(spent["recorded"], spent["bare"], strict=True))
    return {
        "model": label,
        "bare_ms": round(bare * 1e3, 2),
        "recorded_ms": round(recorded * 1e3, 2),
        "overhead_fraction": round(recorded / bare - 1, 4),
        "overhead_quartiles": [round(pairs[REPEATS // 4] - 1, 4), round(pairs[-1 - REPEATS // 4] - 1, 4)],
        "operations": spent["events"],
        "us_per_operation": round((recorded - bare) / max(spent["events"], 1) * 1e6, 2),
    }


def measure() -> list[dict[str, Any]]:
    """The goal's shape and the tiny model, one thread pinned to one core."""
    cores = os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})
    try:
        large = Job(
            make_plan(micro_batch=4, global_batch=4), make_model("tiny", hidden=512, seq=512, heads=8)
        )
        tiny = Job(make_plan(micro_batch=1, global_batch=2), make_model("tiny"))
        return [_one("hidden 512, seq 512, micro-batch 4, 4 layers (goal: 0.10)", large), _one("tiny", tiny)]
    finally:
        os.sched_setaffinity(0, cores)
