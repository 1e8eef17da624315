"""What the figures of time mean, at the end of a command's `--help`, in the words of base/breakdown.py."""

from __future__ import annotations

from glasscluster.base.breakdown import ENTRIES, EXPOSED, PAPERS

SUM = (
    "Where time goes: the entries of breakdown_s are seconds of the rank that finishes last, and add up to its "
    "time. Every instant is in exactly one:"
)
OF_PAPERS = "What papers on pipelines call the bubble is something else; null where nothing is pipelined:"


def of_papers() -> list[str]:
    """The papers' three bubbles by their keys, a paragraph each."""
    return [f"{key}: {meaning.en}" for key, (_, meaning) in PAPERS.items()]


def of_time() -> list[str]:
    """The entries of the breakdown and the papers' bubbles, by their keys, a paragraph each."""
    entries = [f"{key}: {entry.meaning.en}" for key, entry in ENTRIES.items() if not key.startswith(EXPOSED)]
    axes = ", ".join(key.removeprefix(f"{EXPOSED}_") for key in ENTRIES if key.startswith(EXPOSED))
    exposed = (
        f"{EXPOSED}_AXIS ({axes}): the rank computes nothing while the message it waits for is in flight"
    )
    entries.insert(2, exposed)
    return [SUM, *entries, OF_PAPERS, *of_papers()]


EPILOGS = {name: "\n\n".join(of_time()) for name in ("train", "predict", "replay")}
EPILOGS["schedule"] = "\n\n".join(of_papers())
