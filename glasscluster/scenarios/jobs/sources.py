"""`--data`: one plain text file, or weighted sources, with a tokenizer, packed; and whether they can be
read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_bytes
from glasscluster.model.text.mixture import Mixture, read
from glasscluster.model.text.texts import BUILT_IN

Data = str | Mixture | None


def parse_data(given: Sequence[str], tokenizer: str | None = None, packed: bool = False) -> Data:
    """Parse what to train on. A single FILE is read at random places; anything else is a Mixture, which reads
    each row once an epoch.

    `given` is one FILE, or several of SOURCE or SOURCE:WEIGHT (weight 1 if left out). With a tokenizer or
    with packing, nothing given means the standard library. Raises InputError for a weight that is not
    positive.
    """
    if len(given) <= 1 and tokenizer is None and not packed and all(_weight(text) is None for text in given):
        return given[0] if given else None
    sources = []
    for text in given or ("python",):
        weight = _weight(text)
        sources.append((text, 1.0) if weight is None else (text.rpartition(":")[0], weight))
        if not 0 < sources[-1][1] < math.inf:
            raise InputError("data", text, "a weight is a positive, finite number, as in a.txt:0.7")
    return Mixture(tuple(sources), tokenizer, packed)


def _weight(text: str) -> float | None:
    """The number behind the last colon; None where there is none, or where a file of that whole name
    exists.
    """
    name, colon, last = text.rpartition(":")
    if not colon or not name or Path(text).exists():
        return None
    try:
        return float(last)
    except ValueError:
        return None


def read_so_far(data: Data, seq: int, rows: int, seed: int) -> dict[str, Any] | None:
    """What has been read of a mixture after `rows` rows: the epochs of each source, and the padding of packed
    rows. None for a file.
    """
    if not isinstance(data, Mixture):
        return None
    mixture = read(data, seq)
    order = mixture.sampler(seed)
    sources = [
        {
            "source": name,
            "weight_fraction": quota / order.block,
            "tokens": source.tokens,
            "rows": source.rows,
            "epochs": epochs,
            "filling_fraction": source.packed.waste if source.packed else None,
        }
        for (name, _), quota, source, epochs in zip(
            data.sources, order.quotas, mixture.sources, order.epochs(rows), strict=True
        )
    ]
    return {"rows_read": rows, "tokenizer": data.tokenizer, "packed": data.packed, "sources": sources}


def check_data(data: Data, seq: int, vocab: int) -> None:
    """Raise InputError unless the data can be read and has at least one row for each source."""
    if isinstance(data, Mixture):
        _check_mixture(data, seq, vocab)
    elif data is not None:
        _check_file(data, seq, vocab)


def is_folded(data: Data, vocab: int) -> bool:
    """Whether bytes of a built-in text are folded into a vocabulary that has not all of them."""
    if vocab >= 256:
        return False
    return data is None or (isinstance(data, Mixture) and data.tokenizer is None)


def _check_mixture(data: Mixture, seq: int, vocab: int) -> None:
    sources = ", ".join(f"{name}:{weight:g}" for name, weight in data.sources)
    try:
        rows = read(data, seq)
        rows.sampler(0)
    except InputError:
        raise
    except ValueError as problem:
        where = "tokenizer" if "tokenizer" in str(problem) else "data"
        raise InputError(where, data.tokenizer if where == "tokenizer" else sources, str(problem)) from None
    if rows.tokenizer is not None and rows.tokenizer.size > vocab:
        raise InputError(
            "vocab", vocab, f"{data.tokenizer} has {rows.tokenizer.size} tokens", [rows.tokenizer.size]
        )
    for (name, _), source in zip(data.sources, rows.sources, strict=True):
        if rows.tokenizer is None and name not in BUILT_IN:
            _check_bytes(name, source.largest, vocab)


def _check_file(path: str, seq: int, vocab: int) -> None:
    text = read_bytes("data", path)
    size = len(text)
    if size < seq + 2:
        rule = "is empty" if size == 0 else f"has {size} bytes, one sequence needs seq + 2 = {seq + 2}"
        raise InputError(
            "data",
            path,
            f"{rule}; give a text of at least {seq + 2} bytes, or leave --data out for the built-in corpus",
        )
    _check_bytes(path, max(text), vocab)


def _check_bytes(said: str, largest: int, vocab: int) -> None:
    """Every byte of a text that somebody gave is a token of its own; none is folded into another."""
    if largest >= vocab:
        rule = f"{said} has the byte {largest}, and bytes are tokens: the vocabulary must have it"
        raise InputError("vocab", vocab, rule, [largest + 1, 256])
