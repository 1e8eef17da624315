"""Which collective algorithms there are: each registers itself by operation and name.

    @collective("all_reduce", "my-ring")
    def my_all_reduce(work, x, op="sum"):
        ...
        yield work.exchange(x, right, staging, left)

`glass train --algorithm my_file.py:my-ring` trains with it: the file is loaded where it is asked for, on
every rank.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.sim.ranks.collectives.theory import Theory

OPERATIONS = (
    *(
        "all_reduce",
        "reduce_scatter",
        "all_gather",
        "broadcast",
        "reduce",
        "scatter",
        "gather",
        "all_to_all",
        "barrier",
    ),
)
NATIVE = "native"  # hand the collective to gloo or NCCL
LIBRARY = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "barrier",
)  # what a library is asked for
ALGORITHMS: dict[str, dict[str, Callable | None]] = {
    operation: {NATIVE: None} if operation in LIBRARY else {} for operation in OPERATIONS
}
THEORY: dict[str, Callable[..., Theory]] = {}
_LOADED: set[str] = set()  # files


def collective(operation: str, name: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as an algorithm of a collective.

    The function is called on every rank as `steps(work, x, **options)`, x the flat buffer [numel]; it posts
    messages with `work.send`, `work.recv` or `work.exchange` and yields what they return after each step, as
    in ring.py. An all-reduce serves as a barrier too, of one byte: who has the sum has heard of everybody.

    Args:
        operation: one of `OPERATIONS`, such as `all_reduce`.
        name: what the algorithm is called: `comm.all_reduce(x, algorithm=name)`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        InputError: for an unknown operation.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> from glasscluster.sim.ranks.collectives.registry import collective
        >>> @collective("all_reduce", "all-to-all-peers")
        ... def everybody_sends_everything(work, x, op="sum"):
        ...     n, rank, own = work.comm.size, work.comm.rank, x.clone()
        ...     for k in range(1, n):
        ...         arriving = torch.empty_like(x)
        ...         yield work.exchange(own, (rank + k) % n, arriving, (rank - k) % n)
        ...         x += arriving
        >>> def program(gpu):
        ...     x = torch.ones(2)
        ...     gpu.comm.all_reduce(x, algorithm="all-to-all-peers")
        ...     return x.tolist()
        >>> Cluster("classroom", gpus=3).run(program).results[0]
        [3.0, 3.0]
    """
    if operation not in ALGORITHMS:
        raise InputError("operation", operation, "unknown collective", OPERATIONS)

    def register(steps: Callable) -> Callable:
        ALGORITHMS[operation][name] = steps
        if operation == "all_reduce":
            ALGORITHMS["barrier"].setdefault(name, steps)
        return steps

    return register


def theory_of(name: str) -> Callable[[Callable[..., Theory]], Callable[..., Theory]]:
    """Register the decorated function as the theory of an algorithm: what a collective by it should cost.

    The function is called as `predict(operation, size, nbytes, link, **options)` with the number of ranks,
    the buffer's bytes and the wire between them, and returns a `Theory`: bytes sent by all ranks together,
    messages that wait for each other, seconds (where a closed form holds).

    Args:
        name: the algorithm's name, as in `@collective`.

    Returns:
        A decorator that returns the function unchanged.

    Example:
        >>> from glasscluster.sim.ranks.collectives.registry import predict
        >>> predict("ring", "all_reduce", 4, 1000).bytes_total  # 2(n-1) of its bytes, over all ranks
        6000
    """

    def register(predict: Callable[..., Theory]) -> Callable[..., Theory]:
        THEORY[name] = predict
        return predict

    return register


def is_file(algorithm: str) -> bool:
    """Whether a name means an algorithm in a file: `FILE.py:NAME`."""
    return ".py:" in algorithm


def load(algorithm: str) -> str:
    """Load the file of an algorithm, once in this process.

    Args:
        algorithm: `FILE.py:NAME`.

    Returns:
        NAME, which the file has registered.

    Raises:
        InputError: if there is no such file, it fails on import, or registers no such name.
    """
    file, _, name = algorithm.rpartition(":")
    path = Path(file).absolute()
    if str(path) not in _LOADED:
        if not path.is_file():
            raise InputError("algorithm", algorithm, f"there is no file {file}")
        spec = importlib.util.spec_from_file_location(f"glasscluster_algorithm_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except InputError:
            raise
        except Exception as problem:
            raise InputError(
                "algorithm", algorithm, f"the file fails on import: {type(problem).__name__}: {problem}"
            ) from None
        _LOADED.add(str(path))
    if not any(name in known for known in ALGORITHMS.values()):
        found = sorted({n for known in ALGORITHMS.values() for n in known if n != NATIVE})
        raise InputError(
            "algorithm", algorithm, f"{file} registers no algorithm of this name with @collective", found
        )
    return name


def find(operation: str, algorithm: str) -> Callable | None:
    """Look an algorithm up.

    Args:
        operation: one of `OPERATIONS`.
        algorithm: a registered name, or `FILE.py:NAME`.

    Returns:
        The function that makes its steps; None for `native`, which a library runs.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    known = ALGORITHMS[operation]
    name = load(algorithm) if is_file(algorithm) else algorithm
    if name not in known:
        raise InputError("algorithm", algorithm, f"{operation} has no such algorithm", list(known))
    return known[name]


def with_option(operation: str, option: str) -> list[str]:
    """The algorithms of an operation that have an option, such as `pieces`."""
    return [
        n
        for n, steps in ALGORITHMS[operation].items()
        if steps is not None and option in signature(steps).parameters
    ]


def predict(
    algorithm: str, operation: str, size: int, nbytes: float, link: Any = None, **options: Any
) -> Theory:
    """What an algorithm should cost: bytes over all ranks, dependent messages, seconds where a closed form
    holds.
    """
    return THEORY[algorithm](operation, size, nbytes, link, **options)
