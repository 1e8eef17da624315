"""The registry of collective algorithms: each registers itself by operation and name.

    @collective("all_reduce", "my-ring")
    def my_all_reduce(work, x, op="sum"):
        ...
        yield work.exchange(x, right, staging, left)

`glass train --algorithm my_file.py:my-ring` trains with it: every rank loads the file when it first uses the
algorithm. Operations for which the file registers nothing run as they do by default.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from threading import Lock
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import is_file as is_regular_file
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
NATIVE = "native"  # the name that leaves the collective to gloo or NCCL
LIBRARY = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "barrier",
)  # the operations that gloo and NCCL run as a whole
ALGORITHMS: dict[str, dict[str, Callable | None]] = {
    operation: {NATIVE: None} if operation in LIBRARY else {} for operation in OPERATIONS
}
THEORY: dict[str, Callable[..., Theory]] = {}
# The algorithm of an operation that the chosen one does not have; for every other operation it is the ring.
DEFAULTS = {"scatter": "direct", "gather": "direct", "all_to_all": "direct", "barrier": "dissemination"}
FILE_MODULE = "glasscluster_algorithm_"  # what the module of a file is called, before the file's name
_LOADED: set[str] = set()  # files
_LOADING = Lock()  # ranks may be threads


# by operation and name: the grid on whose shifts all ranks do the same (alike.py); nothing: they do not
ALIKE: dict[tuple[str, str], Callable[..., tuple[int, ...] | None]] = {}


def collective(
    operation: str, name: str, alike: Callable[..., tuple[int, ...] | None] | None = None
) -> Callable[[Callable], Callable]:
    """Register the decorated function as an algorithm of a collective.

    The function is called on every rank as `steps(work, x, **options)`, x the flat buffer [numel]; it posts
    messages with `work.send`, `work.recv` or `work.exchange` and yields what they return after each step, as
    in ring.py. An all-reduce of one byte also serves as a barrier, because a rank that has the sum has heard
    from every rank.

    Args:
        operation: one of `OPERATIONS`, such as `all_reduce`.
        name: what the algorithm is called: `comm.all_reduce(x, algorithm=name)`.
        alike: says which ranks do the same, as in alike.py; None: nobody knows, so each is recorded.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        InputError: for an unknown operation, a name that is taken, or a function that cannot be called so.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster, collective
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
    if name in ALGORITHMS[operation]:
        raise InputError("algorithm", name, f"{operation} has an algorithm of this name: choose another name")

    def register(steps: Callable) -> Callable:
        _check_parameters(operation, name, steps)
        ALGORITHMS[operation][name] = steps
        if alike is not None:
            ALIKE[operation, name] = alike
        if operation == "all_reduce":
            ALGORITHMS["barrier"].setdefault(name, steps)
            if alike is not None:
                ALIKE.setdefault(("barrier", name), alike)
        return steps

    return register


TAKES: dict[
    str, dict[str, Any]
] = {  # what a communicator gives to the algorithms of an operation, beside the work and the buffer
    "all_reduce": {"op": "sum"},
    "reduce_scatter": {"op": "sum"},
    "reduce": {"op": "sum", "dst": 0},
    "broadcast": {"src": 0},
    "scatter": {"src": 0},
    "gather": {"dst": 0},
    "all_to_all": {"out": None, "sends": None, "receives": None},
}


