"""Lessons about the model and one GPU: every row can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glasscluster.model.kernels import rope
from glasscluster.model.parallel import IGNORE
from glasscluster.model.text import data
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.a1_attention_by_hand import program as a1
from glasscluster.scenarios.lessons.a2_masks import program as a2
from glasscluster.scenarios.lessons.a4_rope import program as a4
from glasscluster.scenarios.lessons.a5_where_the_norm_goes import program as a5
from glasscluster.scenarios.lessons.a6_bert_vs_gpt import program as a6
from glasscluster.sim.recording.events import COMPUTE, PHASES
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time import cost


class Untrained(Lab):
    """Leaves the GPT out: what is tested here is the lesson's own rows."""

    loss = 5.5

    def train(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(run=SimpleNamespace(results=[SimpleNamespace(losses=[self.loss])]))


def failed(id_: str, kind: type[Lab] = Untrained, **options: Any) -> set[str]:
    taught = taught_lesson(id_)
    return {
        r.name.en
        for r in perform(taught, kind(taught, "threads", taught.hardware), options).checks
        if r.verdict == "failed"
    }


def altered(monkeypatch: pytest.MonkeyPatch, change: Callable[[ExecutionGraph], None]) -> None:
    """Every recording is changed before anybody looks at it."""
    build = ExecutionGraph.build.__func__

    def changed(cls: Any, *args: Any) -> ExecutionGraph:
        graph = build(cls, *args)
        change(graph)
        return graph

    monkeypatch.setattr(ExecutionGraph, "build", classmethod(changed))


def more(column: str) -> Callable[[ExecutionGraph], None]:
    """One more, in every operation that has any."""

    def change(graph: ExecutionGraph) -> None:
        values = getattr(graph, column)
        values[(graph.kind == COMPUTE) & (values > 0)] += 1

    return change


def test_a_wrong_divisor_other_costs_and_another_first_loss_fail_a1(monkeypatch):
    by_hand = a1.by_hand
    with monkeypatch.context() as patch:
        patch.setattr(a1, "by_hand", lambda *args: by_hand(*args[:-1], 2))  # half the heads: other roots
        assert failed("A1") == {"largest difference of attention by hand from torch's MultiheadAttention"}
    lengths = (64, 128, 256, 512)
    with monkeypatch.context() as patch:
        altered(patch, more("flops"))
        assert failed("A1") == {f"FLOPs of a head of d = 64 over {n} tokens" for n in lengths} | {
            "power of the length with which FLOPs grow"
        }
    with monkeypatch.context() as patch:
        altered(patch, more("bytes"))
        assert failed("A1") == {f"bytes of a head of d = 64 over {n} tokens, fp32" for n in lengths}
    worse = type("Worse", (Untrained,), {"loss": 5.7})
    assert failed("A1", worse) == {"first loss of a GPT with a vocabulary of 256"}
    honest = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: honest(*size, **how) * 1.05)
    assert {f"variance of q·k, d = {d}" for d in (8, 32, 128, 512)} <= failed("A1")


def test_a_mask_that_leaks_and_a_relation_of_another_size_fail_a2(monkeypatch):
    honest, run = a2.allowed, a2.transformer
    moved = "pairs (i, j) in which token j influences output i"
    with monkeypatch.context() as patch:
        patch.setattr(a2, "allowed", lambda kind, n: honest("causal" if kind == "packed" else kind, n))
        assert f"packed documents: {moved}" in failed("A2")

    def leaking(x: Any, weights: Any, mask: Any) -> Any:
        hole = mask.clone()
        hole[2, 9] = True
        return run(x, weights, hole)

    monkeypatch.setattr(a2, "transformer", leaking)
    rows = {
        f"{kind}: {row}"
        for kind in ("causal", "packed documents")
        for row in (moved, "pairs that are not as the mask says")
    }
    assert failed("A2") >= rows | {"largest influence of one packed document on another"}


def test_positions_that_do_not_turn_evenly_and_another_base_fail_a4(monkeypatch):
    honest = rope.frequencies
    with monkeypatch.context() as patch:
        tables = rope._tables

        def uneven(spans: Any, *how: Any) -> Any:
            cos, sin = tables(spans, *how)
            return cos, sin * 1.001

        patch.setattr(rope, "_tables", uneven)
        found = failed("A4")
    for layout in ("columns i and i + d/2 (half)", "columns 2i and 2i + 1 (interleaved)"):
        assert {
            f"{layout}: largest difference of scores at the same distance",
            f"{layout}: largest change of a vector's length",
        } <= found
        assert f"{layout}: largest change of a score when all positions shift by 1000" in found
    monkeypatch.setattr(
        a4,
        "frequencies",
        lambda d, base, scaling="none", *rest: honest(d, base * (2 if scaling == "ntk" else 1), "none"),
    )
    assert {"NTK, s = 4: the slowest pair is stretched by"} <= failed("A4")


