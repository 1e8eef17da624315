"""Ranks that run programs: the GPU a program holds, its communicators, collectives, backends.

What ranks do is written into a recording.
"""
