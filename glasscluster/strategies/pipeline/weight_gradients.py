"""Backward in two parts: I the gradient of a stage's input, W that of its weights.

Follows Qi et al., "Zero bubble pipeline parallelism" (2401.10241), section 2. Symbols: a matrix A, its input X, the gradient dY
of its output Y = X A^T.

    B    dX = dY A    dA = dY^T X                           one after the other, as autograd does
    I    dX = dY A                  keep (dY, X)            the stage before waits for dX
    W                 dA = dY^T X   let them go             nobody waits for dA before the optimizer

In I autograd runs without accumulating: a matrix that finds its stage in two parts leaves (dY, X) here and no gradient. What the
stage's other parameters (norms, biases, embedding, router) got is kept too, so the data-parallel manager hears of a micro-batch once,
in W. With sequence parallelism W gathers X again, where B does that while it computes dX.
But: attention has no weights, so its backward is all in I; so are the gradients of norms, biases, embedding and router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from glasscluster.sim.ranks.gpu import GPU

Compute = Callable[[], Tensor]


@dataclass
class Part:
    """A piece of a parameter's gradient: of all of it, or of one expert's slice; computed when it is asked for."""

    compute: Compute
    layer: int
    index: int | None = None


@dataclass
class Kept:
    """What I of a micro-batch leaves to its W."""

    found: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    later: dict[nn.Parameter, list[Part]] = field(default_factory=dict)


class WeightGradients:
    """Handed to the model's blocks as `parallel.later`; the executor says when a backward is in two parts."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.collecting: Kept | None = None

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, whole: Tensor | None, index: int | None) -> Tensor:
        """What `Unsharded.linear` is then."""
        return Linear.apply(x, weight, bias, self, whole, index)

    def put_off(self, weight: Tensor, compute: Compute, index: int | None = None) -> bool:
        """Take note of `compute`, the gradient of a parameter or of its slice `index`, for W. False: this backward is whole."""
        if self.collecting is None:
            return False
        assert isinstance(weight, nn.Parameter)
        self.collecting.later.setdefault(weight, []).append(Part(compute, self.gpu.recorder.current_layer(), index))
        return True

    def input_gradient(
        self, y: Tensor | GradientEdge, dy: Tensor | None, x: Tensor | None, parameters: Mapping[str, nn.Parameter]
    ) -> tuple[Tensor | None, Kept]:
        """I: the gradient of x (None on the first stage), and what is left for W."""
        kept = self.collecting = Kept()
        wanted = ([x] if x is not None else []) + list(parameters.values())
        try:
            gradients = list(torch.autograd.grad(y, wanted, dy, allow_unused=True))
        finally:
            self.collecting = None
        dx = gradients.pop(0) if x is not None else None
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            if gradient is not None:
                kept.found[parameter] = gradient
        return dx, kept

    @torch.no_grad()
    def weight_gradients(self, kept: Kept, parameters: Mapping[str, nn.Parameter], ready: Callable[[nn.Parameter], None]) -> None:
        """W: gradients are added to `.grad`, the last layer's first; `ready` hears of each."""
        for parameter in reversed(list(parameters.values())):
            found, parts = kept.found.pop(parameter, None), kept.later.pop(parameter, [])
            for part in parts:
                with self.gpu.region(layer=part.layer):
                    gradient = part.compute()
                if part.index is None:
                    found = gradient if found is None else found.add_(gradient)
                else:
                    found = torch.zeros_like(parameter) if found is None else found
                    found[part.index].add_(gradient)
            if found is not None:
                accumulate(parameter, found)
                ready(parameter)


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """As autograd does at a leaf."""
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


class Linear(torch.autograd.Function):
    """x A^T + b, whose weight gradient can wait. `whole` and `index`: A is a slice of that parameter (an expert's)."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, later: WeightGradients, whole: Tensor | None, index: int | None
    ) -> Tensor:
        ctx.later, ctx.bias, ctx.index = later, bias is not None, index
        ctx.parameter = weight if whole is None else whole  # what recomputation brings back would be a copy
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        x = x.detach()  # what waits for W holds a tensor, not the graph that made it
        flat = grad.reshape(-1, grad.shape[-1])
        d_x = (flat @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        d_bias = flat.sum(0) if ctx.bias else None

        def compute() -> Tensor:
            return flat.T @ x.reshape(-1, x.shape[-1])

        put_off = ctx.later.put_off(ctx.parameter, compute, ctx.index)
        return d_x, None if put_off else compute(), d_bias, None, None, None
