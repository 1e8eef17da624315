"""Context parallelism is the attention of one device, whoever has which tokens; its bytes and its work are
the formulas'.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from glasscluster.base.errors import OutOfMemory
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.flash.tiles import TILE
from glasscluster.model.layers.attention import ATTENTION
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.recording.events import COMPUTE, RECV, SEND
from glasscluster.sim.run import Cluster, Run
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.context import context_parallel, ulysses
from glasscluster.strategies.context.context_parallel import RingContext
from glasscluster.strategies.context.ulysses import make_context, predict_traffic
from glasscluster.strategies.layout import tokens as pieces
from glasscluster.strategies.layout.tokens import KINDS, rectangle, work
from glasscluster.strategies.memory.recompute import KINDS as RECOMPUTE

B, D, S = 2, 4, 48  # 48 tokens: chunks for every kind and number of ranks below


def context_of(gpu: Any, kind: str, neighbours: int = 1) -> Any:
    """What the trainer would hand to the blocks."""
    cp = gpu.make_mesh({"cp": gpu.size})["cp"]
    if neighbours == 1:
        return make_context(kind, cp)
    return make_context(
        kind, cp, gpu.mesh.inside(cp, neighbours, "ulysses"), gpu.mesh.across(cp, neighbours, "rings")
    )


def whole_inputs(b: int, a: int, kv: int, s: int, d: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v and the output's gradient, of the whole sequence."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(b, heads, s, d, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (a, kv, kv, a)
    ]


def attend(
    gpu: Any,
    kind: str,
    neighbours: int,
    a: int,
    kv: int,
    b: int = B,
    s: int = S,
    d: int = D,
    dtype: torch.dtype = torch.float64,
    attention: str = "flash",
    recompute: str = "none",
) -> dict[str, Any]:
    """One rank of attention, forward and backward."""
    context = context_of(gpu, kind, neighbours)
    with gpu.unrecorded():
        keep = RECOMPUTE[recompute](gpu, 1)
        local = [
            context.cut(x.to(gpu.device), 2).clone().requires_grad_()
            for x in whole_inputs(b, a, kv, s, d, dtype)
        ]
    gpu.start_step()
    q, k, v, d_out = local
    with gpu.region("forward", layer=0):
        out = keep.core(partial(context.attend, ATTENTION[attention]), q, k, v)
    with gpu.region("backward"):
        out.backward(d_out)
    return {"positions": list(context.positions(s)), "tensors": [out.detach(), q.grad, k.grad, v.grad]}


@cache
def truth(b: int, a: int, kv: int, s: int, d: int = D) -> list[torch.Tensor]:
    """torch's attention in float64: output and gradients. Here key heads are really repeated."""
    q, k, v, d_out = (x.requires_grad_() for x in whole_inputs(b, a, kv, s, d, torch.float64))
    repeated = (x.repeat_interleave(a // kv, 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, *repeated, is_causal=True)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)]


def error(run: Run, expected: list[torch.Tensor]) -> list[float]:
    """Largest difference of output, dq, dk and dv over ranks. Every token is somebody's, once."""
    assert sorted(p for r in run.results for p in r["positions"]) == list(range(expected[0].shape[2]))
    found = [
        [
            (ours.double() - theirs[:, :, r["positions"]]).abs().max().item()
            for ours, theirs in zip(r["tensors"], expected, strict=True)
        ]
        for r in run.results
    ]
    return [max(column) for column in zip(*found, strict=True)]


@cache
def ran(ranks: int, *options: Any, backend: str = "threads", **more: Any) -> Run:
    """`attend` on a cluster; a run that several tests look at."""
    return Cluster("classroom", ranks, backend).run(partial(attend, **more), *options)


def cases() -> list[tuple[str, int, int, int, int, int]]:
    """kind, ranks, neighbours that exchange heads, query heads, key heads, sequences."""
    found = []
    for ranks in (2, 3, 4, 8):
        for batch in (1, 2):
            for kind in KINDS:
                found += [(kind, ranks, 1, 4, kv, batch) for kv in (4, 2, 1)]
                found += [(kind, ranks, u, 8, kv, batch) for u in (2, 4) if ranks in (4, 8) for kv in (8, u)]
            found += [("ulysses", ranks, 1, 2 * ranks, kv, batch) for kv in (2 * ranks, ranks)]
    return found


CASES = cases()


# ---- the same numbers --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "ranks", "u", "a", "kv", "b"), CASES)
def test_output_and_gradients_are_those_of_one_device(kind, ranks, u, a, kv, b):
    assert max(error(ran(ranks, kind, u, a, kv, b), truth(b, a, kv, S))) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "ranks", "u"),
    [("ring", 2, 1), ("striped", 2, 1), ("zigzag", 2, 1), ("ulysses", 2, 1), ("zigzag", 4, 2)],
)
def test_so_they_are_when_a_rank_s_tokens_are_several_tiles(kind, ranks, u):
    assert max(error(ran(ranks, kind, u, 4, 2, 1, 600), truth(1, 4, 2, 600))) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "ranks", "u"), [("ring", 4, 1), ("striped", 4, 1), ("ulysses", 4, 1), ("striped", 4, 2)]
)
def test_one_token_a_rank_is_enough(kind, ranks, u):
    assert max(error(ran(ranks, kind, u, 4, 4, 1, 4), truth(1, 4, 4, 4))) <= 1e-12


