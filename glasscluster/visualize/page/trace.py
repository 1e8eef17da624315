"""The timeline as a Chrome/Perfetto trace: one process a rank, one thread a lane, an arrow a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasscluster.base.files import write_text
from glasscluster.sim.recording.events import (
    BEGIN,
    COLLECTIVE,
    COMPUTE,
    KINDS,
    LANES_PER_GROUP,
    PHASES,
    RECV,
    SEND,
)

if TYPE_CHECKING:
    from glasscluster.sim.time.timeline import Timeline

LANES = ("collectives", "sends", "receives", "launches", "messages out", "messages in")


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace as an object; times in microseconds. Equal timelines give equal objects."""
    g, events = timeline.graph, []
    seen: set[tuple[int, int]] = set()
    for row in g.canonical.tolist():
        rank, lane = int(g.rank[row]), int(g.lane[row])
        if (rank, lane) not in seen:
            seen.add((rank, lane))
            events.append(
                {
                    "ph": "M",
                    "name": "thread_name",
                    "pid": rank,
                    "tid": lane,
                    "args": {"name": _lane_name(g, rank, lane)},
                }
            )
        if g.kind[row] == BEGIN:
            continue
        begun, ended = float(timeline.start[row]), float(timeline.end[row])
        events.append(
            {
                "ph": "X",
                "name": _name(g, row),
                "cat": KINDS[g.kind[row]],
                "pid": rank,
                "tid": lane,
                "ts": round(begun * 1e6, 6),
                "dur": round((ended - begun) * 1e6, 6),
                "args": _arguments(g, row),
            }
        )
        if g.kind[row] == RECV and g.match[row] >= 0:
            sender = int(g.match[row])
            common = {"name": "message", "cat": "message", "id": row}
            left = float(timeline.start[sender]) * 1e6
            events.append(
                {
                    "ph": "s",
                    **common,
                    "pid": int(g.rank[sender]),
                    "tid": int(g.lane[sender]),
                    "ts": round(left, 6),
                }
            )
            events.append(
                {"ph": "f", "bp": "e", **common, "pid": rank, "tid": lane, "ts": round(ended * 1e6, 6)}
            )
    names = [
        {"ph": "M", "name": "process_name", "pid": r, "args": {"name": f"rank {r}"}} for r in range(g.ranks)
    ]
    about = {"hardware": timeline.hardware.name, "time": "measured" if timeline.measured else "virtual"}
    return {"traceEvents": names + events, "displayTimeUnit": "ns", "otherData": about}


def write_chrome_trace(timeline: Timeline, path: str | Path) -> Path:
    """Write the trace; it opens in ui.perfetto.dev and chrome://tracing."""
    path = Path(path)
    write_text(path, json.dumps(chrome_trace(timeline), separators=(",", ":"), sort_keys=True))
    return path


def _lane_name(g: Any, rank: int, lane: int) -> str:
    if lane == 0:
        return "compute"
    group, which = divmod(lane - 1, LANES_PER_GROUP)
    return f"{g.axis_of(rank, group) or 'world'} {LANES[which]}"


def _name(g: Any, row: int) -> str:
    label = g.names[g.label[row]] if g.label[row] >= 0 else ""
    return f"{g.names[g.op[row]]}{' · ' + label if label else ''}"


def _arguments(g: Any, row: int) -> dict[str, Any]:
    said: dict[str, Any] = {"phase": PHASES[g.phase[row]], "bytes": int(g.bytes[row])}
    if g.kind[row] == COMPUTE:
        said |= {
            "flops": int(g.flops[row]),
            "layer": int(g.layer[row]),
            "micro_batch": int(g.micro_batch[row]),
        }
    elif g.kind[row] in (SEND, RECV):
        said["peer"] = int(g.peer[row])
    elif g.kind[row] == COLLECTIVE:
        said["sequence"] = int(g.sequence[row])
    return said
