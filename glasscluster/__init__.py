"""GlassCluster: a GPU cluster you can see through.

    from glasscluster import Cluster
    run = Cluster("classroom", gpus=4).run(program)

Names are imported when first used, so `import glasscluster` is quick and brings no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glasscluster.base.display import declare

if TYPE_CHECKING:
    from glasscluster.sim.ranks.collectives.registry import collective
    from glasscluster.sim.recording.graph import ExecutionGraph
    from glasscluster.sim.run import Cluster, Run
    from glasscluster.sim.time.replay import replay
    from glasscluster.sim.time.timeline import Timeline
    from glasscluster.strategies.plan import Plan

__version__ = "0.1.0"
__all__ = ["Cluster", "ExecutionGraph", "Plan", "Run", "Timeline", "__version__", "collective", "replay"]

_HOME = {
    "Cluster": "glasscluster.sim.run",
    "Run": "glasscluster.sim.run",
    "ExecutionGraph": "glasscluster.sim.recording.graph",
    "Timeline": "glasscluster.sim.time.timeline",
    "Plan": "glasscluster.strategies.plan",
    "collective": "glasscluster.sim.ranks.collectives.registry",
    "replay": "glasscluster.sim.time.replay",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"glasscluster has no {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)


declare(
    {
        "timeline": "glasscluster.visualize.figures.timeline:timeline_figure",
        "figure": "glasscluster.visualize.figures.picture:plotly_figure",
        "still": "glasscluster.visualize.figures.still:timeline_still",
        "show": "glasscluster.visualize.page.show:show",
        "report": "glasscluster.visualize.page.one_run:write_run_report",
    }
)