@pytest.mark.parametrize("kv", [8, 4])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ulysses_takes_any_attention_also_the_textbook_s(ranks, kv):
    assert max(error(ran(ranks, "ulysses", 1, 8, kv, attention="unfused"), truth(B, 8, kv, S))) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "u"), [*((k, 1) for k in (*KINDS, "ulysses")), ("zigzag", 2)])
def test_in_narrow_types_the_error_is_at_most_three_times_one_device_s(kind, u, dtype):
    expected = truth(B, 4, 4, 384, 16)
    own = error(ran(1, "ring", 1, 4, 4, B, 384, 16, dtype), expected)
    ours = error(ran(4, kind, u, 4, 4, B, 384, 16, dtype), expected)
    for mine, theirs in zip(ours, own, strict=True):
        assert mine <= 3 * theirs, (ours, own)
    assert all(
        t.dtype == dtype for r in ran(4, kind, u, 4, 4, B, 384, 16, dtype).results for t in r["tensors"]
    )


def whole(gpu: Any, kind: str, neighbours: int, s: int) -> bool:
    """Gathering what was cut gives it back; cut hands every gradient to its token."""
    context = context_of(gpu, kind, neighbours)
    tokens, table = torch.arange(2 * s * 3).view(2, s, 3), torch.ones(s, 2, requires_grad=True)
    mine = context.cut(tokens, 1)
    context.cut(table).sum().backward()
    there = torch.zeros(s, 2)
    there[list(context.positions(s))] = 1
    return (
        torch.equal(mine, tokens[:, list(context.positions(s))])
        and torch.equal(context.whole(mine), tokens)
        and table.grad.equal(there)
    )


@pytest.mark.parametrize(("kind", "ranks", "u"), sorted({c[:3] for c in CASES}))
def test_what_is_cut_can_be_gathered_in_the_sequence_s_order(kind, ranks, u):
    run = Cluster("classroom", ranks, "threads").run(whole, kind, u, S)
    assert all(run.results)
    assert run.graph.bytes_sent(label="routing", purpose="scalars") == run.graph.bytes_sent()


# ---- which part of a block is computed ---------------------------------------------------------------------
def tokens_of(kind: str, rank: int, ranks: int, s: int) -> list[int]:
    place = RingContext.__new__(RingContext)
    place.kind, place.rank, place.size = kind, rank, ranks
    return list(place.positions(s))


