"""An oracle for moving code: what commands, lessons and the zoo gave before, and whether they still give it.

    python -m tests.move_oracle check                everything
    python -m tests.move_oracle check 3/20           the third of twenty parts of about equal cost
    python -m tests.move_oracle check lesson zoo     of train predict schedule collective lesson zoo
    python -m tests.move_oracle check lesson/C3      items whose key begins so
    python -m tests.move_oracle write                everything anew (with a kind or key: only those)

The stored side is tests/data/oracle.json.xz. An item is a key and a few `glass` command lines, which are
stored with it, so that a check needs nothing of the package but the command. Of what a command line gives,
this is compared:

- the exit code, and of a refusal its error and field;
- the JSON of the command. Strings and whole numbers are equal, floats agree to 1e-9 relative. Long lists are
  stored as a hash of what is exact in them, and of each block of floats a weighted sum;
- of a report its packed graphs (canonical rows, a hash a column), the hardware of each timeline, the lesson's
  answer, and the numbers of its figures, also those inside strings. Words, titles, layout, script and style
  are not compared.

A row that compares something with 0 under a tolerance holds rounding noise: it is compared against its
tolerance alone, and the two figures that draw such rows are left out. Paths, wall seconds and versions are
left out.

Only what the stored side has is compared. A key or a "not applicable" row that is new is listed once, as
information. tests/data/oracle_names.json says which names have changed (it is applied to the stored side),
and which differences are meant:
  exact      {"old name": "new name"}
  patterns   [["regular expression of a whole old name", "template of the new one, with \\1"]]
  justified  [{"item": REGEX, "path": REGEX, "old": optional value, "new": optional value, "why": "..."}]
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import base64
import contextlib
import hashlib
import io
import itertools
import json
import lzma
import math
import platform
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Everything that this file takes from the package (the list of plans, needed to write, is in `training`).
from glasscluster.cli import main

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

Json = Any
HERE = Path(__file__).parent
STORED = HERE / "data" / "oracle.json.xz"
NAMES = HERE / "data" / "oracle_names.json"

CLOSE = 1e-9  # relative difference of two floats that are equal
NOISE = 1e-10  # the package's own tolerance for a difference from one device
BEYOND_NOISE = 1e-6  # relative difference of two residuals that a planted bug makes exceed their tolerance
LONG = 16  # scalars in a list that is stored as hash and sums
BLOCK = 64  # floats in one sum
LEFT_OUT = {"report", "out", "path", "version", "message", "rule", "nearest", "title", "name_zh", "wall_s"}
NOISY_FIGURES = ("rows", "same-")  # they draw residuals; the rows themselves are compared
DATA = "text.txt"  # what the plans train on, in the folder where they run
# Where values depend on this machine's arithmetic, torch, and the standard library that lessons train on.
COMPUTED = re.compile(r"losses|weights_sha256|loss_scales|figures\.own-|lesson\.answer|statistical")


# ---- running a command -------------------------------------------------------------------------------------
def glass(words: list[str]) -> tuple[int, str]:
    """Exit code and standard output of `glass WORDS`, in this process."""
    out = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(list(words))
        except SystemExit as end:
            code = end.code
    return int(code or 0), out.getvalue()


def produce(argv: list[list[str]], kind: str) -> list[Json]:
    """What each command line gives, in the form that is stored."""
    made = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path(DATA).write_text(text(), encoding="ascii")
            for number, words in enumerate(argv):
                reported = words[0] in ("run", "train")
                out = ["--out", f"run-{number}"] if reported else []
                code, said = glass([*words, *out, "--json"])
                content: dict[str, Any] = {"exit": code, "json": condensed(json.loads(said))}
                if reported and (page := Path(f"run-{number}/report.html")).is_file():
                    content |= of_report(page.read_text(encoding="utf-8"), whole_figures=kind == "train")
                made.append(content)
        finally:
            os.chdir(before)
    return made


def text() -> str:
    """Something to train on that is the same everywhere: 20,000 letters of few words."""
    words, state = "the ring sends each shard once and every rank adds what came to what it has".split(), 1
    made = []
    while len(made) < 4000:
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        made.append(words[(state >> 16) % len(words)])
    return " ".join(made)


# ---- the stored form ---------------------------------------------------------------------------------------
def digest(text: str | bytes) -> str:
    """A short hash."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:12]


