"""All commands of `glass`, each from its own file, in the order that help lists them."""

from __future__ import annotations

from typing import Any

import typer

from glasscluster.commands import (
    collective,
    doctor,
    evaluate,
    gallery,
    generate,
    lessons,
    plan,
    predict,
    replay,
    run,
    schedule,
    serve,
    tokenize,
    train,
)
from glasscluster.commands import list as list_
from glasscluster.commands.meanings import EPILOGS

STRATEGIES = "real training strategies on simulated GPUs, exact, counted and drawn."
COMMANDS: dict[str, Any] = {
    "train": train.train,
    "predict": predict.predict,
    "plan": plan.plan,
    "replay": replay.replay,
    "run": run.command,
    "list": list_.list_,
    "lessons": lessons.lessons,
    "gallery": gallery.gallery,
    "collective": collective.collective,
    "schedule": schedule.schedule,
    "generate": generate.generate,
    "serve": serve.serve,
    "evaluate": evaluate.evaluate,
    "doctor": doctor.doctor,
}
SETTINGS = {"run": run.SETTINGS}

app = typer.Typer(
    name="glass",
    help=f"A GPU cluster you can see through: {STRATEGIES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for name, function in COMMANDS.items():
    app.command(name, context_settings=SETTINGS.get(name), epilog=EPILOGS.get(name))(function)
app.add_typer(tokenize.app, name="tokenize")