def _check_parameters(operation: str, name: str, steps: Callable) -> None:
    """Refuse a function that cannot be called as the operation calls it, naming its line."""
    takes = TAKES.get(operation, {})
    try:
        signature(steps).bind(None, None, **takes)
    except TypeError as problem:
        code = getattr(steps, "__code__", None)
        place = f"{Path(code.co_filename).name}:{code.co_firstlineno}: " if code is not None else ""
        call = ", ".join(["work", "x", *(f"{k}={v!r}" for k, v in takes.items())])
        rule = f"{place}{operation} calls it as {getattr(steps, '__name__', name)}({call}), but: {problem}"
        raise InputError("algorithm", name, rule) from None


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
    """Load the file of `FILE.py:NAME` once in this process; returns NAME, which must be registered by then.

    Any other name comes back as it is.
    """
    if not is_file(algorithm):
        return algorithm
    file, _, name = algorithm.rpartition(":")
    path = Path(file).absolute()
    with _LOADING:
        if str(path) not in _LOADED:
            if not is_regular_file(path):
                raise InputError("algorithm", algorithm, f"there is no file {file}")
            _run(path, algorithm)
            _LOADED.add(str(path))
    if not any(name in known for known in ALGORITHMS.values()):
        here = {n for known in ALGORITHMS.values() for n, steps in known.items() if _stands_in(steps, path)}
        rule = f"{file} registers no algorithm of this name with @collective"
        if here:
            rule += f", but {', '.join(sorted(here))}"
        raise InputError("algorithm", algorithm, rule, [f"{file}:{n}" for n in sorted(here)])
    return name


def registered_elsewhere() -> list[tuple[str, str, Callable]]:
    """Operation, name and function of every algorithm that a program registered by itself: it is no part of
    this package, and no file that `load` reads on every rank.
    """
    here = (__name__.split(".")[0] + ".", FILE_MODULE)
    return [
        (operation, name, steps)
        for operation, known in ALGORITHMS.items()
        for name, steps in known.items()
        if steps is not None and not str(steps.__module__).startswith(here)
    ]


def take(algorithms: list[tuple[str, str, Callable]]) -> None:
    """Register what another process has registered, in the place of an older one of the same name."""
    for operation, name, steps in algorithms:
        ALGORITHMS[operation][name] = steps


def _stands_in(steps: Callable | None, path: Path) -> bool:
    """Whether the steps of an algorithm are written in this file."""
    code = getattr(steps, "__code__", None)
    return code is not None and Path(code.co_filename) == path


def _run(path: Path, algorithm: str) -> None:
    """Run a file that registers algorithms. If it fails, nothing that it registered remains."""
    spec = importlib.util.spec_from_file_location(f"{FILE_MODULE}{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    before = {operation: dict(known) for operation, known in ALGORITHMS.items()}
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        for operation, known in before.items():
            ALGORITHMS[operation].clear()
            ALGORITHMS[operation].update(known)
        if isinstance(problem, InputError):
            raise
        rule = f"the file fails on import: {type(problem).__name__}: {problem}"
        raise InputError("algorithm", algorithm, rule) from None


def serving(operation: str, algorithm: str) -> str:
    """Return the algorithm that runs an operation when one was chosen for all operations, as for a training.

    It is the chosen algorithm if that has the operation, else the default: the ring, or what DEFAULTS names.
    """
    name = load(algorithm)
    return name if name in ALGORITHMS[operation] else DEFAULTS.get(operation, "ring")


def find(operation: str, algorithm: str) -> tuple[str, Callable | None]:
    """Return the name and the steps of an algorithm; the steps are None for `native`. Unknown names raise
    InputError.

    `FILE.py:NAME` stands for NAME in the operations that its file registers, in all others for their default.
    """
    name = serving(operation, algorithm) if is_file(algorithm) else algorithm
    known = ALGORITHMS[operation]
    if name not in known:
        raise InputError("algorithm", algorithm, f"{operation} has no such algorithm", list(known))
    return name, known[name]


def with_option(operation: str, option: str) -> list[str]:
    """Return the algorithms of an operation that have a certain option, such as `pieces`."""
    return [
        n
        for n, steps in ALGORITHMS[operation].items()
        if steps is not None and option in signature(steps).parameters
    ]


def predict(
    algorithm: str, operation: str, size: int, nbytes: float, link: Any = None, **options: Any
) -> Theory:
    """Return what an algorithm should cost: bytes sent by all ranks, messages that wait for each other, and
    seconds where there is a closed form.
    """
    return THEORY[algorithm](operation, size, nbytes, link, **options)
