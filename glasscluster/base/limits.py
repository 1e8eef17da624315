"""What this machine can start and hold: refused before it is tried, with the number and the machine's.

A typing mistake of a few zeros asks for a billion threads or a terabyte. What is only predicted is not judged
here: a prediction starts nothing.
"""

from __future__ import annotations

import os

from glasscluster.base.errors import InputError

MOST_THREADS = 1024  # ranks of the threads backend
MOST_DRY = 1 << 16  # ranks that are recorded one after the other, without data
ACTOR_BYTES = 150 << 20  # that a Ray actor with torch takes at least


def machine_bytes() -> int | None:
    """The machine's memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def most_ranks(backend: str) -> int | None:
    """How many ranks a backend can start here; None: whoever started them knows (torchrun, a Ray cluster)."""
    if backend == "threads":
        return MOST_THREADS
    if backend == "dry":
        return MOST_DRY
    memory = machine_bytes()
    if backend == "ray" and not os.environ.get("RAY_ADDRESS") and memory is not None:
        return max(1, memory // ACTOR_BYTES)
    return None


def check_ranks(backend: str, gpus: int) -> None:
    """Refuse more ranks than can be started here.

    Raises:
        InputError: naming the limit, which is also the nearest number that is allowed.
    """
    most = most_ranks(backend)
    if most is not None and gpus > most:
        raise InputError(
            "gpus", gpus, f"the {backend} backend runs at most {most:,} ranks on this machine", [most]
        )


def check_bytes(field: str, value: object, needed: int) -> None:
    """Refuse what needs more memory than the machine has in all.

    Args:
        field: the option or quantity that asks for it.
        value: its value.
        needed: bytes that it takes at least.

    Raises:
        InputError: with both numbers.
    """
    memory = machine_bytes()
    if memory is not None and needed > memory:
        rule = f"needs at least {needed / 1e9:,.4g} GB, and this machine has {memory / 1e9:,.4g} GB"
        raise InputError(
            field, value, f"{rule}; --backend dry records shapes alone, glass predict needs neither"
        )
