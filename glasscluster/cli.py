"""The `glass` command: the way in, and the way out. Each command is a file in glasscluster/commands.

No command imports torch before it runs: `--help` answers at once. Here hardly anything is imported, so that a
person can end the program at any time.
"""

from __future__ import annotations

import sys
from importlib import import_module

from glasscluster.commands.endings import ended_by_signals, leave


def main(arguments: list[str] | None = None) -> None:
    """Entry point.

    Exit code 0 done, 1 a check failed, 2 bad input, 3 the run failed, 130 ctrl-C, 143 SIGTERM.
    """
    with ended_by_signals() as ending:
        try:
            commands = import_module("glasscluster.commands.answer")
            code = commands.answer(sys.argv[1:] if arguments is None else arguments, ending)
        except KeyboardInterrupt:  # while commands were imported, or written what they said
            code = ending.said()
        except Exception:  # a library that was being imported may make another error of it
            if not ending.signal:
                raise
            code = ending.said()
    if arguments is not None:  # called by somebody else's program, which goes on
        sys.exit(code)
    leave(code, by_signal=bool(ending.signal))
