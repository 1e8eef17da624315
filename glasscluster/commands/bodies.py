"""Where the body of each command is. It is loaded when the command runs, so that no `--help` waits for torch.

This is the only place of the commands that imports by name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

BODIES = {  # name -> module:function
    "train": "glasscluster.scenarios.jobs.training:train_command",
    "predict": "glasscluster.scenarios.jobs.prediction:predict_command",
    "predict_csv": "glasscluster.scenarios.jobs.prediction:predict_csv",
    "plan": "glasscluster.scenarios.jobs.planner:plan_command",
    "generate": "glasscluster.scenarios.jobs.generation:generate_command",
    "serve": "glasscluster.scenarios.jobs.serving_command:serve_command",
    "evaluate": "glasscluster.scenarios.jobs.evaluation:evaluate_command",
    "replay": "glasscluster.scenarios.jobs.stored:replay_command",
    "schedule": "glasscluster.scenarios.jobs.schedules:schedule_command",
    "schedule summary": "glasscluster.scenarios.jobs.schedules:summary",
    "schedule out": "glasscluster.scenarios.jobs.schedule_files:write_schedule",
    "collective": "glasscluster.scenarios.jobs.collective:collective_command",
    "doctor": "glasscluster.scenarios.jobs.checkup:examine",
    "doctor model": "glasscluster.scenarios.jobs.model_checkup:examine_model",
    "tokenize train": "glasscluster.scenarios.jobs.tokenizing:learn_command",
    "tokenize encode": "glasscluster.scenarios.jobs.tokenizing:encode_command",
    "tokenize decode": "glasscluster.scenarios.jobs.tokenizing:decode_command",
    "declared": "glasscluster.scenarios.declared:declared",
    "find": "glasscluster.scenarios.find_scenario:find",
    "run": "glasscluster.scenarios.performance:run_command",
    "list": "glasscluster.scenarios.inventory:inventory",
    "lessons": "glasscluster.scenarios.inventory:lessons_command",
    "gallery": "glasscluster.scenarios.gallery:gallery_command",
}


def body(name: str) -> Callable[..., Any]:
    """The function that does what a command asks for."""
    module, _, function = BODIES[name].partition(":")
    return getattr(import_module(module), function)