@pytest.mark.parametrize(
    ("kind", "n"), [("ring", 1), ("striped", 1), *((kind, n) for kind in KINDS for n in (2, 6))]
)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_rectangles_cover_every_visible_pair_once_and_no_other(kind, ranks, n):
    s, seen = n * ranks, []
    for rank in range(ranks):
        mine = tokens_of(kind, rank, ranks, s)
        assert mine == sorted(mine)
        for source in range(ranks):
            if part := rectangle(kind, rank, source, n):
                theirs = tokens_of(kind, source, ranks, s)
                square = [
                    (i, j)
                    for i, q in enumerate(mine[part.queries])
                    for j, _ in enumerate(theirs[part.keys])
                    if not part.causal or j <= i
                ]
                seen += [(mine[part.queries][i], theirs[part.keys][j]) for i, j in square]
    assert sorted(seen) == [(q, k) for q in range(s) for k in range(q + 1)]


# ---- bytes and work ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "ranks", "u", "a", "kv", "b"), CASES)
def test_every_rank_sends_what_f26_says(kind, ranks, u, a, kv, b):
    graph = ran(ranks, kind, u, a, kv, b).graph
    said = predict_traffic(kind, ranks, b, S, a, kv, D, 8, u)
    assert (
        graph.bytes_sent()
        == graph.bytes_sent(axis="cp", purpose="activations")
        == [said["forward"] + said["backward"]] * ranks
    )
    forward = (graph.kind == SEND) & (graph.phase == 1)
    assert np.bincount(graph.rank[forward], graph.bytes[forward]).tolist() == [said["forward"]] * ranks


