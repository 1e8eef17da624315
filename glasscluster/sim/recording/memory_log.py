"""What the memory ledger writes down of a step: its records, what they are called, and the columns that a
file keeps.

    log         (clock, category, change in bytes, number of the storage)
    waits       (clock, lane, order in the lane) of each wait
    before      (number, category, bytes) of what lived when the step began

Questions about it, in program order and over virtual time, are sim/time/memory_history.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

NAMELESS = "without a name"  # what nobody named and no recorded operation made
TABLES = {"log": 4, "waits": 3, "before": 3}  # columns of each


@dataclass(frozen=True)
class Resident:
    """Live storages of one category and name.

    A storage that was given no name is called after the operation that made it, with its layer and phase.
    """

    category: str
    name: str
    bytes: int
    count: int = 1
    layer: int = -1
    phase: str = ""

    @property
    def called(self) -> str:
        """What people read: such as `layer 3 forward: softmax`, or the name that was given."""
        where = " ".join(w for w in (f"layer {self.layer}" if self.layer >= 0 else "", self.phase) if w)
        return ": ".join(word for word in (where, self.name) if word) or NAMELESS

    def __str__(self) -> str:
        times = f" (x {self.count})" if self.count > 1 else ""
        return f"{self.category}, {self.called}{times}: {self.bytes:,} bytes"

    def as_dict(self) -> dict[str, Any]:
        """The fields, and `called`, for JSON."""
        return {**asdict(self), "called": self.called}


def largest(held: Iterable[tuple[str, str, int, str, int]], top: int) -> list[Resident]:
    """The `top` residents of storages given as (category, phase, layer, name, bytes); those of one name
    together, and all buckets.
    """
    groups: dict[tuple[str, str, int, str], list[int]] = {}
    for category, phase, layer, name, nbytes in held:
        groups.setdefault((category, phase, layer, _NUMBERED.sub("bucket", name)), []).append(nbytes)
    residents = [
        Resident(
            category, plain_operation(name), sum(sizes), len(sizes), layer, "" if phase == "other" else phase
        )
        for (category, phase, layer, name), sizes in groups.items()
    ]
    return sorted(residents, key=lambda r: (-r.bytes, r.category, r.called))[:top]


_NUMBERED = re.compile(r"^bucket \d+")
_SPOKEN = {
    "addmm": "linear",
    "mm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "clone": "copy",
    "_to_copy": "copy",
}


def plain_operation(name: str) -> str:
    """An operator's name for people: `glasscluster.softmax_forward` is softmax, `addmm` is a linear layer."""
    if " " in name:
        return name
    short = name.removeprefix("glasscluster.").split(".")[0]
    return _SPOKEN.get(short, short.removeprefix("native_").removesuffix("_forward").strip("_"))


# ---- files -------------------------------------------------------------------------------------------------
def as_columns(memory: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every rank's memory as flat whole-number columns for a file, and the rest of it as JSON."""
    names = sorted({name for m in memory.values() for name in m["named"].values()})
    number = {name: i for i, name in enumerate(names)}
    columns = {}
    for rank, m in sorted(memory.items()):
        for table, width in TABLES.items():  # column by column, where neighbours look alike
            columns[f"memory_{table}_{rank}"] = (
                np.asarray(m[table], dtype=np.int64).reshape(-1, width).T.reshape(-1)
            )
        columns[f"memory_named_{rank}"] = np.array(
            [[*m["named"]], [number[n] for n in m["named"].values()]], dtype=np.int64
        ).reshape(-1)
    return columns, {
        "base": {str(r): [int(x) for x in m["base"]] for r, m in sorted(memory.items())},
        "names": names,
    }


def from_columns(columns: Mapping[str, np.ndarray], beside: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Undo `as_columns`."""
    memory = {}
    for rank, base in beside["base"].items():
        tables: dict[str, Any] = {
            t: columns[f"memory_{t}_{rank}"].reshape(w, -1).T for t, w in TABLES.items()
        }
        numbers, names = columns[f"memory_named_{rank}"].reshape(2, -1).tolist()
        memory[int(rank)] = {
            "base": base,
            **tables,
            "named": {n: beside["names"][i] for n, i in zip(numbers, names, strict=True)},
        }
    return memory
