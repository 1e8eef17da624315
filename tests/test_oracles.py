"""torch's own DDP, FSDP2, pipelining and DTensor give the same gradients; gloo's collectives give the same
sums.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import run_plan
from oracle_worker import BUCKET, CUT, SHAPE, mlp_input
from safetensors.torch import load_file

from glasscluster.model.gpt import GPTStage
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.layout.units import by_bucket
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel
from glasscluster.strategies.trainer import Trainer

pytestmark = pytest.mark.torchrun
WORKER = str(Path(__file__).parent / "oracle_worker.py")
PIPELINES = ("gpipe", "one_f_one_b", "interleaved", "interleaved_zb", "zb_v", "dualpipe_v")
ORACLES = ("ddp", "fsdp", *PIPELINES, "dtensor_mlp")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, pool):
    """Gradients by oracle: two gloo processes run all of them."""
    folder = tmp_path_factory.mktemp("oracles")
    done = pool(2, WORKER, str(folder), *ORACLES, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: load_file(folder / f"{name}.safetensors") for name in ORACLES}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    floor = 1e-3 * max(float(g.abs().max()) for g in theirs.values())
    for name in theirs:
        assert difference(ours[name], theirs[name], floor) <= 1e-10, name


@pytest.mark.parametrize(
    ("oracle", "options"),
    [
        ("ddp", {"dp": 2}),
        ("ddp", {"dp": 4, "bucket": 5000}),
        ("ddp", {"dp": 2, "zero": 1}),
        ("ddp", {"dp": 2, "zero": 2}),
        ("fsdp", {"dp": 2, "zero": 3}),
        ("fsdp", {"dp": 4, "zero": 3}),
        ("gpipe", {"pp": 2, "schedule": "gpipe"}),
        ("one_f_one_b", {"pp": 4, "schedule": "1f1b"}),
        ("one_f_one_b", {"pp": 2, "schedule": "zb-h1"}),
        ("interleaved", {"pp": 2, "schedule": "interleaved", "virtual_stages": 2}),
        ("interleaved_zb", {"pp": 2, "schedule": "interleaved-zb", "virtual_stages": 2}),
        ("zb_v", {"pp": 2, "schedule": "zb-v"}),
        ("dualpipe_v", {"pp": 2, "schedule": "dualpipe-v"}),
        ("dualpipe_v", {"pp": 2, "dp": 2, "zero": 3, "schedule": "dualpipe-v"}),
        ("gpipe", {"pp": 2, "dp": 2, "zero": 1, "schedule": "gpipe"}),
    ],
)
def test_torch_s_own_strategy_gives_our_gradients(theirs, oracle, options):
    model = make_model("tiny", tied=oracle not in PIPELINES, **SHAPE)
    results = run_plan(make_plan(global_batch=4, precision="fp64", **options), model, capture=True).results
    ours: dict[str, torch.Tensor] = {}
    for result in results:
        ours |= result.gradients[0]
    assert set(ours) == set(theirs[oracle])
    same(ours, theirs[oracle])


STATEFUL = {
    "ddp_buckets": {"dp": 2, "micro_batch": 1, "bucket": BUCKET, "first_bucket": BUCKET},
    "fsdp_resharded": {"dp": 2, "zero": 3, "micro_batch": 2},
    "fsdp_kept": {"dp": 2, "zero": 3, "micro_batch": 2, "reshard": False},
    "hsdp": {"dp": 4, "zero": 3, "shard": 2},
}


@pytest.fixture(scope="module")
def stateful(tmp_path_factory, pool):
    """Gradients, weights after a step and what ranks hold, by oracle: two gloo processes, and four for two by
    two.
    """
    folder = tmp_path_factory.mktemp("stateful")
    for n, names in ((2, [n for n in STATEFUL if n != "hsdp"]), (4, ["hsdp"])):
        done = pool(n, WORKER, str(folder), *names, cwd=folder)
        assert done.returncode == 0, done.stderr[-4000:]
    return {name: load_file(folder / f"{name}.safetensors") for name in STATEFUL}


def training(gpu, job):
    """A rank's result, and the names in each of its buckets."""
    trainer = Trainer(gpu, job)
    return trainer.run(), [[m.name for m in u.members] for u in trainer.manager.units]


