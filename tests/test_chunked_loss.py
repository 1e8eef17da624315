"""A loss in chunks equals the whole one, holds one chunk of logits at a time, and its bytes are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import differences, run_plan, worst
from plans import build, every

from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels import chunked_loss
from glasscluster.model.kernels.chunked_loss import ChunkedCrossEntropy, slices
from glasscluster.model.layers.dropout import Draw
from glasscluster.model.parallel import IGNORE, Unsharded
from glasscluster.model.text.mixture import Mixture
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.sim.recording.events import CATEGORIES, SEND
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.strategies.judge import accounts
from glasscluster.strategies.judge.probes import Probes
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel

MODEL = {"layers": 4, "hidden": 16, "heads": 4, "seq": 6, "vocab": 42, "loss": "chunked", "loss_chunks": 4}
TOLERANCE = 1e-10
ACTIVATIONS = CATEGORIES.index("activations")
KEYS = ("loss_logits", "loss_input_gradient", "loss_weight_gradient")


# ---- one head ----------------------------------------------------------------------------------------------
def head(seed: int = 0, dtype: torch.dtype = torch.float64, tokens: int = 10, h: int = 8, vocab: int = 13):
    """Input, table, bias and targets, two of which carry no loss."""
    torch.manual_seed(seed)
    x, table = torch.randn(2, tokens // 2, h), torch.randn(vocab, h)
    targets = torch.randint(0, vocab, (2, tokens // 2))
    targets[0, 1] = targets[1, 3] = IGNORE
    return x.to(dtype), table.to(dtype), torch.randn(vocab).to(dtype), targets


def whole(x, table, bias, targets, z_loss, cap):
    """Loss and gradients by torch's own operators; the gradient also has that of the z-loss."""
    leaves = [t.clone().requires_grad_() for t in (x, table, bias)]
    z = F.linear(*leaves).flatten(0, 1)
    z = cap * torch.tanh(z / cap) if cap else z
    z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
    loss = F.cross_entropy(z, targets.flatten(), reduction="sum", ignore_index=IGNORE)
    counted = targets.flatten() != IGNORE
    (3 * (loss + z_loss * (z.logsumexp(-1).square() * counted).sum())).backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def by_rank(gpu, x, table, bias, targets, chunks, z_loss, cap):
    """One rank's loss and gradients: its rows of the padded table."""
    parallel = TensorParallel(gpu.comm) if gpu.size > 1 else Unsharded()
    each = -(-len(table) // gpu.size)
    missing = each * gpu.size - len(table)
    mine = F.pad(table, (0, 0, 0, missing)).split(each)[gpu.rank]
    leaves = [t.clone().requires_grad_() for t in (x, mine, F.pad(bias, (0, missing)).split(each)[gpu.rank])]
    how = parallel, chunks, len(table), z_loss, cap, True
    loss = ChunkedCrossEntropy.apply(parallel.f(leaves[0]), *leaves[1:], targets, *how)
    (3 * loss).backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunks", [1, 3, 10, 99])
@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_loss_and_gradients_are_those_of_the_whole_loss_to_1e_12(gpus, chunks, z_loss, cap):
    x, table, bias, targets = head()
    loss, (d_x, d_table, d_bias) = whole(x, table, bias, targets, z_loss, cap)
    cluster = Cluster("classroom", gpus, "threads")
    results = cluster.run(by_rank, x, table, bias, targets, chunks, z_loss, cap, record=False).results
    for found, by_x, _, _ in results:
        assert float(found) == pytest.approx(float(loss), rel=1e-12)
        torch.testing.assert_close(by_x, d_x, rtol=1e-12, atol=1e-12)
    tables, biases = torch.cat([r[2] for r in results]), torch.cat([r[3] for r in results])
    torch.testing.assert_close(tables[: len(table)], d_table, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(biases[: len(table)], d_bias, rtol=1e-12, atol=1e-12)
    assert not tables[len(table) :].any()  # the padding gets no gradient


def errors(dtype: torch.dtype, chunks: int) -> tuple[float, float]:
    """Largest error of the table's gradient against float64: of the whole loss, and of chunks."""
    inputs = head(dtype=dtype, tokens=512, h=32, vocab=64)
    exact = whole(*(t.double() if t.is_floating_point() else t for t in inputs), 0.0, 0.0)[1][1]
    plain = whole(*inputs, 0.0, 0.0)[1][1]
    mine = Cluster("classroom", 1, "threads").run(by_rank, *inputs, chunks, 0.0, 0.0, record=False).results
    return float((plain - exact).abs().max()), float((mine[0][2] - exact).abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_many_chunks_in_16_bits_are_at_most_twice_as_far_from_float64_as_the_whole_loss(dtype, monkeypatch):
    plain, mine = errors(dtype, 64)
    assert mine <= 2 * plain
    if dtype == torch.bfloat16:  # added up in 16 bits they are not
        monkeypatch.setattr(chunked_loss, "accumulation_dtype", lambda dtype: dtype)
        assert errors(dtype, 64)[1] > 2 * plain


def test_a_second_backward_through_the_same_loss_is_refused_and_without_gradients_none_are_made():
    x, table, bias, targets = head()
    leaf = x.clone().requires_grad_()
    how = Unsharded(), 3, len(table), 0.0, 0.0
    loss = ChunkedCrossEntropy.apply(leaf, table, bias, targets, *how, True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    config = make_model("tiny", **MODEL)
    stage, tokens = GPTStage(config), torch.randint(0, 42, (2, 6))
    counted = GPTStage(config.model_copy(update={"loss": "whole"}))
    with torch.no_grad():
        assert stage(tokens, tokens) == pytest.approx(float(counted(tokens, tokens)), rel=1e-5)


def test_chunks_are_of_equal_size_but_for_the_last():
    assert [c.stop - c.start for c in slices(10, 4)] == [3, 3, 3, 1]
    assert [c.stop - c.start for c in slices(3, 8)] == [1, 1, 1]


# ---- in every layout ---------------------------------------------------------------------------------------
LAYOUTS = {
    "one": ({}, {}),
    "tp pp dp": ({"tp": 2, "pp": 2, "dp": 2}, {}),
    "sequence-parallel zero 3": ({"tp": 2, "dp": 2, "sequence_parallel": True, "zero": 3}, {"z_loss": 0.1}),
    "zero-bubble, untied": ({"tp": 2, "pp": 2, "schedule": "zb-h1"}, {"tied": False}),
    "zero-bubble, both ends on one rank": ({"pp": 2, "schedule": "zb-v", "virtual_stages": 2}, {}),
    "gpipe": ({"pp": 2, "schedule": "gpipe"}, {"tied": False}),
    "cp": ({"cp": 2, "micro_batch": 2}, {"loss_chunks": 5}),
    "tp overlap": ({"tp": 4, "sequence_parallel": True, "tp_overlap": True}, {"vocab": 41, "seq": 8}),
    "capped": ({"tp": 2, "dp": 2}, {"logit_cap": 0.05, "z_loss": 0.1}),
    "masked": ({"tp": 2, "pp": 2}, {"objective": "masked"}),
    "recompute": ({"dp": 2, "recompute": "full"}, {"dropout": 0.1, "attention": "unfused"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plan_with_a_loss_in_chunks_equals_one_device_with_a_whole_one(name):
    options, shape = LAYOUTS[name]
    plan, model = make_plan(**{"global_batch": 8, **options}), make_model("tiny", **{**MODEL, **shape})
    assert worst(differences(plan, model)) <= TOLERANCE


def test_packed_documents_equal_one_device(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat.\n\non the mat.\n\n" * 9)
    plan, model = (
        make_plan(dp=2, tp=2, global_batch=4),
        make_model("tiny", **{**MODEL, "vocab": 256, "seq": 24}),
    )
    found = differences(plan, model, data=Mixture(((str(tmp_path / "a.txt"), 1.0),), None, packed=True))
    assert worst(found) <= TOLERANCE


@pytest.mark.parametrize("choice", every(12))
def test_plans_of_the_covering_list_equal_one_device_and_all_rows_hold(choice):
    plan, model = build(choice)
    model = model.model_copy(update={"loss": "chunked", "loss_chunks": 3})
    assert worst(differences(plan, model, steps=2)) <= TOLERANCE
    held(plan, model)


def test_a_wrong_gradient_of_the_last_chunk_is_found(monkeypatch):
    honest, seen = chunked_loss.loss_and_gradient, []

    def wrong(z, *more):
        loss = honest(z, *more)
        seen.append(loss)
        return loss if len(seen) % 3 else loss + 0 * z.zero_().sum()  # three chunks a micro-batch

    monkeypatch.setattr(chunked_loss, "loss_and_gradient", wrong)
    plan, model = make_plan(global_batch=4), make_model("tiny", **MODEL)
    assert worst(differences(plan, model)) > 1e-3


# ---- recorded and counted ----------------------------------------------------------------------------------
def rows_of(plan, model, **options):
    """The ledger's rows of a run, by key."""
    run = run_plan(plan, model, loss_scale=ScaleRule(initial=1.0), **options)
    return {r.key: r for r in accounts.rows(Judged(plan, model, run.graph, run.results))}, run


def held(plan, model) -> None:
    """All rows hold, those of the loss among them."""
    rows, _ = rows_of(plan, model)
    assert set(KEYS) <= set(rows)
    for row in rows.values():
        assert row.why is not None or row.predicted == row.counted, row.key


ALL = [(name, "fp32") for name in LAYOUTS] + [
    (name, precision)
    for name in ("tp pp dp", "zero-bubble, untied", "masked")
    for precision in ("fp64", "bf16", "fp16")
]


@pytest.mark.parametrize(("name", "precision"), ALL)
def test_rows_of_bytes_and_memory_hold_and_a_dry_run_records_the_same(name, precision):
    options, shape = LAYOUTS[name]
    plan = make_plan(**{"global_batch": 8, "precision": precision, **options})
    model = make_model("tiny", **{**MODEL, **shape})
    held(plan, model)
    real, dry = (run_plan(plan, model, b, loss_scale=ScaleRule(initial=1.0)) for b in ("threads", "dry"))
    assert real.graph.difference(dry.graph) is None
    assert real.peak_memory() == dry.peak_memory()


def test_gpipe_keeps_a_gradient_of_the_table_for_each_micro_batch_and_1f1b_one():
    model = make_model("tiny", **MODEL)
    for schedule, micro_batches in (("gpipe", 8), ("1f1b", 1)):
        rows, _ = rows_of(make_plan(pp=2, global_batch=8, schedule=schedule), model)
        assert rows["loss_weight_gradient"].counted == micro_batches * 42 * 16 * 4


@pytest.mark.parametrize("options", [{}, {"tp": 2}, {"pp": 2, "schedule": "zb-h1"}], ids=str)
def test_flops_and_bytes_sent_are_those_of_the_whole_loss(options):
    plan, model = make_plan(**{"global_batch": 4, **options}), make_model("tiny", **MODEL)
    mine, other = (run_plan(plan, m).graph for m in (model, model.model_copy(update={"loss": "whole"})))
    assert mine.flops.sum() == other.flops.sum()
    assert not mine.info.get("unknown_flops")
    assert mine.bytes[mine.kind == SEND].sum() == other.bytes[other.kind == SEND].sum()


def test_no_tensor_is_as_large_as_the_logits_of_all_tokens():
    shape = {**MODEL, "vocab": 4000, "seq": 32, "loss_chunks": 8}
    plan, model = make_plan(global_batch=2, micro_batch=2), make_model("tiny", **shape)
    largest = {}
    for loss in ("whole", "chunked"):
        history = MemoryHistory(run_plan(plan, model.model_copy(update={"loss": loss})).graph, 0)
        made = history.log[history.log[:, 1] == ACTIVATIONS, 2].tolist()
        largest[loss] = max(made)
    logits = 64 * 4000 * 4
    assert largest["whole"] == logits
    assert largest["chunked"] == 4000 * 16 * 4 < logits / 3  # the table's gradient


def test_a_chunk_that_is_not_let_go_fails_the_row(monkeypatch):
    kept, honest = [], chunked_loss.loss_and_gradient
    monkeypatch.setattr(
        chunked_loss, "loss_and_gradient", lambda z, *args: (kept.append(z), honest(z, *args))[1]
    )
    rows, _ = rows_of(make_plan(global_batch=4), make_model("tiny", **MODEL))
    assert rows["loss_logits"].counted > rows["loss_logits"].predicted


def test_the_8b_step_is_predicted_with_less_memory_and_the_same_work():
    model = make_model("llama3-8b", layers=4)
    plan = make_plan(dp=8, zero=1, global_batch=8, precision="bf16", recompute="full")
    found = {
        loss: predict(plan, model.model_copy(update={"loss": loss}), "dgx-h100")
        for loss in ("whole", "chunked")
    }
    gib = {loss: content["peak_memory_gib"] for loss, content in found.items()}
    assert gib["whole"] - gib["chunked"] > 8  # three copies of 8192 x 128256 numbers in fp32 are 11.7 GiB
    assert found["chunked"]["mfu"] == pytest.approx(found["whole"]["mfu"], rel=0.1)


def test_probes_see_every_logit_of_a_loss_in_chunks():
    plan, model = make_plan(tp=2, global_batch=4), make_model("tiny", **MODEL)
    readings = [
        run_plan(plan, m, observers=(Probes,)).results[0].readings[0]
        for m in (model, model.model_copy(update={"loss": "whole"}))
    ]
    assert readings[0].logit == pytest.approx(readings[1].logit, rel=1e-5)
    both = [torch.cat([z.flatten() for z in r.log_z]) for r in readings]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)


def test_the_seed_of_dropout_is_the_same():  # the loss draws nothing
    config = make_model("tiny", **MODEL, dropout=0.2, attention="unfused")
    tokens = torch.randint(0, 42, (2, 6))
    losses = [
        float(GPTStage(config.model_copy(update={"loss": loss}))(tokens, tokens, Draw(0, 0, (0, 1))).detach())
        for loss in ("whole", "chunked")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
