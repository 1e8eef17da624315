"""Our GPT in torch's own modules, cut by torch's own `parallelize_module`: an oracle for tensor and sequence
parallelism.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage


class Attention(nn.Module):
    """Causal, of whatever heads this rank's matrices have."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, kv, self.d = config.hidden, config.key_width, config.head_dim
        self.q, self.k, self.v, self.out = (
            nn.Linear(h, h),
            nn.Linear(h, kv),
            nn.Linear(h, kv),
            nn.Linear(h, h),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            matrix(x).unflatten(-1, (-1, self.d)).transpose(1, 2) for matrix in (self.q, self.k, self.v)
        )
        return self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            .transpose(1, 2)
            .flatten(2)
        )


class MLP(nn.Module):
    """GELU or SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, f = config.hidden, config.width
        self.gate = nn.Linear(h, f) if config.activation == "swiglu" else None
        self.up, self.down = nn.Linear(h, f), nn.Linear(f, h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden, config.norm_eps) for _ in range(2))
        self.attention, self.mlp = Attention(config), MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainGPT(nn.Module):
    """Untied, in float64, starting from our weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token, self.position = (
            nn.Embedding(config.vocab, config.hidden),
            nn.Embedding(config.seq, config.hidden),
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.head = (
            nn.LayerNorm(config.hidden, config.norm_eps),
            nn.Linear(config.hidden, config.vocab, bias=False),
        )
        self.double()
        ours = GPTStage(config, dtype=torch.float64).full_names()
        assert set(ours) == set(self.named())
        with torch.no_grad():
            for name, theirs in self.named().items():
                for p, values in zip(theirs, ours[name][0].chunk(len(theirs)), strict=True):
                    p.copy_(values)

    def named(self) -> dict[str, list[nn.Parameter]]:
        """By our names: one tensor, or a gate's above a value's."""
        found: dict[str, list[nn.Parameter]] = {
            "embedding.token": [self.token.weight],
            "embedding.position": [self.position.weight],
            "head.norm_weight": [self.norm.weight],
            "head.norm_bias": [self.norm.bias],
            "head.table": [self.head.weight],
        }
        for i, block in enumerate(self.layers):
            a, m = block.attention, block.mlp
            parts = {
                "norm1": [block.norm1],
                "q": [a.q],
                "k": [a.k],
                "v": [a.v],
                "out": [a.out],
                "norm2": [block.norm2],
                "down": [m.down],
            }
            parts["up"] = [m.up] if m.gate is None else [m.gate, m.up]
            for name, modules in parts.items():
                found |= {
                    f"layers.{i}.{name}_{kind}": [getattr(module, kind) for module in modules]
                    for kind in ("weight", "bias")
                }
        return found

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]).expand_as(tokens))
        for block in self.layers:
            x = block(x)
        return self.head(self.norm(x))


def cut(model: PlainGPT, mesh, sequence_parallel: bool) -> None:
    """As torch's tutorials and torchtitan do: columns, rows, vocabulary; with sequence parallelism the tokens
    between them.
    """
    outside = Shard(1) if sequence_parallel else Replicate()
    norm = {"norm": SequenceParallel()} if sequence_parallel else {}
    ends = {
        "token": RowwiseParallel(input_layouts=Replicate(), output_layouts=outside),
        "position": RowwiseParallel(input_layouts=Replicate(), output_layouts=outside),
        "head": ColwiseParallel(input_layouts=outside, output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, ends | norm)
    for block in model.layers:
        columns = [
            n
            for n in ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")
            if not (n == "mlp.gate" and block.mlp.gate is None)
        ]
        plan = dict.fromkeys(columns, ColwiseParallel())
        plan |= {name: RowwiseParallel(output_layouts=outside) for name in ("attention.out", "mlp.down")}
        if sequence_parallel:
            plan |= {name: SequenceParallel() for name in ("norm1", "norm2")}
            plan |= {
                name: PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
                for name in ("attention", "mlp")
            }
        parallelize_module(block, mesh, plan)


def trained(
    config: ModelConfig, tokens: torch.Tensor, targets: torch.Tensor, mesh, sequence_parallel: bool
) -> dict[str, torch.Tensor]:
    """The mean loss, and its gradients by our names; the loss with logits cut over the vocabulary."""
    model = PlainGPT(config)
    cut(model, mesh, sequence_parallel)
    with loss_parallel():
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
    whole = {
        n: torch.cat([p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in ps])
        for n, ps in model.named().items()
    }
    return {"loss": loss.detach() / targets.numel()} | {n: g / targets.numel() for n, g in whole.items()}
