"""Nothing here is compiled: torch's compiler, whose import takes two seconds a process, is left alone.

torch marks functions that its compiler shall not look into, among them `checkpoint` and, on `meta` tensors,
most elementwise operators. The first call of each imports the compiler, to ask it for a wrapper that it
passes over.
"""

from __future__ import annotations

import functools
import gc
import sys
from types import FunctionType

import torch


@functools.cache
def leave_compiler_alone() -> int:
    """Let each marked function be its own wrapper. Returns how many there are.

    Where the program itself has imported the compiler nothing changes, as for functions that are defined
    later. Private to torch (torch/_compile.py): a torch that does it otherwise is slower here, and nothing
    else.
    """
    mark = getattr(getattr(torch, "_compile", None), "_disable_dynamo", None)
    if mark is None or "torch._dynamo" in sys.modules:
        return 0
    code = getattr(mark(leave_compiler_alone), "__code__", None)
    if code is None or "fn" not in code.co_freevars:
        return 0
    place, marked = code.co_freevars.index("fn"), 0
    for wrapper in gc.get_referrers(code):
        if isinstance(wrapper, FunctionType) and wrapper.__closure__:
            function = wrapper.__closure__[place].cell_contents
            if isinstance(function, FunctionType):
                function.__dynamo_disable = function  # type: ignore[attr-defined]
                marked += 1
    return marked