def condensed(value: Json) -> Json:
    """A command's JSON without what is left out, and with long lists as sketches."""
    if isinstance(value, dict):
        return {k: condensed(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, list):
        if value and all(isinstance(v, dict) and "name" in v and "ok" in v for v in value):
            return {"~rows": [row(v) for v in value]}
        flat = list(scalars(value))
        if len(flat) > LONG and not any(isinstance(v, dict) for v in flat):
            return sketch(flat)
        return [condensed(v) for v in value]
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, str) and value.startswith("/"):  # a temporary folder of a lesson
        return f".../{Path(value).name}"
    if isinstance(value, str) and len(value) > 300:
        return {"~text": digest(value)}
    return value


def row(given: dict[str, Any]) -> dict[str, Any]:
    """A ledger row. `residual` says that it compares something with 0 under a tolerance."""
    made = {k: condensed(v) for k, v in given.items() if k not in LEFT_OUT}
    made["name"] = english(given["name"])
    against_zero = given.get("predicted") is not None and not given["predicted"]
    if (against_zero or given.get("unit") == "relative") and (given.get("tolerance") or 0) > 0:
        made["residual"] = True
    return made


def english(name: Json) -> str:
    """A name, also where it is told in two languages."""
    return str(name["en"]) if isinstance(name, dict) and "en" in name else str(name)


def scalars(value: Json) -> Iterator[Any]:
    """Everything in nested lists, in order."""
    for v in value:
        if isinstance(v, list):
            yield from scalars(v)
        else:
            yield v


def rounded(value: float) -> float:
    """To 13 digits: enough for a comparison to 9."""
    return float(f"{value:.13g}")


NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def sketch(values: list[Any], drawn: bool = False) -> dict[str, Any]:
    """A long list: its length, a hash of what is exact, the floats or weighted sums of blocks of them.

    drawn: of a figure, where a number may stand in a string, whole or not, and where what is tiny is noise.
    """
    exact, numbers = [], []
    for v in values:
        if isinstance(v, float) or (drawn and isinstance(v, int) and not isinstance(v, bool)):
            if math.isfinite(v):
                numbers.append(float(v))
            else:
                exact.append(repr(v))
        elif drawn and isinstance(v, str):
            numbers += [float(n) for n in NUMBER.findall(v)]
        else:
            exact.append(f"{type(v).__name__}:{v}")
    made: dict[str, Any] = {"~n": len(values)}
    if exact:
        made["exact"] = digest("\0".join(exact))
    x = np.array(numbers)
    if drawn and len(x):
        x[np.abs(x) < NOISE] = 0.0
    if len(x) <= LONG:
        made["floats"] = [rounded(v) for v in x.tolist()]
    else:
        made["numbers"] = len(x)
        made["sums"] = [rounded(s) for s in block_sums(x)]
        made["~sizes"] = block_sums(np.abs(x))  # of what is produced, for the tolerance; not stored
    return made


def block_sums(x: np.ndarray) -> list[float]:
    """Of each block of floats a sum whose weights lie between 1/2 and 3/2."""
    weights = 0.5 + (np.arange(1, len(x) + 1) * 0.6180339887498949) % 1.0
    return np.add.reduceat(x * weights, np.arange(0, len(x), BLOCK)).tolist()


# ---- a report ----------------------------------------------------------------------------------------------
def of_report(page: str, whole_figures: bool) -> dict[str, Any]:
    """Packed graphs, hardware of the timelines, the answer, and the numbers of the figures.

    whole_figures: one sketch for a figure, instead of one for each list of each trace.
    """
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    if found is None:
        return {}
    data = json.loads(found[1])
    figures = {k: v["data"] for k, v in data["figures"].items()}
    form = together if whole_figures else by_trace
    drawn = {k: "drawn" if k.startswith(NOISY_FIGURES) else form(v) for k, v in sorted(figures.items())}
    return {
        "graphs": [graph(g) for g in data["graphs"]],
        "views": {k: view(v) for k, v in data["views"].items()},
        "lesson": condensed(data["lesson"]),
        "figures": drawn,
    }


