"""The cluster: ranks, wires, memory, time."""
