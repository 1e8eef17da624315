"""Mixture of experts: what a loop over tokens says, on any number of ranks, with every drop and every byte
counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_plan
from torch import Tensor

from glasscluster.base.errors import CollectiveMismatch, InputError
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import Block
from glasscluster.model.layers import moe
from glasscluster.model.parallel import Unsharded, WholeSequence
from glasscluster.sim.recording.events import COMPUTE, SEND
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.experts import expert_parallel
from glasscluster.strategies.experts.expert_parallel import ExpertParallel
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel

EXACT = 1e-12


# ---- all-to-all of unequal pieces --------------------------------------------------------------------------
def rows_between(n: int) -> list[list[int]]:
    """Elements from rank i to rank j: all sizes, with empty ones, and a rank that sends nothing."""
    return [[0 if i == n - 1 else (3 * i + 5 * j + i * j) % 7 for j in range(n)] for i in range(n)]


def uneven(gpu, algorithm: str) -> list[str]:
    n, me, table, wrong = gpu.size, gpu.rank, rows_between(gpu.size), []
    for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool):
        pieces = [[torch.arange(table[i][j]) % 3 + i + j for j in range(n)] for i in range(n)]
        x, right = torch.cat(pieces[me]).to(dtype), torch.cat([pieces[i][me] for i in range(n)]).to(dtype)
        out = torch.zeros_like(right)
        gpu.comm.all_to_all(x, out, table[me], [table[i][me] for i in range(n)], algorithm=algorithm)
        if not torch.equal(out, right):
            wrong.append(f"rank {me}, {dtype}")
    return wrong


@pytest.mark.parametrize("algorithm", ["direct", "pairwise"])
@pytest.mark.parametrize("n", range(1, 9))
def test_pieces_of_any_length_arrive_and_empty_ones_send_nothing(algorithm, n):
    run = Cluster("classroom", n, "threads").run(uneven, algorithm)
    assert run.results == [[]] * n
    graph, table = run.graph, np.array(rows_between(n))
    np.fill_diagonal(table, 0)
    assert int((graph.kind == SEND).sum()) == 4 * np.count_nonzero(table)
    assert graph.bytes_sent() == (table.sum(1) * (8 + 2 + 8 + 1)).tolist()


def lopsided(gpu, sends: list[int], receives: list[int], elements: int = 4) -> None:
    gpu.comm.all_to_all(torch.ones(elements), torch.ones(sum(receives)), sends, receives)


def test_lengths_that_do_not_fit_are_refused_by_name():
    cluster = Cluster("classroom", 2, "threads")
    for sends, receives, why in (
        ([4], [2, 2], "2 lengths"),
        ([5, -1], [2, 2], "2 lengths"),
        ([1, 2], [2, 2], "add up to 3"),
    ):
        with pytest.raises(InputError, match=why):
            cluster.run(lopsided, sends, receives)
    with pytest.raises(InputError, match="keeps 1 elements"):
        cluster.run(lambda gpu: lopsided(gpu, [1, 3] if gpu.rank == 0 else [3, 1], [2, 2]))
    with pytest.raises(CollectiveMismatch, match=r"3 x torch.float32 sent, 2 x"):
        cluster.run(
            lambda gpu: lopsided(gpu, [1, 3], [1, 3]) if gpu.rank == 0 else lopsided(gpu, [3, 2], [2, 2], 5)
        )
    with pytest.raises(
        InputError, match="all_to_all has no such algorithm"
    ):  # gloo's own takes no uneven pieces from us
        cluster.run(lambda gpu: gpu.comm.all_to_all(torch.ones(2), torch.ones(2), algorithm="native"))


# ---- a reference that loops over tokens --------------------------------------------------------------------
def shape(**more: Any) -> ModelConfig:
    base = {
        "layers": 1,
        "hidden": 8,
        "heads": 2,
        "ffn": 12,
        "vocab": 16,
        "seq": 10,
        "experts": 4,
        "init_std": 0.7,
        "aux_loss": 0.3,
    }
    return ModelConfig(**{**base, **more})


def one_expert(config: ModelConfig, up: Tensor, down: Tensor, x: Tensor) -> Tensor:
    y = up @ x
    if config.activation == "swiglu":
        gate, value = y[: config.width], y[config.width :]
        return down @ (gate * torch.sigmoid(gate) * value)
    return down @ (y * 0.5 * (1 + torch.erf(y / 2**0.5)))


def by_loops(
    config: ModelConfig, w: dict[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor, list[dict[str, Counter]]]:
    """Output, the auxiliary loss summed as the loss is, and who wanted and got which expert in
    each sequence.
    """
    outputs, aux, seen = [], x.new_zeros(()), []
    for sequence in x:
        s, k, E = len(sequence), config.top_k, config.experts
        most = -(-int(config.capacity_factor * 100) * k * s // (100 * E)) if config.capacity_factor else s * k
        p = []
        for token in sequence:
            e = torch.exp(
                w["router_weight"] @ token
                + torch.tensor([config.hot_expert] + [0.0] * (E - 1), dtype=x.dtype)
            )
            p.append(e / e.sum())
        best = [sorted(range(E), key=lambda i, t=t: -p[t][i].item())[:k] for t in range(s)]
        wanted, kept, y = (
            Counter(i for chosen in best for i in chosen),
            Counter(),
            [torch.zeros_like(t) for t in sequence],
        )
        for j in range(k):
            for t in range(s):
                i = best[t][j]
                if kept[i] < most:
                    kept[i] += 1
                    weight = p[t][i] / sum(p[t][n] for n in best[t]) if k > 1 else p[t][i]
                    y[t] = y[t] + weight * one_expert(
                        config, w["expert_up_weight"][i], w["expert_down_weight"][i], sequence[t]
                    )
        if config.shared_ffn:
            for t, token in enumerate(sequence):
                inner = w["shared_up_weight"] @ token + w["shared_up_bias"]
                y[t] = (
                    y[t]
                    + w["shared_down_weight"] @ (inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
                    + w["shared_down_bias"]
                )
        mean = torch.stack(p).mean(0)
        aux = aux + s * config.aux_loss * E * sum(wanted[i] / (k * s) * mean[i] for i in range(E))
        outputs.append(torch.stack(y))
        seen.append({"wanted": wanted, "kept": kept})
    return torch.stack(outputs), aux, seen


def data(config: ModelConfig, b: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    x, d_y = (
        torch.randn(b, config.seq, config.hidden, generator=draw, dtype=torch.float64) for _ in range(2)
    )
    return x, d_y


def make_block(
    config: ModelConfig,
    parallel: Unsharded | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Block:
    return Block(0, config, parallel or Unsharded(), 3, torch.empty(0, dtype=dtype, device=device))


def gradients(block: Block) -> dict[str, Tensor]:
    return {n: p.grad for n, p in block.named_parameters() if p.grad is not None}


def one_device(config: ModelConfig, x: Tensor, d_y: Tensor) -> dict[str, Any]:
    block, x = make_block(config), x.clone().requires_grad_()
    y = moe.experts(block, x)
    y.backward(d_y)
    return {"y": y.detach(), "dx": x.grad, **gradients(block), "routing": block.routing}


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


MODELS: dict[str, dict[str, Any]] = {
    "one choice": {"top_k": 1},
    "two choices": {},
    "gated, three of six": {"top_k": 3, "experts": 6, "activation": "swiglu"},
    "places for half": {"capacity_factor": 0.5},
    "tight places": {"capacity_factor": 1.0, "top_k": 1, "seq": 9},
    "shared expert": {"shared_ffn": 6, "capacity_factor": 1.25},
    "no balance": {"aux_loss": 0.0, "activation": "swiglu"},
    "hot": {"hot_expert": 2.0, "capacity_factor": 1.1, "top_k": 3},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_outputs_gradients_drops_and_the_balance_are_those_of_a_loop_over_tokens(options):
    config = shape(**options)
    x, d_y = data(config, 3)
    found = one_device(config, x, d_y)
    weights = {n: p.detach().clone().requires_grad_() for n, p in make_block(config).named_parameters()}
    x = x.clone().requires_grad_()
    y, aux, seen = by_loops(config, weights, x)
    ((y * d_y).sum() + aux).backward()
    right = {"y": y.detach(), "dx": x.grad} | {n: w.grad for n, w in weights.items() if w.grad is not None}
    assert set(right) == set(found) - {"routing"}
    assert max(apart(found[n], right[n]) for n in right) <= EXACT
    (routing,) = found["routing"]
    for what in ("wanted", "kept"):
        assert routing[what] == [sum(s[what][i] for s in seen) for i in range(config.experts)]
    dropped = sum(
        moe.predict_dropped(config, [s["wanted"][i] for i in range(config.experts)], config.seq) for s in seen
    )
    assert dropped == sum(routing["wanted"]) - sum(routing["kept"])
    assert (dropped > 0) == (0 < config.capacity_factor < 1.25 or bool(config.hot_expert))
    if config.aux_loss:
        assert apart(routing["aux"], aux.detach()) <= EXACT


def test_the_balance_is_alpha_a_token_when_uniform_and_more_when_it_is_not():
    config = shape(top_k=1)
    choices = (torch.arange(20) % 4).view(2, 10, 1)
    choices = torch.stack([choices[0], choices[0].flip(0)])
    even = torch.full((2, 10, 4), 0.25, dtype=torch.float64)
    assert float(moe.balance(even, choices, config)) == pytest.approx(0.3 * 20, rel=1e-14)
    assert moe.predict_aux(config, [0.25] * 4, [0.25] * 4) == pytest.approx(0.3)
    assert moe.predict_aux(config, [1, 0, 0, 0], [0.25] * 4) == pytest.approx(0.3)
    assert moe.predict_aux(config, [1, 0, 0, 0], [1, 0, 0, 0]) == pytest.approx(
        1.2
    )  # all to one: E times as much
    (cold,), (hot,) = (one_device(shape(hot_expert=h), *data(config, 2))["routing"] for h in (0.0, 8.0))
    assert 0.3 * 20 < float(cold["aux"]) < float(hot["aux"])


def test_a_loss_scale_reaches_the_balance_too():
    config, seed = shape(), torch.tensor(64.0)
    x, d_y = data(config, 2)
    parallel = Unsharded()
    parallel.seed = seed
    block = make_block(config, parallel)
    moe.experts(block, x).backward(d_y * seed)
    assert apart(block.router_weight.grad / seed, one_device(config, x, d_y)["router_weight"]) <= EXACT


@pytest.mark.parametrize(
    ("factor", "k", "s", "experts", "places"),
    [(1.1, 2, 100, 10, 22), (1.0, 1, 9, 4, 3), (0.5, 2, 10, 4, 3), (1.25, 2, 64, 8, 20)],
)
def test_capacity_is_the_ceiling_of_the_written_decimal(factor, k, s, experts, places):
    assert moe.capacity(shape(capacity_factor=factor, top_k=k, experts=experts), s) == places


def test_first_choices_find_their_places_before_second_ones():
    config = shape(experts=2, capacity_factor=0.5, seq=4)  # C = ceil(0.5 x 2 x 4 / 2) = 2
    choices = torch.tensor([[[0, 1], [1, 0], [1, 0], [1, 0]]])
    assert moe.places(choices, config).tolist() == [
        [[True, False], [True, True], [True, False], [False, False]]
    ]


def test_sixteen_bits_are_routed_and_added_up_in_thirty_two():
    config = shape(capacity_factor=1.0)
    x, d_y = data(config, 2)
    block, x16 = make_block(config, dtype=torch.bfloat16), x.bfloat16().requires_grad_()
    p, weights, _ = moe.route(x16, block.router_weight, config)
    assert p.dtype == weights.dtype == torch.float32
    y = moe.experts(block, x16)
    y.backward(d_y.bfloat16())
    assert y.dtype == x16.grad.dtype == block.router_weight.grad.dtype == torch.bfloat16
    assert block.routing[0]["aux"].dtype == torch.float32


@pytest.mark.xdist_group("transformers")  # imported once, beside tests/test_hugging_face.py
def test_mixtral_says_the_same():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    from transformers import MixtralConfig

    config = shape(activation="swiglu", experts=8, aux_loss=0.0)
    theirs = mixtral.MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=8, num_experts_per_tok=2)
    ).double()
    x, d_y = data(config, 3)
    ours = one_device(config, x, d_y)
    block = make_block(config)
    with torch.no_grad():
        theirs.gate.weight.copy_(block.router_weight)
        theirs.experts.gate_up_proj.copy_(block.expert_up_weight)
        theirs.experts.down_proj.copy_(block.expert_down_weight)
    x = x.clone().requires_grad_()
    y = theirs(x)
    y.backward(d_y)
    right = {"y": y.detach(), "dx": x.grad, "router_weight": theirs.gate.weight.grad}
    right |= {
        "expert_up_weight": theirs.experts.gate_up_proj.grad,
        "expert_down_weight": theirs.experts.down_proj.grad,
    }
    assert max(apart(ours[n], right[n]) for n in right) <= 1e-6  # their softmax is in float32


# ---- experts spread over ranks -----------------------------------------------------------------------------
class Stripes(WholeSequence):
    """Every size-th token, as a stand-in for context parallelism."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.size, self.rank = comm, comm.size, comm.rank

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        return x.unflatten(dim, (-1, self.size)).select(dim + 1, self.rank)

    def whole(self, x: Tensor) -> Tensor:
        pieces = x.new_empty(self.size, *x.shape)
        pieces[self.rank] = x
        self.comm.all_gather(pieces, purpose="activations", label="routing")
        return pieces.permute(1, 2, 0, *range(3, pieces.dim())).flatten(1, 2)


