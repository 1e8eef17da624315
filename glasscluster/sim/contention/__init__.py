"""Replay with contention: messages under way share the links of their routes max-min fairly."""

from glasscluster.sim.contention.event_loop import Messages, Routes, Shared, messages_of, replay_shared, routes_of

__all__ = ["Messages", "Routes", "Shared", "messages_of", "replay_shared", "routes_of"]