@pytest.mark.parametrize("oracle", STATEFUL)
def test_torch_s_sharded_and_bucketed_training_holds_and_updates_what_ours_does(stateful, oracle):
    theirs, model = stateful[oracle], make_model("tiny", **SHAPE)
    plan = make_plan(global_batch=4, precision="fp64", clip=0, **STATEFUL[oracle])
    job = Job(plan, model, steps=2 if oracle == "ddp_buckets" else 1, capture=True)
    results, units = zip(*Cluster("classroom", plan.gpus, "threads").run(training, job).results, strict=True)
    ours = {f"gradient {n}": g for n, g in results[0].gradients[-1].items()}
    ours |= {f"weight {n}": w for n, w in results[0].weights[-1].items()}
    same({k: v for k, v in ours.items() if k[0] == "g"}, {k: v for k, v in theirs.items() if k[0] == "g"})
    weights = [n for n in theirs if n.startswith("weight")]
    assert weights
    for name in weights:
        assert difference(ours[name], theirs[name], 1.0) <= 1e-10, name
    if oracle == "ddp_buckets":
        names = list(GPTStage(model).full_names())
        rebuilt: dict[int, list[str]] = {}
        for number, index in theirs["buckets"].tolist():
            rebuilt.setdefault(number, []).append(names[index])
        assert len(rebuilt) > 5
        guessed = by_bucket(GPTStage(model, dtype=torch.float64), plan.bucket_limits, plan.padding, set())
        assert list(rebuilt.values()) != [[m.name for m in u.members] for u in guessed]
        assert units == tuple([list(rebuilt.values())] * 2)
    else:
        for rank, (parameters, gradients, moments) in enumerate(theirs["held"].tolist()):
            held = {k: v // 8 for k, v in results[rank].state_bytes.items()}
            padding = sum(padded - n for _, n, padded in results[rank].units) // plan.shards
            assert (held["parameters"] - padding, held["gradients"] - padding) == (parameters, gradients)
            assert held["optimizer"] - 2 * padding == moments


def mlp(gpu, config):
    """The MLP half of our block, cut over two ranks."""
    parallel = TensorParallel(gpu.make_mesh({"tp": 2})["tp"])
    block = GPTStage(config, [0], False, False, parallel, dtype=torch.float64).layers["0"]
    x = mlp_input(config.hidden).requires_grad_()
    hidden = F.gelu(F.linear(parallel.f(x), block.up_weight, block.up_bias))
    out = parallel.g(F.linear(hidden, block.down_weight)) + block.down_bias
    out.backward(mlp_input(config.hidden, 1))
    return {"out": out.detach(), "x": x.grad, "up": block.up_weight.grad, "down": block.down_weight.grad}


def test_dtensor_s_column_and_row_parallel_mlp_is_ours(theirs):
    config = make_model("tiny", **SHAPE)
    a, b = Cluster("classroom", 2, "threads").run(mlp, config).results
    ours = {
        "out": a["out"],
        "x": a["x"],
        "up": torch.cat([a["up"], b["up"]], 0),
        "down": torch.cat([a["down"], b["down"]], 1),
    }
    same(ours, theirs["dtensor_mlp"])


@pytest.fixture(scope="module")
def cut(tmp_path_factory, pool):
    """The whole GPT in torch's modules, cut by DTensor's `parallelize_module` over two gloo processes: loss
    and gradients, by case.
    """
    folder = tmp_path_factory.mktemp("cut")
    done = pool(2, WORKER, str(folder), *CUT, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: load_file(folder / f"{name}.safetensors") for name in CUT}


def ours_cut(case: str, **options) -> dict[str, torch.Tensor]:
    """Whole gradients of our tensor parallelism, pieced together from both ranks, and the loss."""
    more, tokens_too = CUT[case]
    model = make_model("tiny", tied=False, qkv="separate", **SHAPE, **more)
    plan = make_plan(
        global_batch=4, micro_batch=2, tp=2, sequence_parallel=tokens_too, precision="fp64", **options
    )
    results = run_plan(plan, model, capture=True).results
    whole = {"loss": results[0].losses[0]}
    for name, (full, shard) in GPTStage(model, dtype=torch.float64).full_names().items():
        parts = [r.gradients[0][name] for r in results]
        if shard is None:
            assert torch.equal(*parts), name  # every rank has the same
            whole[name] = parts[0]
        else:
            blocks = zip(*(p.chunk(len(shard.blocks) or 1, shard.dim) for p in parts), strict=True)
            whole[name] = torch.cat([torch.cat(block, shard.dim) for block in blocks], shard.dim)
        assert whole[name].shape == full.shape
    return whole


@pytest.mark.parametrize(
    ("case", "overlap"),
    [(case, o) for case, (_, tokens_too) in CUT.items() for o in (False, True)[: 1 + tokens_too]],
)
def test_a_whole_gpt_cut_by_torch_s_parallelize_module_has_our_loss_and_gradients(cut, case, overlap):
    theirs, ours = cut[case], ours_cut(case, tp_overlap=overlap)
    assert set(ours) == set(theirs)
    assert difference(ours.pop("loss"), theirs["loss"], 0.0) <= 1e-12
    same(ours, {n: g for n, g in theirs.items() if n != "loss"})


@pytest.mark.parametrize(
    "name",
    ["layers.1.norm1_weight", "layers.2.k_bias", "layers.0.up_weight", "embedding.token", "head.table"],
)
def test_one_number_of_one_gradient_off_by_a_millionth_of_the_largest_is_seen(cut, name):
    theirs = {n: g for n, g in cut["swiglu_tokens"].items() if n != "loss"}
    ours = {n: g.clone() for n, g in theirs.items()}
    ours[name].view(-1)[-1] += 1e-6 * float(max(g.abs().max() for g in theirs.values()))
    with pytest.raises(AssertionError, match=name):
        same(ours, theirs)


NATIVE = """
import torch
from glasscluster import Cluster

def program(gpu):
    worst = 0.0
    for n in (0, 1, 5, 12, 1001):
        for seed in range(3):
            torch.manual_seed(100 * gpu.rank + seed)
            x = torch.randn(n, dtype=torch.float64)
            for name, options in (("all_reduce", {}), ("reduce_scatter", {}), ("all_gather", {}),
                                  ("broadcast", {"src": 2}), ("all_reduce", {"op": "max"}),
                                  ("all_reduce", {"op": "min"}), ("reduce_scatter", {"op": "avg"})):
                ours, theirs = x.clone(), x.clone()
                getattr(gpu.comm, name)(ours, algorithm="ring", **options)
                getattr(gpu.comm, name)(theirs, algorithm="native", **options)
                if name == "reduce_scatter":
                    ours, theirs = gpu.comm.chunk(ours), gpu.comm.chunk(theirs)
                worst = max(worst, float((ours - theirs).abs().max()) if ours.numel() else 0.0)
    return worst

with Cluster("classroom", 4, "torchrun") as cluster:
    run = cluster.run(program)
    if cluster.leader:
        assert max(run.results) <= 1e-14, run.results
        print("agreed", run.results)
"""


def test_gloo_s_own_collectives_agree_with_our_rings(tmp_path, pool):
    script = tmp_path / "native.py"
    script.write_text(NATIVE)
    done = pool(4, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agreed" in done.stdout