def layout(gpu, sizes: dict[str, int], ep: int, sequence: bool, algorithm: str) -> Unsharded:
    mesh = gpu.make_mesh(sizes)
    kind = SequenceParallel if sequence else TensorParallel
    parallel: Any = kind(mesh["tp"]) if sizes.get("tp", 1) > 1 else Unsharded()
    if sizes.get("cp", 1) > 1:
        parallel.context = Stripes(mesh["cp"])
    parallel.experts = ExpertParallel(
        mesh.inside(mesh.plane(("dp", "cp"), "dp"), ep, "ep", axis="ep"), algorithm
    )
    return parallel


def mine_of(gpu, parallel: Unsharded, sizes: dict[str, int], x: Tensor) -> Tensor:
    """A rank's sequences, and its tokens of them."""
    dp, b = gpu.mesh.index("dp"), x.shape[0] // sizes.get("dp", 1)
    x = parallel.context.cut(x[dp * b : (dp + 1) * b], dim=1)
    return x.chunk(parallel.size, 1)[parallel.rank] if isinstance(parallel, SequenceParallel) else x


def program(
    gpu, config: ModelConfig, sizes: dict[str, int], ep: int, b: int, options: dict[str, Any]
) -> dict[str, Any]:
    """One block's experts forward and backward, of this rank's part of b sequences."""
    sequence, forget_aux, algorithm = (
        options.get(n, v) for n, v in (("sequence", False), ("forget_aux", -1), ("algorithm", "direct"))
    )
    with gpu.unrecorded():
        parallel = layout(gpu, sizes, ep, sequence, algorithm)
        if gpu.rank == forget_aux:
            parallel.seed = torch.zeros(())
        device = str(gpu.device)
        block = make_block(config, parallel, device)
        if device == "meta":
            tokens = config.seq // parallel.pieces
            x, d_y = (
                torch.empty(
                    b // sizes.get("dp", 1), tokens, config.hidden, dtype=torch.float64, device="meta"
                )
                for _ in range(2)
            )
        else:
            x, d_y = (mine_of(gpu, parallel, sizes, t).contiguous() for t in data(config, b))
    x.requires_grad_()
    with gpu.region("forward", layer=0):
        y = moe.experts(block, x)
    with gpu.region("backward", layer=0):
        y.backward(d_y)
    place = (parallel.experts.rank, gpu.mesh.index("tp"))
    return {"y": y.detach(), "dx": x.grad, **gradients(block), "routing": block.routing, "place": place}


