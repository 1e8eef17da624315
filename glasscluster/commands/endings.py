"""How a command ends when a person or the system ends it: one line on what was written, exit 130 or 143.

ctrl-C and SIGTERM raise KeyboardInterrupt where the program is: what is half written is taken back, ranks
unwind, actors are stopped. A program that waits inside a library hears nothing of it; so a thread that the
signal wakes ends the process after GRACE_S.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from glasscluster.base import files
from glasscluster.scenarios.jobs.processes import is_leader

GRACE_S = 4.0  # for an orderly end: the last line comes within 5 s, whatever happens
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
AGAIN_S = 0.05  # until a KeyboardInterrupt that was lost is sent again
SHOWN = 5  # paths that the last line names
# Threads that the interpreter cannot end: ranks (torch aborts), and waits for a message (it would wait as
# well).
OURS = ("rank-", "message")


class Ending:
    """Whether a signal ends the program, and what is said then."""

    def __init__(self) -> None:
        self.signal = 0
        self._said = threading.Lock()

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The handler. A person who asks again waits for nothing."""
        if self.signal and "TORCHELASTIC_RUN_ID" in os.environ:
            return  # torchrun sends its own signal behind a person's
        if self.signal:
            os._exit(self.said())
        self.signal = number
        raise KeyboardInterrupt

    def ignored(self, problem: sys.UnraisableHookArgs) -> None:
        """The hook for errors that nobody can catch, as in a finalizer: the KeyboardInterrupt is sent
        again.
        """
        if self.signal and issubclass(problem.exc_type, KeyboardInterrupt):
            number, self.signal = self.signal, 0
            threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()
        else:
            sys.__unraisablehook__(problem)

    def said(self) -> int:
        """Say, once, what was written; returns the exit code."""
        number = self.signal or signal.SIGINT
        if self._said.acquire(blocking=False) and is_leader():
            with suppress(OSError, ValueError, RuntimeError):  # closed, or just in use
                print(f"{WORDS[signal.Signals(number)]}: {what_was_written()}", file=sys.stderr, flush=True)
        return 128 + number


def what_was_written() -> str:
    """The files and folders that this process has put in their place; removes empty folders that it made."""
    for folder in list(files.written):
        with suppress(OSError):
            files.finish(folder)  # a set that is complete comes to its place
    files.take_back_empty_folders()
    there = [path for path in dict.fromkeys(files.written) if path.exists()]
    there = [path for path in there if not {*path.parents} & {*there}]
    if not there:
        return "nothing was written"
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return f"{', '.join(map(str, there[:SHOWN]))}{more} {'was' if len(there) == 1 else 'were'} written"


@contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """Inside, ctrl-C and SIGTERM raise KeyboardInterrupt; whoever does not end then is ended."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
        yield ending
        return
    before = {number: signal.getsignal(number) for number in WORDS}
    handled = [number for number, old in before.items() if old is not signal.SIG_IGN]  # as under nohup
    over, (read, write) = threading.Event(), os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=_wait_for_signal, args=(ending, read, over), daemon=True, name="signals").start()
    wakes = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, ending.receive)
    hook, sys.unraisablehook = sys.unraisablehook, ending.ignored
    try:
        yield ending
    finally:
        over.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakes)
        os.close(write)
        for number in handled:
            signal.signal(number, signal.SIG_IGN if ending.signal else before[number])


def _wait_for_signal(ending: Ending, read: int, over: threading.Event) -> None:
    """Read the numbers of signals, which come here though the main thread may be inside a library."""
    while numbers := os.read(read, 1):
        if numbers[0] in WORDS and not over.wait(GRACE_S):
            ending.signal = numbers[0]
            os._exit(ending.said())
    os.close(read)


def leave(code: int, by_signal: bool = False) -> NoReturn:
    """Exit: at once where the interpreter's own end could change the exit code, or takes seconds.

    An interpreter that was interrupted inside an `exec` sends itself another SIGINT; one that has threads of
    ours waits for them or dies of them; and ranks of a torchrun job that has failed end one after the other.
    """
    failed = code != 0 and "TORCHELASTIC_RUN_ID" in os.environ
    if by_signal or failed or any(thread.name.startswith(OURS) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
