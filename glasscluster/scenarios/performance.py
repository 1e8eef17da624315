"""`glass run`: perform a scenario and write its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from glasscluster.base.errors import GlassError
from glasscluster.scenarios.jobs.folders import keep_partial, output_folder
from glasscluster.scenarios.jobs.processes import default_backend, is_leader
from glasscluster.scenarios.lab import Lab, Say, perform
from glasscluster.scenarios.requests.scenarios import RunRequest
from glasscluster.scenarios.scenario import Scenario
from glasscluster.sim.time.hardware import hardware


def run_command(
    scenario: Scenario,
    request: RunRequest,
    options: dict[str, Any],
    say: Say,
) -> tuple[Lab, Path | None, float]:
    """Perform a scenario with its own options and write its folder.

    Returns: the lab; the path of the report, None where another process of a torchrun job writes it;
    wall seconds.
    """
    begun = time.perf_counter()
    backend = request.backend or ("torchrun" if default_backend() == "torchrun" else scenario.backend)
    clock = request.hardware or scenario.hardware
    lab = Lab(scenario, backend, clock, request.device, request.seed, request.timeout, say)
    hardware(lab.hardware)
    folder = output_folder(request.out, scenario.name) if is_leader() else None
    try:
        perform(scenario, lab, options)
    except GlassError as error:
        if folder is not None:
            info = {"scenario": scenario.name, "backend": lab.backend, "seed": request.seed}
            keep_partial(folder, error, info, say)
        raise
    if folder is None:
        return lab, None, time.perf_counter() - begun
    say(f"writing {folder}/report.html")
    return lab, lab.write(folder), time.perf_counter() - begun
