"""Ranks that run programs: the GPU a program holds, its communicators, collectives, backends.

Writes into a recording.
"""
