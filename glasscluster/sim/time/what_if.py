"""How much time it would save if one kind of work were faster: the recorded graph is replayed once for each
kind.
"""

from __future__ import annotations

from glasscluster.sim.recording.events import COMPUTE, PHASES
from glasscluster.sim.time.cost import kinds_of_work
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline


def makespans_if_faster(timeline: Timeline, factor: float = 2.0) -> dict[str, float]:
    """Return, for each kind of work, the makespan in seconds if that kind took 1/factor of its time.

    Kinds are the phases that were computed, the axes that were communicated on (all messages there), and the
    `latency` of every link.
    """
    options = dict(timeline.replay_options)
    before = options.pop("faster", {})
    makespans = {}
    for kind in kinds_of_work(timeline.graph):
        faster = {**before, kind: before.get(kind, 1.0) * factor}
        makespans[kind] = replay(
            timeline.graph, timeline.hardware, precision=timeline.precision, faster=faster, **options
        ).makespan
    latency = timeline.hardware.scaled(latency=1 / factor)
    makespans["latency"] = replay(
        timeline.graph, latency, precision=timeline.precision, faster=before, **options
    ).makespan
    return makespans


def critical_seconds(timeline: Timeline) -> dict[str, float]:
    """Return the seconds of the critical path by kind of work, with `latency` for messages in flight. They
    add up to the makespan.
    """
    graph, seconds, clock = timeline.graph, dict[str, float](), 0.0
    for row in timeline.critical_path:
        waited = float(timeline.start[row]) - clock
        if waited > 0:
            seconds["latency"] = seconds.get("latency", 0.0) + waited
        kind = PHASES[graph.phase[row]] if graph.kind[row] == COMPUTE else str(graph.axis[row])
        seconds[kind] = seconds.get(kind, 0.0) + float(timeline.end[row] - timeline.start[row])
        clock = float(timeline.end[row])
    return {k: v for k, v in seconds.items() if v > 0}
