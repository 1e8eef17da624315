"""A collective step by step: whose contributions every chunk of every rank holds, and which messages come
next.

It is computed from the recorded messages and additions, whose offsets say which chunk they belong to. So it
works for any algorithm, and shows it when an algorithm loses a contribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.sim.recording.events import COLLECTIVE, RECV, REDUCE, SEND
from glasscluster.visualize.figures.layout import CELL_AXIS, grid_cells, plain_layout
from glasscluster.visualize.figures.palette import KINDS, contrast
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.figures.timeline import size_text
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.sim.recording.graph import ExecutionGraph

MOST_RANKS = 16
LETTERS = 130  # so many letters fit across all chunks of a rank
ARROW: dict[str, Any] = {
    "xref": "x",
    "yref": "y",
    "axref": "x",
    "ayref": "y",
    "text": "",
    "showarrow": True,
    "arrowhead": 2,
}
ARROW |= {
    "arrowsize": 1.1,
    "arrowwidth": 2.5,
    "arrowcolor": KINDS["collective"].fill,
    "startstandoff": 7,
    "standoff": 7,
}
Holding = list[list[frozenset[int]]]  # [rank in the group][chunk] -> who has contributed


@dataclass(frozen=True)
class Moved:
    """One message of a step: its sender and receiver (ranks in the group), the chunks that it carries, and
    its bytes.
    """

    src: int
    dst: int
    chunks: range
    bytes: int


@dataclass
class Steps:
    """The steps of a collective: `holding[s]` is what ranks hold before step s (the last entry: at the end),
    `moves[s]` are the messages of step s.

    A chunk ends wherever some message or addition begins or ends; `chunks` are the first bytes of all chunks.
    """

    operation: str
    members: list[int]
    chunks: list[int]
    nbytes: int
    holding: list[Holding]
    moves: list[list[Moved]]


def collectives(graph: ExecutionGraph) -> list[tuple[int, int]]:
    """Return (rank, row) of each collective whose messages were recorded, once for all its ranks. Those with
    most ranks come first, among them those with most bytes.
    """
    rows = np.flatnonzero((graph.kind == COLLECTIVE) & (graph.sequence >= 0))
    native = np.array([n.endswith("/native") for n in graph.names], dtype=bool)
    first_rows, seen = [], set()
    size = np.array(
        [
            len(graph.groups[r][g][1])
            for r, g in zip(graph.rank[rows].tolist(), graph.group[rows].tolist(), strict=True)
        ]
    )
    for row in rows[np.lexsort((graph.place[rows], -graph.bytes[rows], -size.astype(int)))].tolist():
        rank, group = int(graph.rank[row]), int(graph.group[row])
        key = (group, graph.groups[rank][group][1][0], int(graph.sequence[row]))
        if key not in seen and not native[graph.op[row]]:
            seen.add(key)
            first_rows.append((rank, row))
    return first_rows


def steps_of(graph: ExecutionGraph, row: int) -> Steps:
    """Compute the steps of the collective that ends with `row`."""
    group, sequence = int(graph.group[row]), int(graph.sequence[row])
    members = list(graph.groups[int(graph.rank[row])][group][1])
    place = {rank: i for i, rank in enumerate(members)}
    mine = (graph.group == group) & (graph.sequence == sequence) & np.isin(graph.rank, members)
    rows = np.flatnonzero(mine & np.isin(graph.kind, (SEND, RECV, REDUCE))).tolist()  # topological order
    nbytes, operation = int(graph.bytes[row]), graph.names[graph.op[row]]
    touched = [r for r in rows if graph.offset[r] >= 0]
    edges = sorted(
        {0, nbytes, *(int(graph.offset[r] + size) for r in touched for size in (0, graph.bytes[r]))}
    )
    column = {edge: i for i, edge in enumerate(edges)}

    def chunks_of(r: int) -> range:
        """Return the chunks that a row covers; none when it is in staging memory."""
        first = int(graph.offset[r])
        return range(column[first], column[first + int(graph.bytes[r])]) if first >= 0 else range(0)

    depth = _depths(graph, rows)
    holding = _at_first(graph, rows, place, chunks_of, len(edges) - 1, operation)
    captured: dict[int, list[frozenset[int]]] = {}
    staged: list[list[int]] = [
        [] for _ in members
    ]  # messages that have arrived in staging memory and are not added yet, in order
    changes: dict[int, list[tuple[int, int, frozenset[int]]]] = {}
    moves: dict[int, list[Moved]] = {}
    now = [list(chunks) for chunks in holding]
    for r in rows:
        rank, kind, chunks = place[int(graph.rank[r])], graph.kind[r], chunks_of(r)
        if kind == SEND:
            captured[r] = [now[rank][c] for c in chunks]
            moves.setdefault(depth[r], []).append(
                Moved(rank, place[int(graph.peer[r])], chunks, int(graph.bytes[r]))
            )
            continue
        if kind == RECV and not chunks:
            staged[rank].append(int(graph.match[r]))
            continue
        brought = captured[int(graph.match[r])] if kind == RECV else captured[staged[rank].pop(0)]
        for c, who in zip(chunks, brought, strict=True):
            now[rank][c] = who if kind == RECV else now[rank][c] | who
            changes.setdefault(depth[r], []).append((rank, c, now[rank][c]))
    states = [holding]
    for step in range(1, max(depth.values(), default=0) + 1):
        state = [list(chunks) for chunks in states[-1]]
        for rank, chunk, who in changes.get(step, []):
            state[rank][chunk] = who
        states.append(state)
    return Steps(
        operation,
        members,
        edges[:-1],
        nbytes,
        states,
        [sorted(moves[s], key=lambda m: m.src) for s in sorted(moves)],
    )


def _fits(graph: ExecutionGraph, rank: int, row: int) -> bool:
    """Whether a collective can be drawn: it has few enough ranks, and one buffer (an all-to-all has two)."""
    return len(graph.groups[rank][int(graph.group[row])][1]) <= MOST_RANKS and not graph.names[
        graph.op[row]
    ].startswith("all_to_all")


def _depths(graph: ExecutionGraph, rows: list[int]) -> dict[int, int]:
    """Return the step, from 1, that each row belongs to: the length of the longest chain of messages up to
    it.
    """
    depth: dict[int, int] = {}
    for r in rows:
        before = [depth[d] for d in graph.dependencies(r).tolist() if d in depth]
        if graph.kind[r] == RECV:
            before.append(depth[int(graph.match[r])])
        depth[r] = max(before, default=0) + (1 if graph.kind[r] == SEND else 0)
    return depth


def _at_first(
    graph: ExecutionGraph,
    rows: list[int],
    place: dict[int, int],
    chunks_of: Callable[[int], range],
    chunks: int,
    operation: str,
) -> Holding:
    """Return what every rank holds before the first message.

    If there are additions, every rank contributes to every chunk. Otherwise a rank holds what it sends
    without having received it. In addition, the root of a scatter holds everything, and a rank that gathers
    holds the chunk that nobody sends to it.
    """
    if any(graph.kind[r] == REDUCE for r in rows):
        return [[frozenset({rank})] * chunks for rank in range(len(place))]
    holding: Holding = [[frozenset()] * chunks for _ in place]
    received: list[set[int]] = [set() for _ in place]
    sends: list[bool] = [False] * len(place)
    for r in rows:
        rank = place[int(graph.rank[r])]
        if graph.kind[r] == RECV:
            received[rank].update(chunks_of(r))
            continue
        sends[rank] = True
        for c in chunks_of(r):
            if c not in received[rank]:
                holding[rank][c] = frozenset({rank})
    for rank, got in enumerate(received):
        root = operation.startswith("scatter") and not got
        if root or (operation.startswith("gather") and not sends[rank]):
            holding[rank] = [cell if c in got else frozenset({rank}) for c, cell in enumerate(holding[rank])]
    return holding


def stepper_figure(graph: ExecutionGraph, lang: str = "en", row: int | None = None) -> Picture | None:
    """Draw a table of ranks (rows) and chunks (columns) with a slider over the steps. Returns None when no
    collective of at most 16 ranks recorded its messages.
    """

    if row is None:
        fitting = [r for rank, r in collectives(graph) if _fits(graph, rank, r)]
        if not fitting:
            return None
        row = fitting[0]
    steps = steps_of(graph, row)
    n, k = len(steps.members), len(steps.chunks)
    views = [_view(steps, s, lang) for s in range(len(steps.holding))]
    first = views[0]
    figure = Picture(
        trace(
            "bar",
            **grid_cells(n, k, inset=0.1),
            marker={"color": first["colour"], "line": {"color": first["line"], "width": first["width"]}},
            text=first["text"],
            textfont={"color": first["ink"], "size": 14},
            customdata=first["hover"],
        )
    )
    listed = [
        {
            "label": str(s),
            "method": "update",
            "args": [
                {
                    "marker.color": [v["colour"]],
                    "marker.line.color": [v["line"]],
                    "marker.line.width": [v["width"]],
                    "text": [v["text"]],
                    "textfont.color": [v["ink"]],
                    "customdata": [v["hover"]],
                },
                {"annotations": v["notes"]},
            ],
        }
        for s, v in enumerate(views)
    ]
    figure.update_layout(**plain_layout(190 + 46 * n, left=80, top=62))
    names = [f"{word('rank', lang)} {m}" for m in steps.members]
    across = {
        "title": {"text": word("chunk_axis", lang, size=size_text(steps.nbytes / max(k, 1)))},
        "tickvals": list(range(k)),
    }
    slider = {
        "active": 0,
        "steps": listed,
        "currentvalue": {"prefix": word("steps_done", lang) + " ", "font": {"size": 15}},
        "pad": {"t": 46},
        "len": 1.0,
    }
    figure.update_layout(
        uniformtext={"minsize": 9, "mode": "show"},
        xaxis={**across, "range": [-0.6, k - 0.4], **CELL_AXIS},
        yaxis={"tickvals": list(range(n)), "ticktext": names, "range": [n - 0.4, -0.6], **CELL_AXIS},
        annotations=first["notes"],
        sliders=[slider],
    )
    return figure


def _view(steps: Steps, s: int, lang: str) -> dict[str, Any]:
    """Return the colours, texts and arrows that show the state before step s."""
    n, k = len(steps.members), len(steps.chunks)
    cells = [(r, c) for r in range(n) for c in range(k)]
    held = [steps.holding[s][r][c] for r, c in cells]
    before = [steps.holding[max(s - 1, 0)][r][c] for r, c in cells]
    full = max(len(h) for h in (x for row in steps.holding[-1] for x in row))
    shares = [len(h) / full if full else 0.0 for h in held]
    changed = [a != b for a, b in zip(held, before, strict=True)]
    next_moves = steps.moves[s] if s < len(steps.moves) else []
    done = (
        word("step_over", lang)
        if not next_moves
        else word("step_next", lang, step=s + 1, messages=len(next_moves))
    )
    heading = {
        "text": f"<b>{steps.operation}</b> · {done}",
        "x": 0,
        "y": 1,
        "yanchor": "bottom",
        "xanchor": "left",
        "yshift": 8,
    }
    notes = [{**heading, "xref": "paper", "yref": "paper", "showarrow": False, "font": {"size": 16}}]
    middle = {m: (m.chunks.start + m.chunks.stop - 1) / 2 for m in next_moves}
    notes += [{"x": middle[m], "y": m.dst, "ax": middle[m], "ay": m.src, **ARROW} for m in next_moves]
    who = [",".join(str(steps.members[i]) for i in sorted(h)) for h in held]
    return {
        "colour": [_shade(x) for x in shares],
        "ink": ["#ffffff" if contrast(_shade(x), "#ffffff") >= 4.5 else "#000000" for x in shares],
        "line": [KINDS["collective"].fill if x else "#ffffff" for x in changed],
        "width": [4 if x else 1 for x in changed],
        "text": [_short(h, full, steps.members, LETTERS // k, lang) for h in held],
        "hover": [
            f"{word('rank', lang)} {steps.members[r]}, {word('chunk', lang)} "
            f"{c}<br>{word('sum_of', lang)} {w or '—'}"
            for (r, c), w in zip(cells, who, strict=True)
        ],
        "notes": notes,
    }


def _short(held: frozenset[int], full: int, members: list[int], room: int, lang: str) -> str:
    """List the contributors to a cell, or write how many of how many there are if the list is longer than
    `room` letters.
    """
    if len(held) == full and full > 2 and len(word("all_ranks", lang)) <= room:
        return word("all_ranks", lang)
    named = "+".join(str(members[i]) for i in sorted(held))
    return named if len(named) <= min(room, 9) else f"{len(held)}/{full}"


def _shade(share: float) -> str:
    """Return a colour from white to blue, in so few steps that the eye can distinguish them."""
    low, high = (238, 243, 248), (0, 114, 178)
    return (
        "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))
        if share
        else "#ffffff"
    )