def unpacked(packed: dict[str, Any]) -> dict[str, np.ndarray]:
    """The whole-number columns of a packed graph (an unpacking of its own: the package's may move)."""
    raw, at, columns = zlib.decompress(base64.b64decode(packed["data"])), 0, {}
    for name, width, n in packed["columns"]:
        shuffled = np.frombuffer(raw, np.uint8, n * width, at).reshape(width, n)
        at += n * width
        steps = np.ascontiguousarray(shuffled.T).view(f"<i{width}").reshape(-1)
        columns[name] = np.cumsum(steps, dtype=np.int64)
    return columns


def graph(packed: dict[str, Any]) -> dict[str, Any]:
    """A packed graph: a hash a column. Names are stored by their first use: they may be renamed."""
    columns, hashes = unpacked(packed), {}
    names: dict[str, list[str]] = {}
    memory: dict[str, list[np.ndarray]] = {}
    for name, values in columns.items():
        if name in ("op", "label"):
            names[name], values = spelled(values, packed["names"])
        if (of_rank := re.fullmatch(r"(memory_\w+)_\d+", name)) is not None:
            if of_rank[1] == "memory_named":
                half = len(values) // 2
                names[name], numbers = spelled(values[half:], packed["memory"]["names"])
                values = np.concatenate([values[:half], numbers])
            memory.setdefault(of_rank[1], []).append(values)
        else:
            hashes[name] = digest(np.ascontiguousarray(values).tobytes())
    for name, parts in memory.items():
        hashes[name] = digest(b"|".join(np.ascontiguousarray(p).tobytes() for p in parts))
    beside = {k: v for k, v in packed.items() if k not in ("columns", "data", "names", "memory")}
    return {
        "events": len(columns["rank"]),
        "columns": hashes,
        "spelled": names,
        "memory": {k: condensed(v) for k, v in packed["memory"].items() if k != "names"},
        **{k: condensed(v) for k, v in beside.items()},
    }


def spelled(values: np.ndarray, names: list[str]) -> tuple[list[str], np.ndarray]:
    """The names that a column uses, in the order of their first use, and the column in their numbers."""
    used, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return [names[used[i]] for i in order.tolist()], place[inverse.reshape(-1)].astype(np.int64)


def view(given: dict[str, Any]) -> Json:
    """How a timeline is replayed; long lists of seconds are unpacked."""
    hardware = dict(given["hardware"])
    for name in ("native", "shared"):
        if name in hardware:
            texts = hardware[name] if isinstance(hardware[name], list) else [hardware[name]]
            numbers = [np.frombuffer(base64.b64decode(t), "<f8") for t in texts]
            hardware[name] = sketch(np.concatenate(numbers).tolist())
    told = {n: v if n in ("native", "shared") else condensed(v) for n, v in hardware.items()}
    return {**{k: condensed(v) for k, v in given.items() if k != "hardware"}, "hardware": told}


def by_trace(traces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each trace of a figure."""
    return [trace(t) for t in traces]


def trace(given: dict[str, Any]) -> dict[str, Any]:
    """The lists of one trace of a figure, each as a sketch; lists of words without a number fall away."""
    made = {name: sketch(values, drawn=True) for name, values in sorted(arrays(given))}
    return {name: s for name, s in made.items() if s.get("numbers") or s["floats"]}


def together(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """All lists of a figure in one sketch."""
    return sketch([v for t in traces for _, values in sorted(arrays(t)) for v in values], drawn=True)


def arrays(value: Json, name: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every list in a trace with the path to it, typed arrays unpacked."""
    if isinstance(value, dict):
        if "bdata" in value:
            yield name, np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).tolist()
            return
        for k, v in value.items():
            yield from arrays(v, f"{name}.{k}" if name else k)
    elif isinstance(value, list):
        if any(isinstance(v, dict) for v in value):
            for number, v in enumerate(value):
                yield from arrays(v, f"{name}[{number}]")
        else:
            yield name, list(scalars(value))