@pytest.mark.parametrize(
    ("dtype", "w", "wider"), [(torch.bfloat16, 2, 4), (torch.float32, 4, 4), (torch.float64, 8, 8)], ids=str
)
def test_f26_in_the_paper_s_symbols(dtype, w, wider):
    n, a, n_kv, s = 4, 8, 4, S
    ring = ran(n, "zigzag", 1, a, n_kv, dtype=dtype).graph
    forward = 2 * B * (n - 1) * (s // n) * n_kv * D * w
    again = 2 * B * (s // n) * n_kv * D * ((n - 1) * w + n * wider)
    assert ring.bytes_sent(label="keys and values") == [forward] * n
    assert ring.bytes_sent() == [forward + again] * n
    mha = ran(n, "ulysses", 1, a, a, dtype=dtype).graph
    assert mha.bytes_sent() == [2 * (4 * (n - 1) * B * (s // n) * a * D * w // n)] * n
    gqa = ran(n, "ulysses", 1, a, n_kv, dtype=dtype).graph
    assert gqa.bytes_sent() == [2 * ((n - 1) * B * (s // n) * (2 * a + 2 * n_kv) * D * w // n)] * n


@pytest.mark.parametrize("s", [S, 1200])
@pytest.mark.parametrize(("kind", "ranks", "u"), sorted({c[:3] for c in CASES}))
def test_every_rank_does_the_work_that_the_formula_says_in_whole_tiles(kind, ranks, u, s):
    a, kv = (2 * ranks, ranks) if kind == "ulysses" else (4, 4)
    graph = ran(ranks, kind, u, a, kv, 1, s).graph
    tiles = work(kind, ranks, s, a, u, TILE)
    for name, products in (("forward", 2), ("backward", 5)):
        rows = (graph.kind == COMPUTE) & (graph.op == graph.names.index(f"glasscluster.flash_{name}"))
        assert np.bincount(graph.rank[rows], graph.flops[rows]).tolist() == [
            2 * products * D * t for t in tiles
        ]


@pytest.mark.parametrize(("kind", "ranks", "u"), sorted({c[:3] for c in CASES}))
def test_of_single_pairs_the_work_is_what_each_rank_s_queries_see(kind, ranks, u):
    each = ranks if kind == "ulysses" else u
    places = [
        sum(p + 1 for p in tokens_of("ring" if kind == "ulysses" else kind, g, ranks // each, S))
        for g in range(ranks // each)
    ]
    assert work(kind, ranks, S, 8, u) == [places[rank // each] * (8 // each) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 64])
def test_a_ring_of_pieces_is_a_triangle_of_work_and_the_other_two_are_even_within_a_row_a_block(ranks):
    n = 32
    s = ranks * n
    ring, striped, zigzag = (work(kind, ranks, s) for kind in KINDS)
    assert ring == [r * n * n + n * (n + 1) // 2 for r in range(ranks)]
    assert zigzag == [ranks * n * n // 2 + n // 2] * ranks
    assert striped == [(r + 1) * n * (n + 1) // 2 + (ranks - 1 - r) * n * (n - 1) // 2 for r in range(ranks)]
    assert max(striped) - min(striped) == (ranks - 1) * n
    assert sum(ring) == sum(striped) == sum(zigzag) == s * (s + 1) // 2


# ---- on the graph ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_keys_travel_while_a_block_is_computed(kind):
    """On the graph and, replayed, in time: where the wires are quick enough to be hidden, and where not."""
    n, a, kv, s, d = 4, 4, 4, 1024, 16
    run = ran(n, kind, 1, a, kv, 1, s, d, torch.float32)
    graph = run.graph
    for rank in range(n):
        mine = graph.canonical[graph.rank[graph.canonical] == rank]
        arrivals = [
            r for r in mine if graph.kind[r] == RECV and graph.names[graph.label[r]] == "keys and values"
        ]
        kernels = [r for r in mine if graph.names[graph.op[r]] == "glasscluster.flash_forward"]
        assert len(arrivals) == n - 1
        before, after = (
            [r for r in graph.dependencies(row) if graph.kind[r] == COMPUTE]
            for row in (arrivals[0], kernels[0])
        )
        assert (
            max(graph.order[before]) < graph.order[kernels[0]]
        )  # launched before the first block is computed,
        assert arrivals[0] not in graph.dependencies(kernels[0])  # which does not wait for it;
        assert max(graph.order[after]) == max(graph.order[before])
        if kind != "ring":  # the next one does
            assert all(
                arrival in graph.dependencies(kernel)
                for arrival, kernel in zip(arrivals, kernels[1:], strict=True)
            )
    base = hardware("classroom")
    size = context_parallel.predict_traffic(n, 1, s, kv, d, 4)["forward"] / (n - 1)
    flops = 4 * a * (s // n) ** 2 * d  # of a whole block
    for ratio in (8.0, 1 / 8):  # seconds of a whole block over seconds of its message
        bandwidth = ratio * base.gpu.peak("fp32") * size / flops
        assert context_parallel.hops_overlap(n, 1, s, a, kv, d, 4, base.gpu.peak("fp32"), bandwidth) == (
            ratio > 1
        )
        wired = base.scaled(bandwidth=bandwidth / base.intra.bandwidth, latency=0.0)
        timeline = run.replay(wired, precision="fp32")
        forward = (graph.phase == 1) & (graph.rank == n - 1)
        seconds = timeline.end[forward].max() - timeline.start[forward].min()
        busy = (timeline.end - timeline.start)[forward & (graph.kind == COMPUTE)].sum()
        if ratio > 1:
            assert seconds <= 1.02 * busy, (kind, seconds, busy)
        else:
            assert seconds >= (n - 1) * size / bandwidth


@pytest.mark.parametrize(
    ("kind", "u", "attention"),
    [*((k, 1, "flash") for k in (*KINDS, "ulysses")), ("striped", 2, "flash"), ("ulysses", 1, "unfused")],
)
def test_selective_recomputation_goes_round_again_and_gives_the_same_bits(kind, u, attention):
    plain, again = (ran(4, kind, u, 8, 4, attention=attention, recompute=r) for r in ("none", "selective"))
    for one, other in zip(plain.results, again.results, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one["tensors"], other["tensors"], strict=True))
    said = predict_traffic(kind, 4, B, S, 8, 4, D, 8, u)
    assert again.graph.bytes_sent() == [sum(said.values())] * 4


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "u"), [*((k, 1) for k in (*KINDS, "ulysses")), ("zigzag", 2), ("ring", 4)])
def test_a_dry_recording_is_the_real_one(kind, u, dtype, recompute):
    real, dry = (
        ran(4, kind, u, 8, 4, B, S, D, dtype, recompute=recompute, backend=backend)
        for backend in ("threads", "dry")
    )
    assert real.graph.difference(dry.graph) is None
    assert real.graph.sha256() == dry.graph.sha256()
    assert real.peak_memory() == dry.peak_memory()
    for rank, memory in real.graph.memory.items():
        assert all(
            np.array_equal(memory[table], dry.graph.memory[rank][table])
            for table in ("base", "log", "waits", "before")
        )
        assert memory["named"] == dry.graph.memory[rank]["named"]


@pytest.mark.ray
def test_on_ray_s_actors_it_is_the_same_to_the_bit(actors):
    for kind, u in (*((k, 1) for k in (*KINDS, "ulysses")), ("zigzag", 2)):
        theirs, ours = actors(4).run(attend, kind, u, 8, 4), ran(4, kind, u, 8, 4)
        assert ours.graph.difference(theirs.graph) is None
        for one, other in zip(ours.results, theirs.results, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(one["tensors"], other["tensors"], strict=True))


@pytest.mark.torchrun
def test_under_torchrun_it_is_one_device_s_attention(tmp_path, pool):
    script = tmp_path / "works.py"
    script.write_text(
        "from glasscluster import Cluster\n"
        "from test_context_parallel import B, S, attend, error, truth\n"
        "with Cluster('classroom', 4, 'torchrun') as cluster:\n"
        "    for kind, u in (('ring', 1), ('striped', 1), ('zigzag', 1), ('ulysses', 1), ('striped', 2)):\n"
        "        run = cluster.run(attend, kind, u, 8, 4)\n"
        "        if cluster.leader:\n"
        "            print(kind, u, max(error(run, truth(B, 8, 4, S))) <= 1e-12)\n"
    )
    done = pool(4, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[-1] for line in done.stdout.strip().splitlines()] == ["True"] * 5


# ---- torch's own -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def theirs(tmp_path_factory, pool):
    """torch.distributed.tensor.experimental.context_parallel knows CUDA kernels only; the ring inside it
    takes any, here the CPU's.
    """
    folder = tmp_path_factory.mktemp("context")
    names = ("torch_ring", "torch_zigzag")
    done = pool(4, str(Path(__file__).parent / "oracle_worker.py"), str(folder), *names, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: load_file(folder / f"{name}.safetensors") for name in names}


@pytest.mark.torchrun
@pytest.mark.parametrize("kind", ["ring", "zigzag"])
def test_torch_s_ring_attention_gives_our_output_and_gradients(theirs, kind):
    for number, name in enumerate(("out", "q", "k", "v")):
        for rank, result in enumerate(ran(4, kind, 1, 4, 4).results):
            assert torch.allclose(
                result["tensors"][number], theirs[f"torch_{kind}"][name][rank], rtol=0, atol=1e-12
            ), (name, rank)


# ---- what is wrong is caught -------------------------------------------------------------------------------
def caught(kind: str, ranks: int = 4, u: int = 1) -> float:
    """How far outputs and gradients are off."""
    return max(error(Cluster("classroom", ranks, "threads").run(attend, kind, u, 4, 4), truth(B, 4, 4, S)))


def summed(out, lse, block_out, block_lse):
    out.add_(block_out)


def averaged(out, lse, block_out, block_lse):
    out.add_(block_out).div_(2)
    lse.copy_(torch.logaddexp(lse, block_lse))


def forgetful(out, lse, block_out, block_lse):
    out.lerp_(block_out, torch.sigmoid(block_lse - lse).unsqueeze(-1))


@pytest.mark.parametrize("wrong", [summed, averaged, forgetful])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_merged_without_their_log_sum_exp_are_caught(kind, wrong, monkeypatch):
    assert caught(kind) <= 1e-12
    monkeypatch.setattr(context_parallel, "merge", wrong)
    assert caught(kind) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [(1, 0), (3, 2)])
def test_one_block_dropped_is_caught(kind, at, monkeypatch):
    def without(kind, rank, source, n):
        return None if (rank, source) == at else rectangle(kind, rank, source, n)

    monkeypatch.setattr(pieces, "rectangle", without)
    assert caught(kind) > 1e-2


@pytest.mark.parametrize(("computed", "placed"), [(a, b) for a in KINDS for b in KINDS if a != b])
def test_tokens_that_lie_in_another_kind_s_order_are_caught(computed, placed, monkeypatch):
    def another(_kind, rank, source, n):
        return rectangle(computed, rank, source, n)

    monkeypatch.setattr(pieces, "rectangle", another)
    assert caught(placed) > 1e-2


@pytest.mark.parametrize("shift", [0, 2])
def test_a_causal_mask_of_stripes_that_is_one_token_off_is_caught(shift, monkeypatch):
    def shifted(kind, rank, source, n):
        part = context_parallel.Rectangle(slice(shift, n), slice(0, n - shift), True)
        return part if source > rank else rectangle(kind, rank, source, n)

    monkeypatch.setattr(pieces, "rectangle", shifted)
    assert caught("striped") > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_keys_that_stop_one_rank_early_are_caught(kind, monkeypatch):
    honest = Communicator.ring_shift

    def ring_shift(self, x, tag, **labels):
        room, works = honest(self, x, tag, **labels)
        self.hops = getattr(self, "hops", 0) + (tag == 1)
        if tag == 1 and self.hops == self.size:
            works[0].wait()
            room.copy_(x)
        return room, works

    monkeypatch.setattr(Communicator, "ring_shift", ring_shift)
    assert caught(kind) > 1e-2


@pytest.mark.parametrize("wrong", ["to_heads", "to_tokens"])
def test_heads_exchanged_in_another_order_are_caught(wrong, monkeypatch):
    assert caught("ulysses") <= 1e-12
    honest = getattr(ulysses.UlyssesContext, wrong)
    monkeypatch.setattr(
        ulysses.UlyssesContext, wrong, lambda self, x, label: honest(self, x, label).roll(1, 2)
    )
    assert caught("ulysses") > 1e-2


# ---- long sequences ----------------------------------------------------------------------------------------
A_LONG, D_LONG = 2, 16


def textbook(gpu: Any, s: int) -> None:
    """What a device without flash attention would do."""
    q, k, v, _ = (x.to(gpu.device) for x in whole_inputs(1, A_LONG, A_LONG, s, D_LONG, torch.float32))
    ATTENTION["unfused"](q, k, v)


@pytest.mark.parametrize(("s", "backend"), [(4096, "threads"), (16384, "dry")])
def test_a_sequence_whose_scores_no_gpu_could_hold_passes_through_eight_of_them(s, backend):
    """Forward and backward on GPUs that hold an eighth of the scores; one device's flash is the reference.

    `backend` is where the textbook's attention is refused (the longer sequence's scores would really be 2
    GB).
    """
    scores, capacity = A_LONG * s * s * 4, A_LONG * s * s * 4 // 8
    q, k, v, d_out = (x.requires_grad_() for x in whole_inputs(1, A_LONG, A_LONG, s, D_LONG, torch.float32))
    out = flash_attention(q, k, v)
    expected = [out.detach().double(), *(g.double() for g in torch.autograd.grad(out, (q, k, v), d_out))]
    options = ("ring", 1, A_LONG, A_LONG, 1, s, D_LONG, torch.float32)
    run = Cluster("classroom", 8, "threads", memory_bytes=capacity).run(attend, *options)
    for off, theirs in zip(error(run, expected), expected, strict=True):
        assert off <= 2e-5 * theirs.abs().max().item()
    token = A_LONG * D_LONG * 4  # bytes of one token's q
    peak, on_four = (
        max(p for p, _ in r.peak_memory())
        for r in (run, Cluster("classroom", 4, "dry").run(attend, *options))
    )
    assert peak <= 18 * (s // 8) * token  # O(s/N)
    assert on_four == 2 * peak  # half the ranks, twice the memory
    print(
        f"{s:,} tokens on 8 ranks: peak {peak:,} bytes a rank, on 4 {on_four:,}; N x N scores "
        f"{scores:,}; a GPU holds {capacity:,}"
    )
    with pytest.raises(OutOfMemory):
        Cluster("classroom", 1, backend, memory_bytes=capacity).run(textbook, s)
