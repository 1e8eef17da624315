"""Colours (Okabe-Ito), and for each a hatch, a lane or a digit that says the same, because no palette
survives grey printing.
"""

from __future__ import annotations

from dataclasses import dataclass

from glasscluster.base.breakdown import (
    BUSY,
    COMPUTE,
    ENTRIES,
    EXPOSED,
    HOST,
    OPTIMIZER,
    RECOMPUTE,
    Entry,
    entry_of,
)
from glasscluster.sim.time.idle import ALONE, OVERLAPPED


@dataclass(frozen=True)
class Look:
    """How something is drawn: its fill, the hatch over it (a plotly pattern shape), the hatch's colour, and
    the colour of text on it.
    """

    fill: str
    text: str = "#000000"
    hatch: str = ""
    ink: str = "#ffffff"


def look_of(entry: Entry) -> Look:
    """How an entry of the breakdown of time is drawn, wherever it is."""
    return Look(entry.fill, entry.text, entry.hatch, entry.ink)


HOST_WAIT = "host_wait"  # as a kind of bar; `host` is the host's own work, in its lane


def kind_of_gap(key: str) -> str:
    """The kind of bar of a gap by its entry; axes of users' own programs share one kind."""
    if key == HOST:
        return HOST_WAIT
    return key if key in ENTRIES or not key.startswith(EXPOSED) else EXPOSED


_WAITS = [key for key in ENTRIES if key not in BUSY]
_WAITS.insert(_WAITS.index(HOST), f"{EXPOSED}_")  # the other axes
IDLE_KINDS: dict[str, Look] = {kind_of_gap(key): look_of(entry_of(key)) for key in _WAITS}

KINDS: dict[str, Look] = {
    "forward": look_of(ENTRIES[COMPUTE]),
    "backward": Look("#E69F00"),
    "weight": Look("#009E73", "#000000", "-", "#00664a"),
    "recompute": look_of(ENTRIES[RECOMPUTE]),
    "optimizer": look_of(ENTRIES[OPTIMIZER]),
    "other": Look("#bdbdbd"),
    "collective": Look("#D55E00", "#000000", "/"),
    "p2p": Look("#CC79A7", "#000000", "x"),
    "host": Look("#a08c5b", "#000000", "-"),
    **IDLE_KINDS,
}
# kinds of bars in a layer's strip (strip.py): three shades of compute, and messages
LAYER: dict[str, Look] = {
    "product": KINDS["forward"],
    "kernel": Look("#3d6f8e", "#ffffff", ".", "#ffffff"),
    "elementwise": Look("#9cc4de"),
    "gathers": Look("#D55E00"),
    "scatters": Look("#F0A36B", "#000000", "/", "#a84300"),
    "reduces": Look("#E69F00", "#000000", "x", "#ffffff"),
    "ring_pieces": KINDS["p2p"],
}
KEPT: dict[str, Look] = {  # kinds of tensors that a layer keeps for backward (activations.PARTS)
    "outside": Look("#9aa0a6", "#000000", "-", "#5f6368"),
    "mlp": Look("#0072B2", "#ffffff"),
    "attention": Look("#56B4E9", "#000000", ".", "#0a5a8c"),
    "scores": Look("#D55E00", "#000000", "/"),
}
SERVING: dict[str, Look] = {  # what a request does in its slot, and the cache (slots.py)
    "prefill": KINDS["forward"],
    "again": Look("#D55E00", "#000000", "/"),
    "decode": Look("#9cc4de", "#000000", "", "#2a7fb0"),
    "held": Look("#ececec", "#404040", "x", "#9a9a9a"),
    "tokens": Look("#9cc4de", "#000000", "", "#2a7fb0"),
    "empty": Look("#ececec", "#404040", "x", "#9a9a9a"),
}
CRITICAL = "#000000"

MEMORY: dict[str, Look] = {
    "parameters": Look("#4ea5b7"),
    "gradients": Look("#e889ab", "#000000", "/"),
    "optimizer": Look("#cec0fa", "#000000", "x"),
    "activations": Look("#e38a42", "#000000", "."),
    "buffers": Look("#9aa0a6", "#000000", "-"),
}

SPLIT: dict[str, Look] = {  # compute, divided further (Timeline.split)
    ALONE: look_of(ENTRIES[COMPUTE]),
    OVERLAPPED: Look(ENTRIES[COMPUTE].fill, "#ffffff", "/", "#9cc4de"),
}


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


SERIES = (
    "#0072B2",
    "#D55E00",
    "#00795a",
    "#8a5a7f",
    "#7a5c00",
    "#3d6f8e",
)  # lines and bars of lessons; white text is readable on all of them
