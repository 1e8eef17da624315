"""One rank of torch's own strategies on the same GPT and batch; rank 0 saves mean gradients by full name. See
test_oracles.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from glasscluster.model.gpt import GPTStage
from glasscluster.strategies.job import Job
from glasscluster.strategies.plan import make_model, make_plan

BUCKET = 10_000  # bytes
SHAPE = {"layers": 4, "hidden": 32, "heads": 4, "seq": 16, "vocab": 64}


def model_and_batch(tied: bool):
    """The GPT, and the global batch of four sequences."""
    config = make_model("tiny", tied=tied, **SHAPE)
    job = Job(make_plan(global_batch=4, precision="fp64"), config)
    return config, *job.batch(0)


def ddp() -> dict[str, torch.Tensor]:
    """DistributedDataParallel: averages over ranks, so a sum is that times their number."""
    config, tokens, targets = model_and_batch(True)
    whole = GPTStage(config, dtype=torch.float64)
    model = nn.parallel.DistributedDataParallel(whole)
    mine = slice(dist.get_rank() * 2, dist.get_rank() * 2 + 2)
    model(tokens[mine], targets[mine]).backward()
    return {n: p.grad * dist.get_world_size() / targets.numel() for n, (p, _) in whole.full_names().items()}


def fsdp() -> dict[str, torch.Tensor]:
    """FSDP2: every block and the root fully sharded."""
    from torch.distributed.fsdp import fully_shard

    config, tokens, targets = model_and_batch(True)
    model = GPTStage(config, dtype=torch.float64)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.layers.values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    mine = slice(dist.get_rank() * 2, dist.get_rank() * 2 + 2)
    model(tokens[mine], targets[mine]).backward()
    found = {n: p.grad.full_tensor() for n, (p, _) in model.full_names().items()}
    return {n: g * dist.get_world_size() / targets.numel() for n, g in found.items()}


def adamw(named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """torch's AdamW with our constants."""
    return torch.optim.AdamW(named.values(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)


def ddp_buckets() -> dict[str, torch.Tensor]:
    """DDP over two steps with small buckets that are views, two micro-batches a rank, the first without
    synchronisation.

    Besides gradients and weights of the second step: `buckets`, the bucket of each parameter as torch rebuilt
    them after the first.
    """
    config, tokens, targets = model_and_batch(True)
    whole = GPTStage(config, dtype=torch.float64)
    model = nn.parallel.DistributedDataParallel(
        whole, bucket_cap_mb=BUCKET / 1024**2, gradient_as_bucket_view=True
    )
    named = {n: p for n, (p, _) in whole.full_names().items()}
    optimizer, first = adamw(named), dist.get_rank() * 2
    job = Job(make_plan(global_batch=4, precision="fp64"), config)
    for step in range(2):
        tokens, targets = job.batch(step)
        optimizer.zero_grad()
        with model.no_sync():
            model(tokens[first : first + 1], targets[first : first + 1]).backward()
        model(tokens[first + 1 : first + 2], targets[first + 1 : first + 2]).backward()
        for p in named.values():
            p.grad.mul_(dist.get_world_size() / targets.numel())
        optimizer.step()
    listed = [n for n, _ in whole.named_parameters()]  # torch numbers parameters in this order
    known = {id(p): n for n, p in named.items()}
    full = [known[id(p)] for p in dict(whole.named_parameters()).values()]
    assert len(full) == len(listed)
    text = model._get_ddp_logging_data()["rebuilt_per_bucket_param_indices"]
    order = [
        [list(named).index(full[int(i)]) for i in bucket.split()]
        for bucket in text.split(",")
        if bucket.strip()
    ]
    numbered = torch.tensor([[number, index] for number, bucket in enumerate(order) for index in bucket])
    found = {f"gradient {n}": p.grad for n, p in named.items()} | {
        f"weight {n}": p.detach() for n, p in named.items()
    }
    return found | {"buckets": numbered}


def sharded(mesh_shape: tuple[int, ...], reshard: bool) -> dict[str, torch.Tensor]:
    """FSDP2 over a mesh (two dimensions: replicated, then sharded): one AdamW step; and the elements each
    rank holds.
    """
    from torch.distributed.fsdp import fully_shard

    config, tokens, targets = model_and_batch(True)
    model = GPTStage(config, dtype=torch.float64)
    names = ("replicas", "shard")[-len(mesh_shape) :]
    mesh = dist.init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    for part in (*model.layers.values(), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
    each = 4 // dist.get_world_size()
    mine = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)
    model(tokens[mine], targets[mine]).backward()
    named = {n: p for n, (p, _) in model.full_names().items()}
    optimizer = adamw(named)
    for p in named.values():
        p.grad.mul_(dist.get_world_size() / targets.numel())
    optimizer.step()
    held = torch.tensor(
        [
            sum(p.to_local().numel() for p in named.values()),
            sum(p.grad.to_local().numel() for p in named.values()),
            sum(
                s["exp_avg"].to_local().numel() + s["exp_avg_sq"].to_local().numel()
                for s in optimizer.state.values()
            ),
        ]
    )
    everyone = [torch.zeros_like(held) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, held)
    found = {f"gradient {n}": p.grad.full_tensor() for n, p in named.items()}
    return (
        found | {f"weight {n}": p.full_tensor() for n, p in named.items()} | {"held": torch.stack(everyone)}
    )


def fsdp_resharded() -> dict[str, torch.Tensor]:
    """Parameters are freed after forward."""
    return sharded((dist.get_world_size(),), True)


def fsdp_kept() -> dict[str, torch.Tensor]:
    """Parameters are kept from forward to backward."""
    return sharded((dist.get_world_size(),), False)


def hsdp() -> dict[str, torch.Tensor]:
    """Two replicas of two shards."""
    return sharded((2, 2), True)


class Body(nn.Module):
    """A stage without its loss: torch's schedule computes that apart."""

    def __init__(self, stage: GPTStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stage.embedding is not None:
            x = self.stage.embedding(x)
        for block in self.stage.layers.values():
            x = block(x)
        return x


def pipelined(kind: str, stages: int, folded: bool = False) -> dict[str, torch.Tensor]:
    """A schedule of torch.distributed.pipelining on two ranks and four micro-batches; four stages are two a
    rank, in a loop or like a V.
    """
    from torch.distributed import pipelining

    config, tokens, targets = model_and_batch(False)
    rank, each = dist.get_rank(), config.layers // stages
    numbers = [rank] if stages == 2 else [rank, stages - 1 - rank if folded else rank + 2]
    ours = {
        i: GPTStage(config, range(i * each, (i + 1) * each), i == 0, i == stages - 1, dtype=torch.float64)
        for i in numbers
    }
    pieces = [
        pipelining.PipelineStage(Body(stage), i, stages, torch.device("cpu")) for i, stage in ours.items()
    ]
    head = next((stage.head for stage in ours.values() if stage.last), None)
    options = {"loss_fn": (lambda x, target: head(x, target)), "scale_grads": False}
    schedule = getattr(pipelining.schedules, f"Schedule{kind}")(
        pieces if stages > 2 else pieces[0], 4, **options
    )
    schedule.step(*([tokens] if 0 in ours else []), **({"target": targets} if head is not None else {}))
    mine = {
        n: p.grad / targets.numel() for stage in ours.values() for n, (p, _) in stage.full_names().items()
    }
    gathered: list = [None, None]
    dist.all_gather_object(gathered, mine)
    return gathered[0] | gathered[1]


PIPELINES = {
    "gpipe": ("GPipe", 2),
    "one_f_one_b": ("1F1B", 2),
    "interleaved": ("Interleaved1F1B", 4),
    "interleaved_zb": ("InterleavedZeroBubble", 4),
    "zb_v": ("ZBVZeroBubble", 4, True),
    "dualpipe_v": ("DualPipeV", 4, True),
}


def dtensor_mlp() -> dict[str, torch.Tensor]:
    """A column-parallel then row-parallel MLP by DTensor, on block 0's weights: output and gradients."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    config, _, _ = model_and_batch(True)
    block = GPTStage(config, [0], False, False, dtype=torch.float64).layers["0"]
    up, down = (
        nn.Linear(config.hidden, config.width).double(),
        nn.Linear(config.width, config.hidden).double(),
    )
    for linear, name in ((up, "up"), (down, "down")):
        linear.weight.data.copy_(getattr(block, f"{name}_weight"))
        linear.bias.data.copy_(getattr(block, f"{name}_bias"))
    mlp = nn.Sequential(up, nn.GELU(), down)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(mlp, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = mlp_input(config.hidden).requires_grad_()
    out = mlp(x)
    out.backward(mlp_input(config.hidden, 1))
    return {
        "out": out.detach(),
        "x": x.grad,
        "up": mlp[0].weight.grad.full_tensor(),
        "down": mlp[2].weight.grad.full_tensor(),
    }


def mlp_input(hidden: int, seed: int = 0) -> torch.Tensor:
    """Some input, and with another seed some output gradient."""
    return torch.randn(3, 5, hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ring_of_torch(balanced: bool) -> dict[str, torch.Tensor]:
    """The ring inside torch's context_parallel, with the CPU's flash kernel: each rank's output and
    gradients, stacked.
    """
    from test_context_parallel import B, D, S, whole_inputs
    from torch.distributed.tensor.experimental._context_parallel import _attention as ring

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

    def kernel(query, key, value, out, logsumexp, is_causal, grad_out):
        tensors = (x.contiguous() for x in (grad_out, query, key, value, out, logsumexp))
        return backward(*tensors, 0.0, is_causal)

    ring._cp_options.convert_to_f32, ring._cp_options.enable_load_balance = False, balanced
    n, r = dist.get_world_size(), dist.get_rank()
    chunks = [r, 2 * n - 1 - r] if balanced else [2 * r, 2 * r + 1]
    q, k, v, d_out = (
        torch.cat([x.chunk(2 * n, 2)[c] for c in chunks], 2)
        for x in whole_inputs(B, 4, 4, S, D, torch.float64)
    )
    out, lse, *_ = ring._templated_ring_attention(dist.group.WORLD, 2, forward, q, k, v, is_causal=True)
    found = ring._templated_ring_attention_backward(
        dist.group.WORLD, 2, kernel, d_out, "grad_out", q, k, v, out, lse, True
    )
    stacked = {}
    for name, mine in zip(("out", "q", "k", "v"), (out, *found), strict=True):
        everyone = [torch.zeros_like(mine) for _ in range(n)]
        dist.all_gather(everyone, mine.contiguous())
        stacked[name] = torch.stack(everyone)
    return stacked


def torch_ring() -> dict[str, torch.Tensor]:
    """Contiguous pieces."""
    return ring_of_torch(False)


def torch_zigzag() -> dict[str, torch.Tensor]:
    """Chunks r and 2N-1-r, which torch calls load balancing."""
    return ring_of_torch(True)


# what `parallelize_module` cuts: (model, sequence parallelism)
CUT = {
    "gelu": ({"activation": "gelu"}, False),
    "gelu_tokens": ({"activation": "gelu"}, True),
    "swiglu": ({"activation": "swiglu", "kv_heads": 2}, False),
    "swiglu_tokens": ({"activation": "swiglu", "kv_heads": 2}, True),
}


def parallelized(name: str) -> dict[str, torch.Tensor]:
    """The whole GPT in torch's modules, its matrices, vocabulary and perhaps tokens cut by DTensor over both
    ranks.
    """
    from plain_gpt import trained

    more, tokens_too = CUT[name]
    config = make_model("tiny", tied=False, qkv="separate", **SHAPE, **more)
    tokens, targets = Job(make_plan(global_batch=4, precision="fp64"), config).batch(0)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    return trained(config, tokens, targets, mesh, tokens_too)


def plain(x: torch.Tensor) -> torch.Tensor:
    """Arrived, whole and contiguous."""
    x = x.detach()
    x = x.wait() if hasattr(x, "wait") else x
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).contiguous().clone()


if __name__ == "__main__":
    # the store of a job that ran other scripts before still has their addresses
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = Path(sys.argv[1]) / f"{sys.argv[2]}-{size}.store"
    dist.init_process_group("gloo", store=dist.FileStore(str(meeting), size), rank=rank, world_size=size)
    for name in sys.argv[2:]:
        made = (
            parallelized(name)
            if name in CUT
            else pipelined(*PIPELINES[name])
            if name in PIPELINES
            else globals()[name]()
        )
        result = {n: plain(t) for n, t in made.items()}
        if dist.get_rank() == 0:
            save_file(result, str(Path(sys.argv[1]) / f"{name}.safetensors"))
    dist.barrier()
    dist.destroy_process_group()
