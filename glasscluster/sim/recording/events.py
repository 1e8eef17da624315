"""The words of the execution graph: kinds of event, phases, purposes of a message, categories of memory."""

from __future__ import annotations

COMPUTE, SEND, RECV, REDUCE, COLLECTIVE, BEGIN, HOST = range(7)
KINDS = ("compute", "send", "recv", "reduce", "collective", "begin", "host")

PHASES = ("other", "forward", "backward", "weight", "recompute", "optimizer")
OTHER, FORWARD, BACKWARD, WEIGHT, RECOMPUTE, OPTIMIZER = range(6)

PURPOSES = ("activations", "gradients", "parameters", "scalars", "data")
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "buffers")
AXES = ("pp", "dp", "cp", "tp", "ep")  # slowest first: rank = ((pp·DP + dp)·CP + cp)·TP + tp

LANES_PER_GROUP = 6  # stream, sends, receives, launches of collectives; sends, receives of the program
