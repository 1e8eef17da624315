"""The `glass` command: the way in, and the way out. Each command is a file in glasscluster/commands.

No command imports torch before it runs: `--help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from glasscluster.base.errors import GlassError
from glasscluster.commands import console
from glasscluster.commands.app import app
from glasscluster.commands.failures import Aborts, UsageError, fail, fault


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 the run failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    out = sys.stdout
    if "--json" in arguments:  # Ray's own helpers print to standard output, too
        console.answers, sys.stdout = out, sys.stderr
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="glass", standalone_mode=False)
        out.flush()
    except Aborts:
        print("interrupted", file=sys.stderr)
        code = 130
    except (GlassError, UsageError) as problem:
        code = fail(problem, arguments)
    except typer.Exit as done:
        code = done.exit_code
    except Exception as problem:  # whatever it is, no traceback reaches a person
        code = fault(problem, arguments)
    finally:
        console.answers, sys.stdout = None, out
    sys.exit(code if isinstance(code, int) else 0)
