"""What operators give on `meta` tensors (shapes without data), worked out once and remembered.

    func(inputs)  ->  shapes, strides and types of the outputs        depends on those of the inputs, and on every other argument

torch works many of these out in Python: a linear layer with a bias takes it a hundred times as long as a matrix product without one.
A model repeats each of its layers, every micro-batch and every rank, so a dry run asks for the same few hundred again and again.
But: only for operators that neither write nor share anything. Views, in-place operators and those that hand on an input's storage
without saying so (`_unsafe_view`) run each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LIMIT = 100_000  # calls that are remembered; then all are forgotten

_pure: dict[Any, bool] = {}
_known: dict[tuple, Any] = {}


def operate(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs) on meta tensors: fresh outputs of the shapes that the same call gave before."""
    pure = _pure.get(func)
    if pure is None:
        schema = func._schema
        pure = _pure[func] = not any(x.alias_info for x in (*schema.arguments, *schema.returns))
    if not pure:
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
        _known[key] = _recipe(out, {_storage(x) for x in tensors((args, kwargs))})
        return out
    return func(*args, **kwargs) if known is None else _fresh(known)


def _key(x: Any) -> Any:
    """Equal for arguments that an operator cannot tell apart. 1, 1.0 and True are not equal here."""
    if isinstance(x, Tensor):
        if not x.is_meta:
            raise TypeError
        return x.shape, x.stride(), x.dtype
    if isinstance(x, (tuple, list)):
        return tuple([_key(y) for y in x])
    return x if x is None else (type(x), x)


def tensors(x: Any) -> Iterator[Tensor]:
    """Those in nested tuples, lists and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list, dict)):
        for y in x.values() if isinstance(x, dict) else x:
            yield from tensors(y)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _recipe(out: Any, given: set[int]) -> Any:
    """How to make such outputs again; None if one stands in a storage that it shares, or does not fill."""
    if isinstance(out, (tuple, list)):
        parts = [_recipe(x, given) for x in out]
        return None if None in parts else (type(out), parts)
    if not isinstance(out, Tensor) or _storage(out) in given:
        return None
    given.add(_storage(out))
    made = out.shape, out.stride(), out.dtype
    return made if out.is_meta and _fresh(made).untyped_storage().nbytes() == out.untyped_storage().nbytes() else None


def _fresh(made: Any) -> Any:
    if isinstance(made[0], type):
        return made[0]([_fresh(x) for x in made[1]])
    return torch.empty_strided(made[0], made[1], dtype=made[2], device="meta")