# ---- comparison --------------------------------------------------------------------------------------------
class Names:
    """The table of changed names and of differences that are meant."""

    def __init__(self, exact: dict[str, str], patterns: list[list[str]], justified: list[Json]) -> None:
        self.exact, self.justified = exact, justified
        self.patterns = [(re.compile(old), new) for old, new in patterns]
        self.of = lru_cache(maxsize=None)(self._of)

    @classmethod
    def read(cls) -> Names:
        """The committed table."""
        table = json.loads(NAMES.read_text(encoding="utf-8"))
        return cls(table["exact"], table["patterns"], table["justified"])

    def _of(self, old: str) -> str:
        if old in self.exact:
            return self.exact[old]
        for pattern, new in self.patterns:
            if (found := pattern.fullmatch(old)) is not None:
                return found.expand(new)
        return old

    def reason(self, key: str, path: str, old: Json, new: Json) -> str | None:
        """Why this difference is meant; None where the table does not have it."""
        for entry in self.justified:
            if not re.fullmatch(entry["item"], key) or not re.fullmatch(entry["path"], path):
                continue
            if ("old" not in entry or entry["old"] == old) and ("new" not in entry or entry["new"] == new):
                return str(entry["why"])
        return None


MISSING = "(missing)"


class Comparison:
    """Differences of what is produced from what is stored, each with key, path, old and new."""

    def __init__(self, names: Names, same_machine: bool = True) -> None:
        self.names, self.same_machine = names, same_machine
        self.differences: list[tuple[str, str, Json, Json]] = []
        self.meant: list[tuple[str, str, Json, Json, str]] = []
        self.added: dict[str, str] = {}  # path without numbers -> where it was first seen
        self.key = ""

    def item(self, key: str, old: Json, new: Json) -> None:
        """Compare an item's content, as `produce` gives it."""
        self.key = key
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            self.walk(f"[{number}]" if len(old) > 1 else "", a, b)

    def differ(self, path: str, old: Json, new: Json) -> None:
        """Note a difference, unless this machine's arithmetic explains it or the table does."""
        if not self.same_machine and COMPUTED.search(path):
            return
        if (why := self.names.reason(self.key, path, old, new)) is not None:
            self.meant.append((self.key, path, old, new, why))
        else:
            self.differences.append((self.key, path, old, new))

    def news(self, path: str, what: str) -> None:
        """Note what only the produced side has."""
        anywhere = re.sub(r"\[[^]]*\]", "[]", path)
        self.added.setdefault(f"{anywhere}: {what}", self.key)

    def walk(self, path: str, old: Json, new: Json) -> None:
        """Compare two values of the stored form."""
        if old == [] and isinstance(new, dict) and "~rows" in new:  # an empty list may be one of rows
            old = {"~rows": []}
        if isinstance(old, dict) and isinstance(new, dict):
            if "~rows" in old and "~rows" in new:
                self.rows(path, old["~rows"], new["~rows"])
            elif "~n" in old and "~n" in new:
                self.sketches(path, old, new)
            else:
                self.objects(path, old, new)
        elif isinstance(old, list) and isinstance(new, list):
            if len(old) != len(new):
                self.differ(f"{path}.length", len(old), len(new))
            for number, (a, b) in enumerate(zip(old, new, strict=False)):
                self.walk(f"{path}[{number}]", a, b)
        elif isinstance(old, str) and isinstance(new, (str, dict)):
            if self.names.of(old) != (spoken := english(new) if isinstance(new, dict) else new):
                self.differ(path, old, spoken)
        elif path.rpartition(".")[2].startswith("max_rel_"):
            if not alike(old, new, NOISE):
                self.differ(path, old, new)
        elif not equal(old, new):
            self.differ(path, old, new)

    def objects(self, path: str, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Every key of the stored object."""
        known = set()
        for k, v in old.items():
            name = self.names.of(k)
            known.add(name)
            if name in new:
                self.walk(f"{path}.{k}".lstrip("."), v, new[name])
            else:
                self.differ(f"{path}.{k}".lstrip("."), brief(v), MISSING)
        for k in new.keys() - known:
            self.news(path, k)

    def rows(self, path: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        """Ledger rows, found by name (and by number among rows of one name)."""
        named = numbered(new, lambda name: name)
        asked = numbered(old, self.names.of)
        for name, a in asked.items():
            here = f"{path}[{a['name']!r}]"
            if name not in named:
                self.differ(here, brief(a), MISSING)
                continue
            b = named[name]
            residual = a.get("residual")
            kind = f"{here}.statistical" if a.get("match") == "statistical" else here
            for k, v in a.items():
                if k in ("name", "residual"):
                    continue
                if k not in b:
                    self.differ(f"{here}.{k}", v, MISSING)
                elif residual and k in ("predicted", "counted", "simulated", "measured"):
                    if not alike(v, b[k], a["tolerance"]):
                        self.differ(f"{here}.{k}", v, b[k])
                else:
                    self.walk(f"{kind}.{k}", v, b[k])
            for k in b.keys() - a.keys():
                self.news(f"{path}[]", k)
        for name, b in named.items():
            if name in asked:
                continue
            if b.get("ok") is None or b.get("verdict") == "not applicable":
                self.news(path, f"row {name[0]}, not applicable")
            else:
                self.differ(f"{path}[{name[0]!r}]", MISSING, brief(b))
        if [n for n in named if n in asked] != [n for n in asked if n in named]:
            self.news(path, "rows in another order")

    def sketches(self, path: str, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Two long lists."""
        for k, what in (("~n", "length"), ("exact", "hash"), ("numbers", "numbers")):
            if old.get(k) != new.get(k):
                self.differ(f"{path}.{what}", old.get(k), new.get(k))
                return
        if "floats" in old:
            self.walk(path, old["floats"], new.get("floats"))
            return
        sizes = new.get("~sizes") or [abs(s) for s in new["sums"]]
        for number, (a, b, size) in enumerate(zip(old["sums"], new["sums"], sizes, strict=True)):
            if abs(a - b) > CLOSE * size:
                last = min(old["numbers"], (number + 1) * BLOCK)
                self.differ(f"{path}[{number * BLOCK}:{last}].sum", a, b)


def numbered(rows: list[dict[str, Any]], name: Callable[[str], str]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by their name and how often it occurred before."""
    seen: dict[str, int] = {}
    found = {}
    for r in rows:
        called = name(r["name"])
        found[called, seen.get(called, 0)] = r
        seen[called] = seen.get(called, 0) + 1
    return found


def equal(old: Json, new: Json) -> bool:
    """Whole numbers and truth values are equal, floats agree to 1e-9."""
    if isinstance(old, bool) or isinstance(new, bool) or old is None or new is None:
        return old is new
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        if isinstance(old, int) and isinstance(new, int):
            return old == new
        return math.isclose(old, new, rel_tol=CLOSE, abs_tol=1e-16)
    return bool(old == new)


def alike(old: Json, new: Json, tolerance: float) -> bool:
    """Two residuals: both within their tolerance, or about equal beyond it."""
    if old is None or new is None or isinstance(old, str) or isinstance(new, str):
        return bool(old == new)
    if abs(old) <= tolerance:
        return abs(new) <= tolerance
    return math.isclose(old, new, rel_tol=BEYOND_NOISE)


def brief(value: Json) -> Json:
    """A value, shortened for a line."""
    said = json.dumps(value, ensure_ascii=False)
    return value if len(said) <= 300 else said[:300] + " ..."


# ---- the items ---------------------------------------------------------------------------------------------
SCHEDULES = (
    *("gpipe", "1f1b", "eager-1f1b", "interleaved", "looped-bfs"),
    *("zb-h1", "zb-h2", "interleaved-zb", "zb-v", "dualpipe-v"),
)
SHAPES = (
    (1, 3, 1),
    (2, 3, 1),
    (3, 6, 1),
    (4, 4, 1),
    (4, 8, 1),
    (2, 4, 2),
    (4, 8, 2),
    (3, 7, 2),
    (2, 6, 3),
)  # p, m, v
COSTS = ("f=1,b=2,w=1,c=0", "f=1,b=2.2,w=0.9,c=0.15")
RING_LIKE = ("ring", "tree", "binary-tree", "double-tree", "hierarchical", "direct")
ALGORITHMS = {
    "all-reduce": (*RING_LIKE, "recursive-doubling", "halving-doubling", "parameter-server"),
    "reduce-scatter": ("ring", "tree", "halving-doubling", "hierarchical", "direct", "pairwise"),
    "all-gather": ("ring", "tree", "recursive-doubling", "hierarchical", "direct"),
    "broadcast": RING_LIKE,
    "reduce": RING_LIKE,
    "scatter": ("tree", "direct"),
    "gather": ("tree", "direct"),
    "all-to-all": ("direct", "pairwise"),
    "barrier": (*RING_LIKE, "recursive-doubling", "halving-doubling", "parameter-server", "dissemination"),
}
CABLES = "--bandwidth 25GB/s --latency 2us --overhead 1us"
WIRES = (
    *("--gpus 2 --size 96KiB", "--gpus 3 --size 96KiB", "--gpus 4 --size 1MiB"),
    *("--gpus 7 --size 7000", "--gpus 8 --size 64MiB"),
    "--gpus 16 --nodes 2 --hardware dgx-h100 --size 16MiB",
    "--gpus 6 --nodes 2 --hardware dgx-a100-80gb --size 6MiB",
    f"--gpus 8 --size 1MiB --topology fat-tree --leaf 4 --oversubscription 2 {CABLES}",
    f"--gpus 6 --size 96KiB --topology torus2d --dims 2x3 {CABLES}",
    f"--gpus 6 --size 96KiB --topology torus2d --dims 2x3 --no-contention {CABLES}",
    f"--gpus 5 --size 5MiB --topology line {CABLES}",
    f"--gpus 8 --size 1MiB --topology hypercube --placement random:3 --contention {CABLES}",
)
SWEEP = "--sweep 1KiB:16MiB --against ring,nccl --hardware dgx-h100"
LIBRARY = ("--gpus 8 --size 64MiB", "--gpus 16 --size 1GiB", "--gpus 24 --size 32KiB", "--gpus 5 --size 3MiB")
LESSONS = (
    *(
        "L0",
        *(f"A{n}" for n in range(1, 15)),
        *(f"B{n}" for n in range(1, 8)),
        *(f"C{n}" for n in range(1, 8)),
    ),
    *(f"D{n}" for n in range(1, 7)),
    *(f"E{n}" for n in range(1, 12)),
    *(f"F{n}" for n in (1, 3, 4, 5)),
    *(f"G{n}" for n in range(1, 4)),
)
BUGS = (
    *("norms-not-summed", "loss-scaled-by-tp", "experts-doubled", "cp-averaged", "padding-is-a-token"),
    *("same-dropout-mask", "ring-without-lse", "ring-stale-keys", "mean-of-means", "lost-bucket"),
    *("tied-not-summed", "norm-counted-twice", "zero-all-reduces"),
)


def items() -> Iterator[tuple[str, list[list[str]]]]:
    """Every key with its command lines."""
    yield from training()
    for name in SCHEDULES:
        asked = [f"schedule {name} --pp {p} --micro-batches {m} --virtual-stages {v}" for p, m, v in SHAPES]
        yield f"schedule/{name}", [[*a.split(), "--costs", c] for a in asked for c in COSTS]
    for operation, algorithms in ALGORITHMS.items():
        for algorithm in algorithms:
            wires = [w if operation != "barrier" else re.sub(r"--size \S+", "", w) for w in WIRES]
            words = [f"collective {operation} --algorithm {algorithm} {w}".split() for w in wires]
            if operation == "all-reduce":
                words.append([*words[2], *SWEEP.split()])
            yield f"collective/{operation}/{algorithm}", words
        asked = f"collective {operation} --algorithm"
        words = [f"{asked} nccl --hardware {h} {w}" for h in ("dgx-h100", "dgx-a100-80gb") for w in LIBRARY]
        yield f"collective/{operation}/nccl", [w.split() for w in words]
        yield f"collective/{operation}/native", [f"{asked} native --gpus 4 --size 1MiB".split()]
    for id_ in LESSONS:
        yield f"lesson/{id_}", [["run", id_, "--backend", "threads"]]
    yield "zoo/all", [["run", "zoo"]]
    for bug in BUGS:
        yield f"zoo/{bug}", [["run", "zoo", "--bug", bug, "--as-student"]]


def training() -> Iterator[tuple[str, list[list[str]]]]:
    """Every plan of the covering list, run on threads and predicted."""
    sys.path.insert(0, str(HERE))
    from plans import build, name, stratified

    for number, choice in enumerate(stratified()):
        plan, model = build(choice)
        options = [*flags(plan), *flags(model)]
        key = f"{number:02}-{name(choice)}"
        steps = 3 if plan.skip_norm else 1  # a bad batch needs steps before it; the last is recorded
        checked = [] if number % CHECKED == 0 else ["--no-check"]
        more = ["--backend", "threads", "--data", DATA, "--steps", str(steps), *checked]
        yield f"train/{key}", [["train", *options, *more]]
        yield f"predict/{key}", [["predict", *options, "--hardware", ("classroom", "dgx-h100")[number % 2]]]


CHECKED = 6  # every sixth plan is also compared with one device; test_exactness does it for all of them


def flags(given: Any) -> list[str]:
    """The fields of a plan or model that have another value than their default, as options."""
    found = []
    always = ("layers", "hidden", "heads", "kv_heads", "seq", "vocab", "ffn")  # the preset has its own
    for field, value in given.model_dump(mode="json").items():
        if value is None or (value == type(given).model_fields[field].default and field not in always):
            continue
        flag = field.replace("_", "-")
        if isinstance(value, bool):
            off = "--untied" if field == "tied" else f"--no-{flag}"
            found.append(f"--{flag}" if value else off)
        else:
            found += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return found


# ---- the stored side ---------------------------------------------------------------------------------------
def machine() -> dict[str, str]:
    """What rounding and the lessons' corpus (the standard library) depend on."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "python": ".".join(platform.python_version_tuple()[:2]),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


@lru_cache(maxsize=1)
def stored() -> dict[str, Any]:
    """The file: `items`: key -> argv, seconds, the machine that it was made on, content."""
    return json.loads(lzma.decompress(STORED.read_bytes()))


def save(content: dict[str, Any]) -> None:
    """Write the file, an item a line."""
    each = {k: json.dumps(unsized(v), ensure_ascii=False) for k, v in content["items"].items()}
    lines = ",\n".join(f"{json.dumps(key)}: {item}" for key, item in each.items())
    written = f'{{"items": {{\n{lines}\n}}}}\n'
    STORED.write_bytes(lzma.compress(written.encode(), preset=9))


def unsized(value: Json) -> Json:
    """Without what only a produced sketch needs."""
    if isinstance(value, dict):
        return {k: unsized(v) for k, v in value.items() if k != "~sizes"}
    return [unsized(v) for v in value] if isinstance(value, list) else value


QUICK_S = 16.0  # of the part in the ordinary suite, on the machine that wrote
QUICK_ITEM_S = 2.5


def quick() -> list[str]:
    """The ordinary suite's part: kinds take turns, keys in the order of their hash, until time is used up."""
    by_kind: dict[str, list[str]] = {}
    for key, item in stored()["items"].items():
        if item["seconds"] <= QUICK_ITEM_S:
            by_kind.setdefault(kind_of(key), []).append(key)
    turns = itertools.zip_longest(*(sorted(keys, key=digest) for keys in by_kind.values()))
    found, spent = [], 0.0
    for key in itertools.chain.from_iterable(turns):
        if key is not None and spent < QUICK_S:
            found.append(key)
            spent += stored()["items"][key]["seconds"]
    return sorted(found)


def parts(count: int) -> list[list[str]]:
    """The other items in parts of about equal cost."""
    taken = set(quick())
    rest = sorted(((v["seconds"], k) for k, v in stored()["items"].items() if k not in taken), reverse=True)
    made: list[tuple[float, list[str]]] = [(0.0, []) for _ in range(count)]
    for seconds, key in rest:
        place = min(range(count), key=lambda i: made[i][0])
        spent, keys = made[place]
        made[place] = (spent + seconds, [*keys, key])
    return [sorted(keys) for _, keys in made]


def kind_of(key: str) -> str:
    """train, predict, schedule, collective, lesson or zoo."""
    return key.partition("/")[0]


def chosen(words: list[str], keys: list[str]) -> list[str]:
    """The keys that are asked for: `quick`, PART/PARTS, kinds or beginnings of keys; all without any."""
    if not words:
        return keys
    found: list[str] = []
    for word in words:
        if word == "quick":
            found += quick()
        elif (share := re.fullmatch(r"(\d+)/(\d+)", word)) is not None:
            of = parts(int(share[2]) - 1) if int(share[2]) > 1 else [sorted(set(keys) - set(quick()))]
            found += quick() if share[1] == "1" else of[int(share[1]) - 2]
        else:
            found += [k for k in keys if k == word or kind_of(k) == word or k.startswith(word)]
    return list(dict.fromkeys(found))


def check(keys: list[str], say: Callable[[str], None] = lambda text: None) -> Comparison:
    """Produce these items anew and compare them with what is stored."""
    known = stored()
    judged = Comparison(Names.read())
    for key in keys:
        item = known["items"][key]
        judged.same_machine = machine() == item["made_on"]
        begun = time.process_time()
        before = len(judged.differences)
        judged.item(key, item["content"], produce(item["argv"], kind_of(key)))
        found = len(judged.differences) - before
        say(f"{time.process_time() - begun:7.2f} s  {key}" + (f"  {found} DIFFERENCES" if found else ""))
    return judged


def told(judged: Comparison) -> str:
    """Every difference on a line, then what is new."""
    lines = []
    for key, path, old, new in judged.differences:
        lines.append(f"DIFFERS {key}  {path}\n    old {brief(old)}\n    new {brief(new)}")
    for key, path, old, new, why in judged.meant:
        lines.append(f"meant   {key}  {path}: {brief(old)} -> {brief(new)} ({why})")
    lines += [f"new     {what} (first in {key})" for what, key in sorted(judged.added.items())]
    elsewhere = {json.dumps(i["made_on"]) for i in stored()["items"].values() if i["made_on"] != machine()}
    lines += [
        f"made on {m}, this is {machine()}: computed values were not compared" for m in sorted(elsewhere)
    ]
    return "\n".join(lines)


def write(words: list[str], say: Callable[[str], None]) -> None:
    """Produce items and store them, beside those that are there."""
    asked = dict(items())
    kept = stored()["items"] if STORED.is_file() and words else {}
    made = {k: kept[k] for k in asked if k in kept}
    for key in chosen([w for w in words if w != "quick"], list(asked)):
        begun = time.process_time()
        content = produce(asked[key], kind_of(key))
        seconds = time.process_time() - begun
        made[key] = {
            "argv": asked[key],
            "seconds": round(seconds, 2),
            "made_on": machine(),
            "content": content,
        }
        say(f"{seconds:7.2f} s  {key}  exits {sorted({c['exit'] for c in content})}")
    save({"items": {k: made[k] for k in asked if k in made}})
    seconds = sum(v["seconds"] for v in made.values())
    say(f"{len(made)} items, {STORED.stat().st_size / 1e6:.2f} MB, {seconds:.0f} s")


def command(words: list[str]) -> int:
    """`write` or `check`, and of what."""

    def say(line: str) -> None:
        print(line, flush=True)

    if words[:1] == ["write"]:
        write(words[1:], say)
        return 0
    if words[:1] != ["check"]:
        print(__doc__)
        return 2
    keys = chosen(words[1:], list(stored()["items"]))
    begun = time.process_time()
    judged = check(keys, say)
    say(told(judged))
    counts = f"{len(judged.differences)} differences, {len(judged.meant)} meant"
    say(f"{len(keys)} items, {counts}, {time.process_time() - begun:.0f} s")
    return 1 if judged.differences or not keys else 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
