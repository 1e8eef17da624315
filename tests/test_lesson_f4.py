"""RLHF anatomy: what breaks on ranks, in memory, in messages or in learning fails its rows; the picture shows
what was replayed.
"""

from __future__ import annotations

import importlib
from itertools import pairwise

import numpy as np
import pytest

from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.preference import online
from glasscluster.strategies.preference.held import Held
from glasscluster.strategies.preference.job import Tuning
from glasscluster.strategies.preference.ranks import tune_rank
from glasscluster.strategies.preference.rewards import Blank
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.figures.roles import blocks, roles_figure


def test_everything_that_can_break_fails_its_own_rows(monkeypatch):
    """At once, because a lesson takes seconds: hardly any training, stale weights, a copy too many, 4 bytes a
    message, other times.
    """
    f4 = importlib.import_module("glasscluster.scenarios.lessons.f4_rlhf_anatomy.program")
    build, init = ExecutionGraph.build.__func__, Held.__init__

    def padded(cls, *args):
        graph = build(cls, *args)
        graph.bytes[graph.kind == SEND] += 4
        received = np.flatnonzero(graph.match >= 0)
        graph.bytes[received] = graph.bytes[graph.match[received]]
        return graph

    def hoards(held, gpu, job, role):
        init(held, gpu, job, role)
        held.spare = held.remember(held.flat.clone(), "parameters")

    monkeypatch.setattr(ExecutionGraph, "build", classmethod(padded))
    monkeypatch.setattr(Held, "__init__", hoards)
    monkeypatch.setattr(online, "refresh", lambda cast: None)
    monkeypatch.setattr(f4, "parts_of_time", lambda *_: (1.0, 1.0, 1.0))
    taught = taught_lesson("F4")
    lab = perform(taught, Lab(taught, "threads", taught.hardware), {"sft": 120, "iterations": 1})
    held = {r.name.en for r in lab.all_checks if r.verdict == "held"}
    differences = {f"dpo: largest {what} difference from one process, float64" for what in ("loss", "weight")}
    silent = {
        "grpo: model states, rollout",
        "sft: sent, all",
        "ppo: cache of the rollout",
        "grpo: cache of the rollout",
    }
    assert held == differences | silent


def test_the_figure_of_roles_shows_the_replay():
    job = Tuning(
        "ppo",
        make_model("tiny", layers=1, hidden=16, seq=8),
        Blank(prompt_tokens=3, answer_tokens=4),
        prompts=2,
        reward="model",
    )
    line = Cluster("dgx-h100", job.ranks, "threads").run(tune_rank, job).timeline
    written = blocks(line, job.where["rollout"], 4)
    assert [(what, step) for what, step, *_ in written] == [("writes", i) for i in range(4)]
    assert all(a[3] <= b[2] for a, b in pairwise(written)), "a token comes after the one before"
    assert [what for what, *_ in blocks(line, job.where["critic"], 4)] == ["judges", "trains"]
    assert [what for what, *_ in blocks(line, job.where["reference"], 4)] == ["judges"]
    figure = plotly_figure(roles_figure(line, job.where, 4, {"writes": "w", "judges": "j", "trains": "t"}))
    assert [t.name for t in figure.data] == ["w", "j", "t"]
    assert [len(t.x) for t in figure.data] == [4, 4, 2]
    ends = [b + x for t in figure.data for b, x in zip(t.base, t.x, strict=True)]
    assert max(ends) == pytest.approx(line.makespan * 1e3, rel=1e-3)
