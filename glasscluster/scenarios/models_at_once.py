"""Small GPTs trained side by side in one process: a leading dimension M, one model for each seed or setting.

Lessons that compare trainings need several seeds of each. One small model spends its time between its many
short operations; M of them in one operation cost little more than one. The weights are `GPTStage`'s, by its
names and from its seeds, and so is the arithmetic: pre-norm or post-norm blocks of causal attention and a
GELU MLP, with learned positions. tests/test_models_at_once.py holds losses and gradients against it.

But: none of the model's other switches.

Dims in shape suffixes: M models, B sequences, S tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage

Normalise = Callable[[Tensor], Tensor]


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without weight and bias, over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


@dataclass
class ModelsAtOnce:
    """M models of one shape, one of each seed; a seed may stand there twice, for two settings of training.

    Args:
        config: the shape. `norm_position` is pre or post.
        seeds: of the weights, M of them.
        dtype: of the weights.
        normalise: a norm without its weight and bias, [M, B, S, H] -> the same.
    """

    config: ModelConfig
    seeds: Sequence[int]
    dtype: torch.dtype = torch.float32
    normalise: Normalise = layer_norm
    shapes: dict[str, torch.Size] = field(init=False)
    flat: Tensor = field(init=False)  # [M, parameters], what the optimizer moves

    def __post_init__(self) -> None:
        config = self.config
        assert config.norm_position in ("pre", "post"), "a sandwich has two norms more"
        assert config.position == "learned", "positions are added to the embedding"
        assert config.causal, "a GPT"
        assert config.activation == "gelu", "one matrix up, GELU, one matrix down"
        assert not config.experts, "an MLP in every layer"
        assert config.key_width == config.query_width == config.hidden, "every head has its own keys"
        born = {seed: GPTStage(self.config, seed=seed, dtype=self.dtype) for seed in set(self.seeds)}
        named = {seed: {n: p.detach() for n, (p, _) in m.full_names().items()} for seed, m in born.items()}
        self.shapes = {name: p.shape for name, p in named[self.seeds[0]].items()}
        rows = [torch.cat([p.flatten() for p in named[seed].values()]) for seed in self.seeds]
        self.flat = torch.stack(rows).requires_grad_()

    def weights(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Every parameter by its name, [M, *its shape]: views of `flat`, or of a tensor of its shape."""
        cuts = (self.flat if flat is None else flat).split([s.numel() for s in self.shapes.values()], 1)
        return {n: cut.unflatten(1, shape) for (n, shape), cut in zip(self.shapes.items(), cuts, strict=True)}

    def logits(self, tokens: Tensor, heads_left: Tensor | None = None) -> Tensor:
        """What every model says of its tokens.

        Args:
            tokens: [M, B, S].
            heads_left: [M, layers, heads] of ones, and zeros where a head is pruned; None: all are left.

        Returns:
            [M, B, S, vocabulary].
        """
        config, w = self.config, self.weights()
        pre = config.norm_position == "pre"
        models = torch.arange(len(self.seeds))[:, None, None]
        x = w["embedding.token"][models, tokens] + w["embedding.position"][:, None, : tokens.shape[-1]]
        for layer in range(config.layers):
            block = {n.split(".")[-1]: p for n, p in w.items() if n.startswith(f"layers.{layer}.")}
            left = None if heads_left is None else heads_left[:, layer]
            for norm, branch in (("norm1", self._attention), ("norm2", _mlp)):
                y = branch(block, self._norm(block, norm, x) if pre else x, left)
                x = x + y if pre else self._norm(block, norm, x + y)
        if pre:
            x = self._norm({n.removeprefix("head."): p for n, p in w.items()}, "norm", x)
        table = w["embedding.token" if config.tied else "head.table"]
        return x @ table.mT[:, None]

    def losses(self, tokens: Tensor, targets: Tensor, heads_left: Tensor | None = None) -> Tensor:
        """Every model's mean loss in nats, [M], of tokens and targets [M, B, S]."""
        logits = self.logits(tokens, heads_left)
        each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return each.view(len(self.seeds), -1).mean(1)

    def _norm(self, block: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        y = self.normalise(x) * block[f"{name}_weight"][:, None, None]
        bias = block.get(f"{name}_bias")
        return y if bias is None else y + bias[:, None, None]

    def _attention(self, block: dict[str, Tensor], x: Tensor, left: Tensor | None) -> Tensor:
        qkv = linear(x, block["qkv_weight"], block.get("qkv_bias"))
        q, k, v = (y.unflatten(-1, (self.config.heads, -1)).transpose(2, 3) for y in qkv.chunk(3, -1))
        scores = q @ k.mT * q.shape[-1] ** -0.5  # [M, B, heads, S, S]: at these sizes the quickest way
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        out = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        if left is not None:
            out = out * left[:, None, :, None, None]
        return linear(out.transpose(2, 3).flatten(3), block["out_weight"], block.get("out_bias"))


def _mlp(block: dict[str, Tensor], x: Tensor, _left: Tensor | None) -> Tensor:
    inner = F.gelu(linear(x, block["up_weight"], block.get("up_bias")))
    return linear(inner, block["down_weight"], block.get("down_bias"))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every model's own matrix: x [M, B, S, in], weight [M, out, in], bias [M, out] -> [M, B, S, out]."""
    flat = x.flatten(1, 2)
    y = flat @ weight.mT if bias is None else torch.baddbmm(bias[:, None], flat, weight.mT)
    return y.view(*x.shape[:3], -1)


@dataclass
class Adam:
    """Adam with a rate for each model (1412.6980), on the flat weights [M, parameters]."""

    flat: Tensor
    beta1: float = 0.9
    beta2: float = 0.95
    step: int = 0

    def __post_init__(self) -> None:
        self.m, self.v = torch.zeros_like(self.flat), torch.zeros_like(self.flat)

    @torch.no_grad()
    def update(self, gradient: Tensor, rates: Tensor, clip: float = 0.0) -> None:
        """One step in place. gradient: [M, parameters]; rates: [M]; clip: the largest norm of a model's
        gradient, 0: any.
        """
        self.step += 1
        if clip:
            gradient = gradient * (clip / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        self.m.lerp_(gradient, 1 - self.beta1)
        self.v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        size = (self.v / (1 - self.beta2**self.step)).sqrt_().add_(1e-8)
        self.flat.sub_(rates[:, None] / (1 - self.beta1**self.step) * self.m / size)


def train(
    models: ModelsAtOnce,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    rates: Callable[[int], Tensor],
    steps: int,
    clip: float = 0.0,
) -> Tensor:
    """Train all models.

    Args:
        models: changed in place.
        batch: for a step, from 0, tokens and targets [M, B, S].
        rates: for a step the models' learning rates, [M].
        steps: how many.
        clip: the largest norm of a model's gradient; 0: any.

    Returns:
        The losses before each step, [steps, M].
    """
    adam, seen = Adam(models.flat.detach()), []
    for step in range(steps):
        losses = models.losses(*batch(step))
        (gradient,) = torch.autograd.grad(losses.sum(), models.flat)  # each model's loss has its own weights
        adam.update(gradient, rates(step), clip)
        seen.append(losses.detach())
    return torch.stack(seen)
