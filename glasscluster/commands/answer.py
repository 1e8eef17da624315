"""One command, from its arguments to its exit code."""

from __future__ import annotations

import sys
from contextlib import suppress

import typer

from glasscluster.base import closing
from glasscluster.base.errors import GlassError, RankDied
from glasscluster.commands import console
from glasscluster.commands.app import app
from glasscluster.commands.endings import Ending
from glasscluster.commands.failures import Aborts, UsageError, fail, fault


def answer(arguments: list[str], ending: Ending) -> int:
    """Run a command; what a failed run leaves open is closed after its error is named.

    Args and result as `answered`.
    """
    with closing.last_word_first():
        return answered(arguments, ending)


def answered(arguments: list[str], ending: Ending) -> int:
    """Run a command.

    Returns 0 done, 1 a check failed, 2 bad input, 3 the run failed, 130 or 143 ended by a person.

    Args:
        arguments: what stands behind `glass`.
        ending: knows of a signal that ends the program.
    """
    out = sys.stdout
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is written as \\u4e2d
        with suppress(AttributeError, ValueError):  # somebody's own stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if "--json" in arguments:  # Ray's own helpers print to standard output, too
        console.answers, sys.stdout = out, sys.stderr
    dead_rank = False
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="glass", standalone_mode=False)
        out.flush()
    except Aborts:
        code = ending.said()
    except (GlassError, UsageError) as problem:
        # a signal may surface as any error; only of a dead rank do we know that it came before the signal
        dead_rank = not ending.signal or isinstance(problem, RankDied)
        code = fail(problem, arguments) if dead_rank else 0
    except typer.Exit as done:
        code = done.exit_code
    except Exception as problem:  # whatever it is, no traceback reaches a person
        code = 0 if ending.signal else fault(problem, arguments)
    finally:
        console.answers, sys.stdout = None, out
    if ending.signal and not dead_rank:  # whatever became of the KeyboardInterrupt on its way here
        code = ending.said()
    out.flush()
    return code if isinstance(code, int) else 0