def test_norms_in_each_other_s_place_fail_a5(monkeypatch):
    swapped = dict(a5.KINDS) | {
        "post": a5.KINDS["pre"],
        "pre": a5.KINDS["post"],
        "pre, RMSNorm": ("post", "rmsnorm"),
    }
    monkeypatch.setattr(a5, "KINDS", swapped)
    monkeypatch.setattr(
        a5, "rms_norm", lambda x, w, eps: torch.nn.functional.rms_norm(x, w.shape, w, 2 * eps + 1e-3)
    )
    found = failed("A5", layers=16, h=32)
    assert {
        f"{kind}: power of L in the last MLP's gradient" for kind in ("Pre-LN", "Pre-RMSNorm", "Post-LN")
    } <= found
    assert {
        "Pre-LN: residual stream after 16 layers over that after 4",
        "Post-LN: residual stream after 16 layers",
    } <= found
    assert "largest difference of RMSNorm, output and gradients, from torch's" in found


def test_other_shares_of_masked_tokens_fail_a6(monkeypatch):
    honest = data.masked

    def spread(tokens: Any, vocab: int, step: int, seed: int) -> Any:
        inputs, targets = honest(tokens, vocab, step, seed)
        targets[:, 0], inputs[:, 1] = tokens[:, 0], 7
        inputs[targets != IGNORE] = vocab - 1
        return inputs, targets

    for place in (data, a6):  # the batches of the training, and the lesson's own look at many sequences
        monkeypatch.setattr(place, "masked", spread)
    found = failed("A6", steps=1)
    assert {
        "tokens with a loss, BERT",
        "share of chosen tokens that are hidden",
        "tokens outside the chosen ones that were changed",
    } <= found
    assert "tokens with a loss, causal" not in found


def test_an_epsilon_that_is_another_fails_the_four_terms(monkeypatch):
    honest = torch.nn.functional.layer_norm
    monkeypatch.setattr(
        torch.nn.functional,
        "layer_norm",
        lambda x, shape, w=None, b=None, eps=1e-5: honest(x, shape, w, b, eps * 1.01),
    )
    assert failed("A9", steps=1) == {
        f"{when} training: the four terms less the score, largest" for when in ("before", "after")
    }


def test_counts_and_times_that_differ_fail_the_roofline(monkeypatch):
    names = ("square matmul", "thin matmul", "matrix-vector product", "flash attention")
    with monkeypatch.context() as patch:
        altered(patch, more("flops"))
        assert {f"{n}: FLOPs of matrix products" for n in names} <= failed("B1")
    with monkeypatch.context() as patch:
        altered(patch, more("bytes"))
        assert len([n for n in failed("B1") if n.endswith("bytes through memory")]) == 8
    honest = cost.costs

    def slower(*args: Any, **how: Any) -> Any:
        found = honest(*args, **how)
        return replace(found, duration=found.duration * 1.001)

    monkeypatch.setattr("glasscluster.sim.time.replay.costs", slower)
    found = failed("B1")
    assert {f"{n}: FLOP/s reached" for n in names} <= found
    assert {
        f"largest error of the roofline's times on {m}"
        for m in ("dgx-h100", "dgx-a100-80gb", "pcie-4090", "classroom")
    } <= found


def test_one_flop_more_fails_the_rows_of_b7(monkeypatch):
    def change(graph: ExecutionGraph) -> None:
        for phase in ("forward", "backward", "recompute"):
            rows = np.flatnonzero(
                (graph.kind == COMPUTE) & (graph.phase == PHASES.index(phase)) & (graph.flops > 0)
            )
            graph.flops[rows[:1]] += 1

    altered(monkeypatch, change)
    ran = {f"FLOPs that ran, {k}" for k in ("none", "selective", "full")}
    found = failed("B7", Lab, layers=2, hidden=32, seq=16, batch=2)
    assert ran | {"FLOPs forward, a step", "FLOPs backward, a step"} <= found
