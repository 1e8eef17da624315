"""Backward in two parts: I computes the gradient of a stage's input, W the gradients of its weights.

Follows Qi et al., "Zero bubble pipeline parallelism" (2401.10241), section 2. Symbols: a matrix A, its input
X, the gradient dY of its output Y = X A^T.

    B    dX = dY A    dA = dY^T X                           one after the other, as autograd does
    I    dX = dY A                  save (dY, X)            the stage before waits for dX
    W                 dA = dY^T X   free them               nobody waits for dA before the optimizer

In I, autograd runs without accumulating. A matrix saves (dY, X) here instead of computing its gradient. The
gradients of the stage's other parameters (norms, biases, embedding, router) are computed in I and saved too,
so that the data-parallel manager hears of a micro-batch once, in W. With sequence parallelism W gathers X
again; B does that while it computes dX.
But: attention has no weights, so its backward is all in I; so are the gradients of norms, biases, embedding
and router.
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
    """A term of a parameter's gradient that is still to be computed: of all of it, or of one
    expert's slice.
    """

    compute: Compute
    layer: int
    index: int | None = None


@dataclass
class Remainder:
    """What the I of a micro-batch leaves to its W: finished gradients, and terms that W computes."""

    gradients: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    deferred: dict[nn.Parameter, list[Part]] = field(default_factory=dict)


class WeightGradients:
    """Handed to the model's blocks as `parallel.deferred`; the executor says when a backward is
    in two parts.
    """

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.collecting: Remainder | None = None

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, whole: Tensor | None, index: int | None
    ) -> Tensor:
        """The product that `Unsharded.linear` computes, with a weight gradient that can be deferred."""
        return Linear.apply(x, weight, bias, self, whole, index)

    def defer(self, weight: Tensor, compute: Compute, index: int | None = None) -> bool:
        """Take `compute`, the gradient of a parameter or of its slice `index`, for W. False: this backward is
        whole.
        """
        if self.collecting is None:
            return False
        assert isinstance(weight, nn.Parameter)
        self.collecting.deferred.setdefault(weight, []).append(
            Part(compute, self.gpu.recorder.current_layer(), index)
        )
        return True

    def input_gradient(
        self,
        y: Tensor | GradientEdge,
        dy: Tensor | None,
        x: Tensor | None,
        parameters: Mapping[str, nn.Parameter],
    ) -> tuple[Tensor | None, Remainder]:
        """I: the gradient of x (None on the first stage), and what is left for W."""
        remainder = self.collecting = Remainder()
        wanted = ([x] if x is not None else []) + list(parameters.values())
        try:
            gradients = list(torch.autograd.grad(y, wanted, dy, allow_unused=True))
        finally:
            self.collecting = None
        dx = gradients.pop(0) if x is not None else None
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            if gradient is not None:
                remainder.gradients[parameter] = gradient
        return dx, remainder

    @torch.no_grad()
    def weight_gradients(
        self,
        remainder: Remainder,
        parameters: Mapping[str, nn.Parameter],
        ready: Callable[[nn.Parameter], None],
    ) -> None:
        """W: gradients are added to `.grad`, the last layer's first; `ready` hears of each."""
        for parameter in reversed(list(parameters.values())):
            # `parts` lives until the next parameter: what it holds is freed there, and memory is counted so
            total, parts = remainder.gradients.pop(parameter, None), remainder.deferred.pop(parameter, [])
            for part in parts:
                with self.gpu.region(layer=part.layer):
                    gradient = part.compute()
                if part.index is None:
                    total = gradient if total is None else total.add_(gradient)
                else:
                    total = torch.zeros_like(parameter) if total is None else total
                    total[part.index].add_(gradient)
            if total is not None:
                accumulate(parameter, total)
                ready(parameter)


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add a gradient to `.grad`, as autograd does at a leaf: there its layout is the parameter's."""
    if parameter.grad is None:
        parameter.grad = gradient.contiguous()
    else:
        parameter.grad.add_(gradient)


class Linear(torch.autograd.Function):
    """x A^T + b, whose weight gradient can be deferred.

    `whole`, `index`: A is slice `index` of the parameter `whole`.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        deferred: WeightGradients,
        whole: Tensor | None,
        index: int | None,
    ) -> Tensor:
        ctx.deferred, ctx.bias, ctx.index = deferred, bias is not None, index
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

        is_deferred = ctx.deferred.defer(ctx.parameter, compute, ctx.index)
        return d_x, None if is_deferred else compute(), d_bias, None, None, None
