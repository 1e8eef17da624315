"""The `glass` command: its commands, and the way out. Each command is a file in glasscluster/commands.

No command imports torch before it runs: `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from glasscluster.base.errors import GlassError
from glasscluster.commands import (
    collective,
    console,
    doctor,
    evaluate,
    gallery,
    generate,
    lessons,
    predict,
    replay,
    run,
    schedule,
    serve,
    tokenize,
    train,
)
from glasscluster.commands import list as list_
from glasscluster.commands.failures import Aborts, UsageError, fail

STRATEGIES = "real training strategies on simulated GPUs, exact, counted and drawn."
COMMANDS: dict[str, Any] = {
    "train": train.train,
    "predict": predict.predict,
    "replay": replay.replay,
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
app = typer.Typer(
    name="glass",
    help=f"A GPU cluster you can see through: {STRATEGIES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("run", context_settings=run.SETTINGS)(run.command)
for name, function in COMMANDS.items():
    app.command(name)(function)
app.add_typer(tokenize.app, name="tokenize")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 the run failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    out = sys.stdout
    if "--json" in arguments:  # Ray's own helpers print to standard output, too
        console.answers, sys.stdout = out, sys.stderr
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="glass", standalone_mode=False)
    except Aborts:
        print("interrupted", file=sys.stderr)
        code = 130
    except (GlassError, UsageError) as problem:
        code = fail(problem, arguments)
    except typer.Exit as done:
        code = done.exit_code
    finally:
        console.answers, sys.stdout = None, out
    out.flush()
    sys.exit(code if isinstance(code, int) else 0)
