"""Remembers what operators return on `meta` tensors (shapes without data), so that torch computes it only
once.

    func(inputs)  ->  shapes, strides and types of the outputs

The outputs' shapes depend on the inputs' shapes, strides and types, and on every other argument.

torch works many of these out in Python: a linear layer with a bias takes it a hundred times as long as a
matrix product without one. A model repeats each of its layers, every micro-batch and every rank, so a dry run
asks for the same few hundred again and again. An in-place operator has nothing to do once it is known that it
does not change its tensor's shape. But: views, operators with an `out`, those that hand on an input's storage
without saying so (`_unsafe_view`), and those that give a tensor another storage or more of it (`set_`,
`resize_`) run each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glasscluster.sim.recording.recorder import tensors

LIMIT = 100_000  # the most calls that are remembered; then all are forgotten
_PLAIN = (
    int,
    float,
    complex,
    bool,
    str,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)  # remembering arguments of these types keeps no tensor alive

# What a reduction does with every message. It returns its first tensor, and to see that the other fits, torch
# imports its symbolic shapes, which takes longer than a thousand ranks' collective.
_ADD_INTO = torch.ops.aten.add_.Tensor

_kinds: dict[Any, str] = {}
_known: dict[tuple, Any] = {}


def operate(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs) on meta tensors: fresh outputs of the shapes that the same call gave before."""
    if func is _ADD_INTO and not kwargs and _fits(*args):
        return args[0]
    kind = _kinds.get(func) or _kinds.setdefault(func, _kind(func._schema))
    if kind == "other":
        return func(*args, **kwargs)
    try:
        key = func, _key(args), _key(tuple(kwargs.items())) if kwargs else ()
        known = _known.get(key, _known)
    except TypeError:  # something that cannot be compared, or is no meta tensor
        return func(*args, **kwargs)
    if known is _known:
        out = func(*args, **kwargs)
        if len(_known) >= LIMIT:
            _known.clear()
        if kind == "in place":
            _known[key] = "itself" if out is args[0] and _key(out) == key[1][0] else None
        else:
            _known[key] = _recipe(out, {_storage(x) for x in tensors((*args, *kwargs.values()))})
        return out
    if known == "itself":
        return args[0]
    return func(*args, **kwargs) if known is None else _fresh(known)


def _fits(into: Any, other: Any) -> bool:
    """Whether two meta tensors have one shape and one type, so that one can be added into the other, and the
    other is not changed by it twice in one place."""
    both = isinstance(into, Tensor) and isinstance(other, Tensor) and into.is_meta and other.is_meta
    return both and into.is_contiguous() and into.shape == other.shape and into.dtype == other.dtype


def _kind(schema: Any) -> str:
    """What an operator does by its schema: makes its outputs, writes its first argument and returns it, or
    something else.
    """
    if schema.name.split("::")[1] in ("set_", "resize_", "resize_as_"):
        return "other"
    aliases = [x.alias_info for x in (*schema.arguments, *schema.returns)]
    if not any(aliases):
        return "pure"
    first, others, result = aliases[0], aliases[1 : len(schema.arguments)], aliases[len(schema.arguments) :]
    in_place = (
        first and first.is_write and not any(others) and len(result) == 1 and result[0] and result[0].is_write
    )
    return "in place" if in_place else "other"


def _key(x: Any) -> Any:
    """A key that is equal for calls which the operator cannot tell from each other; 1, 1.0 and
    True differ.
    """
    if isinstance(x, Tensor):
        if not x.is_meta:
            raise TypeError
        return x.shape, x.stride(), x.dtype
    if isinstance(x, (tuple, list)):
        return tuple([_key(y) for y in x])
    if x is not None and not isinstance(x, _PLAIN):
        raise TypeError
    return type(x), x


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _recipe(out: Any, given: set[int]) -> Any:
    """How to make the same outputs again; None if one shares its storage with another, or does
    not fill it.
    """
    if isinstance(out, (tuple, list)):
        recipes = [_recipe(x, given) for x in out]
        return None if None in recipes else (type(out), recipes)
    if not isinstance(out, Tensor) or _storage(out) in given:
        return None
    given.add(_storage(out))
    made = out.shape, out.stride(), out.dtype
    return (
        made
        if out.is_meta and _fresh(made).untyped_storage().nbytes() == out.untyped_storage().nbytes()
        else None
    )


def _fresh(made: Any) -> Any:
    if isinstance(made[0], type):
        return made[0]([_fresh(x) for x in made[1]])
    return torch.empty_strided(made[0], made[1], dtype=made[2], device="meta")
