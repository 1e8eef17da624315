"""`--data`: one plain text file, or weighted sources, with a tokenizer, packed; and whether they can be
read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import is_there, read_bytes, stamp
from glasscluster.model.text.data import corpus
from glasscluster.model.text.mixture import Mixture, read

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
    if not colon or not name or is_there(text):
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


def check_data(data: Data, seq: int, vocab: int, weights: str | None = None) -> None:
    """Raise InputError unless the data can be read and has at least one row for each source.

    weights: the folder that the model of `vocab` tokens comes from, if it does.
    """
    if isinstance(data, Mixture):
        _check_mixture(data, seq, vocab, weights)
    elif data is not None:
        _check_file(data, seq)


def folded(data: Data, seq: int, vocab: int) -> str | None:
    """A sentence where a text has bytes that the vocabulary has not, which are taken modulo its size; else None.

    Without a tokenizer every byte is a token: of 256 tokens each is its own.
    """
    if vocab >= 256 or (isinstance(data, Mixture) and data.tokenizer is not None):
        return None
    if isinstance(data, Mixture):
        sources = zip(data.sources, read(data, seq).sources, strict=True)
        largest = {name: source.largest for (name, _), source in sources}
    else:
        largest = {data or "the built-in text": int(corpus(data, stamp(data) if data else ()).max())}
    names = [name for name, byte in largest.items() if byte >= vocab]
    if not names:
        return None
    return (
        f"{', '.join(names)}: bytes from {vocab} to {max(largest.values())} are taken modulo the vocabulary of "
        f"{vocab} tokens, so different bytes become one token; --vocab 256 keeps them apart"
    )


def _check_mixture(data: Mixture, seq: int, vocab: int, weights: str | None) -> None:
    sources = ", ".join(f"{name}:{weight:g}" for name, weight in data.sources)
    try:
        rows = read(data, seq)
        rows.sampler(0)
    except InputError:
        raise
    except ValueError as problem:
        where = "tokenizer" if "tokenizer" in str(problem) else "data"
        raise InputError(where, data.tokenizer if where == "tokenizer" else sources, str(problem)) from None
    if rows.tokenizer is not None:
        rows.tokenizer.check_vocab(vocab, str(data.tokenizer), weights)


def _check_file(path: str, seq: int) -> None:
    size = len(read_bytes("data", path))
    if size < seq + 2:
        rule = "is empty" if size == 0 else f"has {size} bytes, one sequence needs seq + 2 = {seq + 2}"
        raise InputError(
            "data",
            path,
            f"{rule}; give a text of at least {seq + 2} bytes, or leave --data out for the built-in corpus",
        )
