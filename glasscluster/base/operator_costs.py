"""The registry of what operators cost: a kernel registers its formulas here, the recorder looks them up here.

    register("glasscluster::flash_forward", flops, nbytes)      beside the kernel, when its module is imported
    cost_of("glasscluster::flash_forward").flops(args, out)     for each call that is recorded

So the model need not know who counts, and the recorder need not know which kernels exist. A program that
calls an operator has imported the module that defines it, so its formulas are here before its first call is
recorded. A formula gets the operator's positional arguments and its result, and returns a whole number.
Operators are named as in torch's schemas, "namespace::name" without the overload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Formula = Callable[[Sequence[Any], Any], int]


class OperatorCost(NamedTuple):
    """What one call costs.

    flops: floating-point operations of its products of matrices; None if it has none, which is counted as 0.
    nbytes: bytes read from and written to slow memory; None for the bytes of all inputs and outputs.
    """

    flops: Formula | None = None
    nbytes: Formula | None = None


COSTS: dict[str, OperatorCost] = {}


def register(operator: str, flops: Formula | None = None, nbytes: Formula | None = None) -> None:
    """Say what an operator costs; without formulas, that it has no products of matrices."""
    COSTS[operator] = OperatorCost(flops, nbytes)


def cost_of(operator: str) -> OperatorCost | None:
    """The formulas of an operator; None if nobody has registered it."""
    return COSTS.get(operator)
