"""What an operator of torch is to the recorder: is it an event, what does it allocate, its bytes and FLOPs.

FLOPs are those of products of matrices. Who says how many, in this order:

    1. base/operator_costs.py       our kernels, which register themselves; torch's products, registered below
    2. nothing to count             what moves, combines element by element, reduces, sorts: 0, by definition
    3. torch.utils.flop_counter     convolutions, fused attention on GPUs, and what a user registers there
    4. nobody                       counted as 0 and marked: the graph's info lists it under "unknown_flops"

Bytes are those of all inputs and outputs, unless a formula says otherwise. An operator that torch itself
composes of others is not seen here, but the others are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from glasscluster.base import operator_costs

Count = Callable[[Sequence[Any], Any], int | None]  # (arguments, result) -> FLOPs; None: nobody knows


class OpRule:
    """What one operator does: which arguments it only writes, its FLOPs and bytes, whether it is an event."""

    __slots__ = ("allocates", "event", "flops", "mutated", "name", "nbytes", "write_only")

    def __init__(self, func: Any) -> None:
        schema = func._schema
        base = schema.name.split("::")[-1]
        self.name = str(func).removeprefix("aten.").removesuffix(".default")
        aliases = [a.alias_info for a in schema.arguments]
        writes = [i for i, alias in enumerate(aliases) if alias is not None and alias.is_write]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        self.mutated = tuple(writes)
        wire = schema.name.startswith("c10d::")  # torch.distributed's own: the communicator records messages
        self.event = not (view or wire or base in _SILENT)
        self.allocates = not (view or wire or writes)
        # zero_, fill_ and *_like overwrite without reading; copy_ does not read its destination
        reads_nothing = base.endswith("_like") or base in _WRITE_ONLY
        overwritten = (0,) if base == "copy_" else ()
        self.write_only = tuple(range(len(schema.arguments))) if reads_nothing else overwritten
        cost = operator_costs.cost_of(schema.name)
        self.nbytes = cost.nbytes if cost else None
        self.flops = flops_of(func) if self.event else None


_SILENT = frozenset(
    (
        *("detach", "_unsafe_view", "lift_fresh", "lift", "set_", "resize_", "is_same_size", "sym_size"),
        *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
        *("_record_function_enter_new", "_record_function_exit"),
    )
)
_WRITE_ONLY = frozenset(["zero_", "fill_", "zeros", "ones", "full", "new_zeros", "new_full", "arange"])

_rules: dict[Any, OpRule] = {}


def rule_of(func: Any) -> OpRule:
    """An operator's rule, made when it is first met."""
    rule = _rules.get(func)
    if rule is None:
        rule = _rules[func] = OpRule(func)
    return rule


composites: dict[Any, Callable[..., Any]] = {}  # operators that are not decomposed as torch does it


def decomposed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run the operators that torch composes `func` of; NotImplemented if it is one of its own.

    Autograd does so before a recorder sees anything; under torch.inference_mode a recorder sees linear,
    matmul and scaled_dot_product_attention whole.
    """
    return composites.get(func, func.decompose)(*args, **kwargs)


# ---- FLOPs -------------------------------------------------------------------------------------------------


def flops_of(func: Any) -> Count | None:
    """The formula for an operator's FLOPs; None if it has none to count."""
    name = func._schema.name
    cost = operator_costs.cost_of(name) or operator_costs.cost_of(name.removesuffix("_"))
    if cost is not None:  # also of addmm_, which is addmm in place
        return cost.flops
    if torch.Tag.pointwise in func.tags or (name.startswith("aten::") and not _PRODUCTS.search(name[6:])):
        return None
    return _torch_formula(func) or _unknown


# Operators of torch that multiply and add up, by their names: products, convolutions, attention, recurrent
# layers, linear algebra, Fourier transforms, distances of all pairs. Others move, combine or reduce elements.
_PRODUCTS = re.compile(
    r"mm(_|$)|mv(_|$)|matmul|(^|_)v?dot(_|$)|(^|_)addr(_|$)|(^|_)(tri)?linear(_|$)|conv(?!ert)|attention"
    r"|transformer|rnn|lstm|gru(_|$)|^_?linalg_(?!vector_norm|cross|check_errors)|cholesky|solve|lstsq|geqrf"
    r"|orgqr|ormqr|svd|fft"
    r"|cdist|pdist|euclidean_dist"
)


def _unknown(args: Sequence[Any], out: Any) -> None:
    return None


def _torch_formula(func: Any) -> Count | None:
    """torch's own formula for an operator, if it has one."""
    from torch.utils.flop_counter import flop_registry  # imports triton: only where an operator asks for it

    formula = flop_registry.get(func.overloadpacket)
    if formula is None:
        return None

    def flops(args: Sequence[Any], out: Any) -> int | None:
        try:
            return int(formula(*args, out_val=out))
        except Exception:  # it asserts shapes that it does not know, such as heads in groups
            return None

    return flops


def _mm(args, out) -> int:
    a, b = args[0], args[1]
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _addmm(args, out) -> int:
    return _mm(args[1:], out)


def _bmm(args, out) -> int:
    a, b = args[0], args[1]
    return 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]


def _baddbmm(args, out) -> int:
    return _bmm(args[1:], out)


def _mv(args, out) -> int:
    """FLOPs of a matrix and a vector, or of two vectors."""
    return 2 * args[0].numel()


def _addmv(args, out) -> int:
    return _mv(args[1:], out)


def _addr(args, out) -> int:
    return 2 * args[1].numel() * args[2].numel()


def _attention(args, out) -> int:
    """FLOPs of attention: two products over all pairs of query and key, also with a causal mask.

    Q [b, a, n, d], K [b, a_kv, m, d], V [b, a_kv, m, e].
    """
    q, v = args[0], args[2]
    return 2 * prod(q.shape[:3]) * v.shape[2] * (q.shape[3] + v.shape[3])


def _attention_backward(args, out) -> int:
    """FLOPs of attention's backward from dO, Q, K and V: five products, as the scores are computed again."""
    q, v = args[1], args[3]
    return 2 * prod(q.shape[:3]) * v.shape[2] * (3 * q.shape[3] + 2 * v.shape[3])


def _rows_bytes(args, out) -> int:
    """Bytes of a look-up, which reads the rows that it copies and not the table."""
    return 2 * out.numel() * out.element_size() + args[1].numel() * args[1].element_size()


for _name, _flops in {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "addbmm": _baddbmm,
    "mv": _mv,
    "addmv": _addmv,
    "dot": _mv,
    "vdot": _mv,
    "addr": _addr,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}.items():
    operator_costs.register(f"aten::{_name}", _flops)
operator_costs.register("aten::embedding", nbytes=_rows_bytes)