def spread(
    config: ModelConfig, sizes: dict[str, int], ep: int, b: int, backend: str = "threads", **more: Any
) -> Run:
    gpus = int(np.prod(list(sizes.values())))
    return Cluster("classroom", gpus, backend, memory_bytes=None).run(program, config, sizes, ep, b, more)


def errors(
    run: Run, config: ModelConfig, sizes: dict[str, int], ep: int, b: int, sequence: bool = False
) -> dict[str, float]:
    """Largest relative difference from one device with all sequences, by tensor."""
    right, shards = one_device(config, *data(config, b)), make_block(config).shards
    full = {"dp": 1, "cp": 1, "tp": 1, **sizes}
    whole = {n: torch.zeros_like(right[n]) for n in ("y", "dx")}
    sums: dict[tuple, Tensor] = {}
    for rank, result in enumerate(run.results):
        rest, tp = divmod(rank, full["tp"])
        dp, cp = divmod(rest, full["cp"])
        rows = slice(dp * b // full["dp"], (dp + 1) * b // full["dp"])
        tokens = torch.arange(config.seq)[cp :: full["cp"]]
        tokens = tokens.chunk(full["tp"])[tp] if sequence else tokens
        for name, into in whole.items():
            into[rows, tokens] = result[name]
        for name in right.keys() - {"y", "dx", "routing"}:
            shard = shards[f"layers.0.{name}"]
            place = (0, 0) if shard is None else (result["place"][0] if shard.experts else 0, tp)
            if (
                shard is not None or sequence or tp == 0
            ):  # what every tp rank has whole saw all tokens, or each a part of them
                sums[name, place] = sums.get((name, place), 0) + result[name]
    found = {n: apart(whole[n], right[n]) for n in whole}
    for (name, (expert_rank, tp)), total in sums.items():
        shard = shards[f"layers.0.{name}"]
        part = right[name] if shard is None else shard.take(right[name], tp, full["tp"], expert_rank, ep)
        found[name] = max(found.get(name, 0.0), float((total - part).abs().max() / right[name].abs().max()))
    return found


SPREAD: dict[str, tuple[dict[str, Any], int]] = {
    "one expert a rank of two": ({"experts": 2, "top_k": 1}, 2),
    "four a rank": ({"experts": 8, "activation": "swiglu"}, 2),
    "two a rank, places for some": ({"experts": 8, "capacity_factor": 0.75}, 4),
    "three a rank": ({"experts": 12, "top_k": 3}, 4),
    "eight ranks": ({"experts": 16, "top_k": 2, "capacity_factor": 1.0}, 8),
    "most experts get nothing": ({"experts": 8, "top_k": 1, "hot_expert": 30.0}, 8),
}


@pytest.mark.parametrize(("options", "n"), SPREAD.values(), ids=SPREAD)
def test_spread_experts_are_one_device_s_and_every_byte_is_the_routing_s(options, n):
    config, b = shape(**options), 2 * n
    run = spread(config, {"dp": n}, n, b)
    found = errors(run, config, {"dp": n}, n, b)
    assert max(found.values()) <= EXACT, found
    (whole,), per_rank = (
        one_device(config, *data(config, b))["routing"],
        [r["routing"][0] for r in run.results],
    )
    for what in ("wanted", "kept"):
        assert np.sum([r[what] for r in per_rank], 0).tolist() == whole[what]
    traffic = np.array(expert_parallel.traffic([r["kept"] for r in per_rank], config.hidden, 8))
    for label, matrix in (
        ("dispatch", traffic),
        ("combine", traffic.T),
        ("dispatch backward", traffic.T),
        ("combine backward", traffic),
    ):
        assert (sent(run, label) == matrix).all(), label
        assert run.graph.bytes_sent(axis="ep", purpose="activations", label=label) == matrix.sum(1).tolist()
    assert sum(run.graph.bytes_sent(purpose="scalars")) == (n - 1) * config.experts * 8
    assert sum(run.graph.bytes_sent(purpose="activations")) == 4 * traffic.sum()
    if config.hot_expert:
        assert traffic[:, 1:].sum() == 0  # everybody sends to the rank of the hot one
        assert (traffic[1:, 0] > 0).all()


def sent(run: Run, label: str) -> np.ndarray:
    """Bytes from rank (row) to rank (column) on axis ep under a label."""
    graph, total = run.graph, np.zeros((run.graph.ranks, run.graph.ranks), dtype=np.int64)
    sends = (graph.kind == SEND) & (graph.axis == "ep") & (graph.label == graph.names.index(label))
    np.add.at(total, (graph.rank[sends], graph.peer[sends]), graph.bytes[sends])
    return total


def test_a_hot_expert_fills_its_rank_until_places_run_out():
    kept = {}
    for factor in (0.0, 1.0):
        config = shape(experts=8, top_k=2, hot_expert=12.0, capacity_factor=factor)
        run = spread(config, {"dp": 4}, 4, 8)
        assert max(errors(run, config, {"dp": 4}, 4, 8).values()) <= EXACT
        kept[factor] = np.sum([r["routing"][0]["kept"] for r in run.results], 0)
        received = sent(run, "dispatch").sum(0)
        assert received.argmax() == 0
        multiplied = [
            sum(run.graph.flops[(run.graph.kind == COMPUTE) & (run.graph.rank == r)]) for r in range(4)
        ]
        assert multiplied[0] == max(multiplied)
    assert kept[0.0][0] == 80  # every token
    assert kept[1.0][0] == 8 * 3  # C = ceil(2 x 10 / 8) of each of 8 sequences
    assert kept[0.0].sum() == 160


def test_rows_that_leave_are_on_average_as_predicted_however_skewed_the_routing():
    for hot in (0.0, 1.5):
        config = shape(experts=8, seq=64, aux_loss=0.0, hot_expert=hot)
        run = spread(config, {"dp": 4}, 4, 32)
        left = sum(run.graph.bytes_sent(label="dispatch")) / (8 * config.hidden) / 4
        assert left == pytest.approx(expert_parallel.leaving(8 * 64, 2, 4), rel=0.03)


COMBINED: dict[str, tuple[dict[str, int], int, bool]] = {
    "tp": ({"dp": 2, "tp": 2}, 2, False),
    "sp": ({"dp": 2, "tp": 2}, 2, True),
    "cp": ({"dp": 2, "cp": 2}, 4, False),
    "cp, experts inside dp x cp": ({"dp": 2, "cp": 2}, 2, False),
    "cp and sp": ({"cp": 2, "tp": 2}, 2, True),
}


@pytest.mark.parametrize(
    "options",
    [{"experts": 8, "capacity_factor": 0.75}, {"activation": "swiglu", "shared_ffn": 8, "top_k": 1}],
    ids=str,
)
@pytest.mark.parametrize(("sizes", "ep", "sequence"), COMBINED.values(), ids=COMBINED)
def test_spread_experts_with_other_axes_are_one_device_s(sizes, ep, sequence, options):
    config = shape(seq=12, **options)
    run = spread(config, sizes, ep, 4, sequence=sequence)
    right = one_device(config, *data(config, 4))
    found = errors(run, config, sizes, ep, 4, sequence)
    assert set(found) == set(right) - {"routing"}
    assert max(found.values()) <= EXACT, found
    data_ranks = [r for rank, r in enumerate(run.results) if rank % sizes.get("tp", 1) == 0]
    for what in ("wanted", "kept"):
        assert np.sum([r["routing"][0][what] for r in data_ranks], 0).tolist() == right["routing"][0][what]


@pytest.mark.parametrize("algorithm", ["direct", "pairwise"])
def test_either_all_to_all_will_do(algorithm):
    config = shape(experts=8)
    run = spread(config, {"dp": 4}, 4, 4, algorithm=algorithm)
    assert max(errors(run, config, {"dp": 4}, 4, 4).values()) <= EXACT
    assert f"all_to_all/{algorithm}" in run.graph.names


def test_a_plan_s_reduction_algorithm_does_not_choose_the_all_to_all():
    run = spread(shape(), {"dp": 2}, 2, 2, algorithm="ring")
    assert "all_to_all/direct" in run.graph.names


# ---- mistakes are seen -------------------------------------------------------------------------------------
def seen(config: ModelConfig, n: int = 2, **more: Any) -> dict[str, float]:
    return errors(spread(config, {"dp": n}, n, 4, **more), config, {"dp": n}, n, 4)


def test_a_dropped_token_that_is_not_dropped_is_seen(monkeypatch):
    config = shape(capacity_factor=0.75, aux_loss=0.0)
    right = one_device(config, *data(config, 4))
    places = moe.places

    def one_more(whole: Tensor, config: ModelConfig) -> Tensor:
        kept = places(whole, config)
        first = (~kept[0]).nonzero()[0]
        kept[0, first[0], first[1]] = True
        return kept

    monkeypatch.setattr(moe, "places", one_more)
    wrong = one_device(config, *data(config, 4))
    assert sum(wrong["routing"][0]["kept"]) == sum(right["routing"][0]["kept"]) + 1
    assert min(apart(wrong[n], right[n]) for n in right if n != "routing") > 1e-4


def test_a_combine_in_the_wrong_order_is_seen(monkeypatch):
    right = ExpertParallel.combine
    monkeypatch.setattr(
        ExpertParallel, "combine", lambda self, y, counts, arrived: right(self, y, counts, arrived).flip(0)
    )
    assert seen(shape())["y"] > 0.1


def test_sources_taken_in_the_wrong_order_are_seen(monkeypatch):
    right = ExpertParallel.combine
    monkeypatch.setattr(
        ExpertParallel, "combine", lambda self, y, counts, arrived: right(self, y.roll(1, 0), counts, arrived)
    )
    assert seen(shape())["y"] > 0.1


def test_doubled_expert_gradients_are_seen_though_the_output_agrees(monkeypatch):
    right = moe.apply_experts

    def doubled(block: Any, rows: Tensor, sources: list[list[int]]) -> Tensor:
        if block.parallel.experts.size > 1 and not block.expert_up_weight._backward_hooks:
            block.expert_up_weight.register_hook(lambda g: 2 * g)
        return right(block, rows, sources)

    monkeypatch.setattr(moe, "apply_experts", doubled)
    found = seen(shape())
    assert found.pop("expert_up_weight") == pytest.approx(1)
    assert max(found.values()) <= EXACT


def test_a_rank_that_forgets_its_share_of_the_balance_is_seen():
    config = shape(seq=12)
    for sizes, ep, sequence in (({"dp": 2}, 2, False), ({"cp": 2}, 2, False), ({"dp": 1, "tp": 2}, 1, True)):
        run = spread(config, sizes, ep, 4, sequence=sequence, forget_aux=1)
        found = errors(run, config, sizes, ep, 4, sequence)
        assert found["router_weight"] > 1e-4
        assert max(found["y"], found["expert_up_weight"], found["expert_down_weight"]) <= EXACT


def test_a_share_of_local_choices_in_place_of_the_whole_sequence_s_is_seen(monkeypatch):
    right = moe.balance
    monkeypatch.setattr(moe, "balance", lambda p, whole, config: right(p, whole[:, : p.shape[1]], config))
    config = shape(seq=12)
    assert errors(spread(config, {"cp": 2}, 2, 4), config, {"cp": 2}, 2, 4)["router_weight"] > 1e-4


# ---- without data, and on other backends -------------------------------------------------------------------
@pytest.mark.parametrize("factor", [0.0, 1.0, 0.5])
@pytest.mark.parametrize(
    ("sizes", "ep", "sequence"), [*COMBINED.values(), ({"dp": 4}, 4, False)], ids=[*COMBINED, "dp"]
)
def test_a_dry_recording_has_balanced_rows_and_the_events_of_a_run(sizes, ep, sequence, factor):
    config = shape(seq=24, experts=8, capacity_factor=factor)
    dry = spread(config, sizes, ep, 4, "dry", sequence=sequence)
    real = spread(config, sizes, ep, 4, sequence=sequence)
    tokens, tp = 4 * 24 // (sizes.get("dp", 1) * sizes.get("cp", 1)), sizes.get("tp", 1)
    predicted = expert_parallel.predict_traffic(1, 1, tokens, 2, 8, ep, config.hidden, 8)
    groups = len(dry.results) // ep
    assert groups % tp == 0
    rows = sum(dry.graph.bytes_sent(axis="ep", purpose="activations"))
    assert rows == groups * predicted["rows"] * (0.5 if factor == 0.5 else 1)  # in all 4 all-to-alls together
    assert sum(dry.graph.bytes_sent(axis="ep", purpose="scalars")) == groups * predicted["counts"]
    for result in dry.results:
        (routing,) = result["routing"]
        assert sum(routing["wanted"]) == 2 * tokens
        assert max(routing["kept"]) - min(routing["kept"]) <= 1
    for rank in range(len(dry.results)):  # the same operations in the same order, only of other sizes
        operations = []
        for graph in (dry.graph, real.graph):
            chosen = (graph.rank == rank) & (graph.kind != SEND) & (graph.bytes > 0)
            operations.append([graph.names[o] for o in graph.op[chosen & (graph.kind == COMPUTE)]])
        assert operations[0] == operations[1]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_recomputation_sends_rows_again(recompute):
    model = make_model("tiny", layers=3, hidden=16, seq=12, experts=8)
    plan = make_plan(dp=4, ep=4, global_batch=16, micro_batch=2, recompute=recompute, precision="fp32")
    graph = run_plan(plan, model, "dry").graph
    again = 3 if recompute == "full" else 0
    predicted = expert_parallel.predict_traffic(3, 2, 2 * 12, 2, 8, 4, 16, 4, again=again)
    assert sum(graph.bytes_sent(axis="ep", purpose="activations")) == predicted["rows"]
    assert sum(graph.bytes_sent(axis="ep", purpose="scalars")) == predicted["counts"]


def test_balanced_is_as_equal_as_can_be():
    config = shape(experts=4, capacity_factor=0.5, seq=10)
    assert moe.balanced(10, 5, 10, shape(experts=4)) == ([3, 3, 2, 2], [3, 3, 2, 2])
    assert moe.balanced(20, 10, 10, config) == ([5, 5, 5, 5], [3, 3, 3, 3])  # C = ceil(0.5 x 2 x 10 / 4)
    assert moe.balanced(2, 1, 10, shape(experts=4)) == ([1, 1, 0, 0], [1, 1, 0, 0])


@pytest.mark.ray
def test_ray_actors_agree(actors):
    config = shape(experts=8, capacity_factor=0.75)
    run = actors(4).run(program, config, {"dp": 4}, 4, 8, {})
    assert max(errors(run, config, {"dp": 4}, 4, 8).values()) <= EXACT
    assert run.graph.difference(spread(config, {"dp": 4}, 4, 8).graph) is None


@pytest.mark.parametrize("backend", ["threads", "dry"])
def test_a_router_s_weight_gradient_comes_into_a_bucket_in_16_bits(backend):
    plan = make_plan(dp=2, pp=2, zero=2, schedule="zb-h1", global_batch=4, precision="bf16")
    run = run_plan(
        plan, make_model("tiny", layers=2, hidden=16, seq=8, vocab=40, experts=4, top_k=2), backend
    )
    assert len(run.results) == 4
