"""Networks, which are directed graphs of links with explicit routes: named ones, those of the catalogue's
clusters, and your own.
"""

from glasscluster.sim.time.network.blocks import Cable, gpu
from glasscluster.sim.time.network.clusters import of_hardware
from glasscluster.sim.time.network.named import BUILDERS, build
from glasscluster.sim.time.network.own import from_graph, read
from glasscluster.sim.time.network.topology import Topology

__all__ = ["BUILDERS", "Cable", "Topology", "build", "from_graph", "gpu", "of_hardware", "read"]
