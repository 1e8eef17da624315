"""Colours (Okabe-Ito), and for each a hatch, a lane or a digit that says the same, because no palette
survives grey printing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How something is drawn: its fill, the hatch over it (a plotly pattern shape), the hatch's colour, and
    the colour of text on it.
    """

    fill: str
    text: str = "#000000"
    hatch: str = ""
    ink: str = "#ffffff"


KINDS: dict[str, Look] = {
    "forward": Look("#0072B2", "#ffffff"),
    "backward": Look("#E69F00"),
    "weight": Look("#009E73", "#000000", "-", "#00664a"),
    "recompute": Look("#56B4E9", "#000000", "."),
    "optimizer": Look("#F0E442"),
    "other": Look("#bdbdbd"),
    "collective": Look("#D55E00", "#000000", "/"),
    "p2p": Look("#CC79A7", "#000000", "x"),
    "host": Look("#a08c5b", "#000000", "-"),
    "bubble": Look("#f2f2f2", "#404040", "/", "#cfcfcf"),
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

TIME: dict[str, Look] = {  # how a step's seconds are spent
    "compute": KINDS["forward"],
    "exposed": KINDS["collective"],
    "bubble": Look("#d9d9d9", "#000000", "/", "#9a9a9a"),
    "optimizer": KINDS["optimizer"],
}

SPLIT: dict[str, Look] = {  # how one rank's makespan is divided (Timeline.split), in stacking order
    "alone": KINDS["forward"],
    "overlapped": Look("#56B4E9", "#000000", "/", "#2a7fb0"),
    "optimizer": KINDS["optimizer"],
    "exposed": KINDS["collective"],
    "bubble": Look("#d9d9d9", "#000000", "x", "#b0b0b0"),
}
IDLE: dict[str, Look] = {  # why a rank was idle
    "communication": KINDS["collective"],
    "dependency": Look("#9aa0a6", "#000000", ".", "#5f6368"),
    "warm-up": Look("#56B4E9", "#000000", "-", "#2a7fb0"),
    "drain": Look("#d9d9d9", "#000000", "x", "#a0a0a0"),
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
