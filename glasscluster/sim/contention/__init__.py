"""Replay with contention."""

from glasscluster.sim.contention.history import RateHistory
from glasscluster.sim.contention.messages import Messages, messages_of
from glasscluster.sim.contention.replay import ContendedReplay, replay_shared
from glasscluster.sim.contention.routes import Routes, routes_of

__all__ = ["ContendedReplay", "Messages", "RateHistory", "Routes", "messages_of", "replay_shared", "routes_of"]
