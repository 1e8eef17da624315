"""What this machine can start and hold: refused before it is tried, with the number and the machine's.

A typing mistake of a few zeros asks for a billion threads or a terabyte. What is only predicted is not judged
here: a prediction starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from glasscluster.base.errors import InputError

MOST_THREADS = 1024  # ranks of the threads backend
MOST_DRY = 1 << 16  # ranks that are recorded one after the other, without data
MOST_ACTIONS = 1 << 17  # of a pipeline schedule: stages x micro-batches x its parts
PARTS = 3  # forward, backward, and what some schedules take apart: the weights' gradients
MOST_STAGES = 1 << 9  # of a pipeline schedule: making one, and judging it, takes their square
# The largest number that an option may have, many times what anybody trained: a slip of a few zeros would be
# counted, listed or drawn for hours. What fits a machine or a plan is judged by other rules.
LARGEST = {
    **dict.fromkeys(("dp", "tp", "pp", "cp", "ep", "shard", "ulysses", "gpus", "nodes", "servers"), MOST_DRY),
    **dict.fromkeys(("layers", "dense_layers", "virtual_stages"), 10_000),
    **dict.fromkeys(("hidden", "ffn", "expert_ffn", "shared_ffn", "kv_latent", "q_latent"), 1 << 24),
    **dict.fromkeys(
        ("heads", "kv_heads", "experts", "top_k", "router_groups", "router_top_groups"), MOST_DRY
    ),
    **dict.fromkeys(("seq", "prefix", "patches", "tokens", "prompt_length", "window", "chunk"), 1 << 24),
    **dict.fromkeys(("vocab", "rope_trained", "relative_buckets", "relative_distance"), 1 << 28),
    **dict.fromkeys(("global_batch", "micro_batch", "micro_batches", "batch", "slots", "count"), 1 << 20),
    **dict.fromkeys(("items", "samples", "leaf", "prefetch", "recompute_every", "recompute_nth"), 1 << 20),
    **dict.fromkeys(("block", "blocks", "steps", "warmup", "decay_until", "decay_steps"), 1 << 32),
    **dict.fromkeys(("skip_window", "rollback", "snapshot_every", "staleness"), 1 << 32),
    "patch_size": 1 << 12,
}
ACTOR_BYTES = 150 << 20  # that a Ray actor with torch takes at least
EVENT_BYTES = 500  # that an event takes at least while a graph is built from a dry recording and replayed


def check_numbers(values: Mapping[str, object]) -> None:
    """Refuse an option with a number that nothing here can count to.

    Args:
        values: options by name; those without a limit, or that are no whole numbers, are not judged.

    Raises:
        InputError: naming the limit, which is also the nearest number that is allowed.
    """
    for name, value in values.items():
        most = LARGEST.get(name)
        if most is not None and isinstance(value, int) and value > most:
            raise InputError(name, value, f"must be at most {most:,}", [most])


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


def check_bytes(field: str, value: object, needed: int, what: str, instead: str) -> None:
    """Refuse what needs more memory than the machine has in all.

    Args:
        field: the option or quantity that asks for it.
        value: its value.
        needed: bytes that it takes at least.
        what: in words, what those bytes hold.
        instead: in words, what needs less.

    Raises:
        InputError: with both numbers.
    """
    memory = machine_bytes()
    if memory is not None and needed > memory:
        rule = f"needs at least {written_gb(needed)} of {what}, and this machine has {written_gb(memory)}"
        raise InputError(field, value, f"{rule}; {instead}")


def check_events(gpus: int, events: int) -> None:
    """Refuse a dry recording that this machine's memory cannot hold.

    Args:
        gpus: ranks that are recorded.
        events: that they record at least, all together.

    Raises:
        InputError: with both numbers.
    """
    instead = "ask for fewer GPUs, or a smaller model or batch"
    check_bytes("gpus", gpus, events * EVENT_BYTES, f"a recording of {events:,} events", instead)


def written_gb(number: int) -> str:
    """Bytes as a text in GB."""
    return f"{number / 1e9:,.4g} GB"


def check_actions(ranks: int, micro_batches: int, virtual_stages: int) -> None:
    """Refuse a pipeline schedule with more actions than are listed here.

    Args:
        ranks: p, of the pipeline.
        micro_batches: m, in one step.
        virtual_stages: v, stages on each rank.

    Raises:
        InputError: for the number that is too large, with the largest that would do beside the others.
    """
    for field, value, other in (("pp", ranks, virtual_stages), ("virtual_stages", virtual_stages, ranks)):
        if ranks * virtual_stages > MOST_STAGES and value >= other:
            most = max(1, MOST_STAGES // other)
            rule = f"a pipeline schedule has at most {MOST_STAGES:,} stages: here {most:,} at most"
            raise InputError(field, value, rule, [most])
    most = MOST_ACTIONS // (PARTS * ranks * virtual_stages)
    if micro_batches > most:
        rule = (
            f"a pipeline schedule has at most {MOST_ACTIONS:,} actions: here {most:,} micro-batches at most"
        )
        raise InputError("micro_batches", micro_batches, rule, [most])
