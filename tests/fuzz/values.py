"""Hostile values, and mutators that know a format and nothing of what it means.

Every mutator takes a `random.Random` and returns what it made with a `Mutation` that says what must follow.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from .case import ENDLESS, FIFO, FOLDER, HARMLESS, NONSENSE, UNKNOWN, Content, Mutation

DIGITS = "@@digits@@"  # becomes 5,000 digits after JSON is written
DEEP = "@@deep@@"  # becomes 100,000 brackets

NO_NUMBER = ["abc", "", "nan", "1e", "--", "0x10", "1,5", "1 2", "½", "None", "[1]", "@", "9" * 5000 + "x"]
NO_WHOLE = [*NO_NUMBER, "1.5", "1e3", "inf", "9" * 5000]
NO_NAME = ["nosuch", "ring ", "ReLU6", "x" * 5000, "\u202eabc", "a\nb", "../../x", "{}", "%s%n", "\udcff"]
NUMBERS = ["0", "-1", "1", "2", "3", "7", "100", "4294967296", "1000000000", "9223372036854775808", "1e308"]
FLOATS = ["0", "-0.0", "-1", "1e-320", "1e308", "1e400", "inf", "-inf", "nan", "0.5", "1e20"]

JSON_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**12)),
    *(
        float("nan"),
        float("inf"),
        "",
        "a",
        "1",
        "nan",
        "a\u0000b",
        "x" * 5000,
        "\ud800",
        "\u202e",
        "<script>",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [1, 2],
        {"a": 1},
        [1] * 1000,
        {"": {}},
        DIGITS,
        DEEP,
        1e-320,
        7,
        64,
        1000,
        "../x",
    ),
]


# ---- JSON --------------------------------------------------------------------------------------------------
def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value, the root too."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        found += places(child, (*path, key))
    return found


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a path."""
    for key in path:
        value = value[key]
    return value


def written(value: Any) -> bytes:
    """JSON, with the markers of what Python would not write."""
    text = json.dumps(value)
    text = text.replace(json.dumps(DIGITS), "9" * 5000)
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def other_json(draw: Random, data: bytes, within: Callable[[tuple[Any, ...]], bool] | None = None) -> Any:
    """JSON in which one thing differs; and the path, what was there, and what is there now."""
    value = json.loads(data)
    paths = [p for p in places(value) if p and (within is None or within(p))]
    # the shallow ones first: a list of 260 merges would else hide the six keys beside it
    deepest = draw.choice(sorted({len(p) for p in paths}))
    path = draw.choice([p for p in paths if len(p) == deepest])
    holder, key = at(value, path[:-1]), path[-1]
    old = holder[key]
    act = draw.choice(["set", "set", "set", "near", "drop", "rename", "add"])
    new: Any = None
    if act == "near" and isinstance(old, (int, float)) and not isinstance(old, bool):
        new = holder[key] = draw.choice([old + 1, old - 1, -old, old * 1000, old / 1000, int(old), str(old)])
    elif act in ("set", "near"):
        new = holder[key] = draw.choice(JSON_VALUES)
    elif act == "drop":
        del holder[key]
    elif act == "rename" and isinstance(holder, dict):
        new = f"{key}{draw.choice(['s', '_', ' ', 'é'])}"
        holder[new] = holder.pop(key)
    else:
        if isinstance(holder, dict):
            new = holder[draw.choice(["extra", "__class__", "", "a.b"])] = draw.choice(JSON_VALUES)
        else:
            new = draw.choice(JSON_VALUES)
            holder.insert(draw.randrange(len(holder) + 1), new)
    return written(value), act, path, old, new


def json_mutation(draw: Random, data: bytes) -> tuple[Content, Mutation]:
    """JSON with one value, key or element other than it was."""
    made, act, path, _old, new = other_json(draw, data)
    nature = NONSENSE if new in (DIGITS, DEEP) and isinstance(new, str) else UNKNOWN
    return made, Mutation(f"{act} {path}: {str(new)[:80]!r}", nature)


def json_spelling(draw: Random, data: bytes) -> tuple[Content, Mutation]:
    """The same JSON, written otherwise."""
    act = draw.choice(["bom", "lines", "indent", "escapes"])
    if act == "bom":
        made = b"\xef\xbb\xbf" + data.removeprefix(b"\xef\xbb\xbf")
    elif act == "lines":
        made = json.dumps(json.loads(data), indent=1).replace("\n", "\r\n").encode()
    elif act == "indent":
        made = b"\n\t " + json.dumps(json.loads(data), indent=7).encode() + b"\n\n"
    else:
        made = json.dumps(json.loads(data), ensure_ascii=True).encode()
    return made, Mutation(f"the same JSON: {act}", HARMLESS)


# ---- any file ----------------------------------------------------------------------------------------------
def no_file(draw: Random, _data: bytes = b"") -> tuple[Content, Mutation]:
    """Something that is no regular file."""
    kind = draw.choice([FIFO, FOLDER, ENDLESS])
    return kind, Mutation(kind, NONSENSE)


def no_json(draw: Random, data: bytes) -> tuple[Content, Mutation]:
    """Bytes that are certainly no JSON of an object or a list."""
    act = draw.choice(
        ["cut", "empty", "utf-16", "zero", "word", "number", "comma", "deep", "digits", "binary"]
    )
    made = {
        "cut": data.strip()[: draw.randrange(max(1, len(data.strip()) - 1))],
        "empty": b"",
        "utf-16": data.decode("utf-8", "replace").encode("utf-16"),
        "zero": b"\0" * draw.choice([1, 100, 4096]),
        "word": b"no JSON at all",
        "number": b"1",
        "comma": data.strip()[:-1] + b',,"' + data.strip()[-1:],
        "deep": b"[" * 100_000,
        "digits": b"9" * 5000,
        "binary": draw.randbytes(200) + b"\xff\xfe",
    }[act]
    return made, Mutation(f"no JSON: {act}", NONSENSE)


def bytes_mutation(draw: Random, data: bytes) -> tuple[Content, Mutation]:
    """Some bytes flipped, cut, doubled or put in."""
    act = draw.choice(["flip", "cut", "double", "insert", "zero"])
    at_ = draw.randrange(len(data) + 1) if data else 0
    length = draw.choice([1, 2, 8, 64])
    if act == "flip" and data:
        buffer = bytearray(data)
        for _ in range(draw.choice([1, 1, 4, 16])):
            buffer[draw.randrange(len(buffer))] ^= 1 << draw.randrange(8)
        data = bytes(buffer)
    elif act == "cut":
        data = data[:at_]
    elif act == "double":
        data = data[:at_] + data[at_ : at_ + length] * 2 + data[at_ + length :]
    elif act == "insert":
        data = data[:at_] + draw.randbytes(length) + data[at_:]
    else:
        data = data[:at_] + b"\0" * len(data[at_ : at_ + length]) + data[at_ + length :]
    return data, Mutation(f"bytes: {act} at {at_}", UNKNOWN)


# ---- archives of arrays ------------------------------------------------------------------------------------
def npz_mutation(draw: Random, data: bytes) -> tuple[Content, Mutation]:
    """An archive with one array of other numbers, another type, another shape, or none."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = sorted(arrays)
    name = draw.choice(names)
    array = arrays[name]
    act = draw.choice(["element", "element", "element", "type", "shape", "drop", "length", "meta", "meta"])
    if act == "meta" and "meta" in arrays:
        made, how, path, _, new = other_json(draw, str(arrays["meta"]).encode())
        arrays["meta"] = np.array(made.decode("utf-8", "replace"))
        name, act = f"meta {how} {path}", f"{str(new)[:60]!r}"
    elif act == "element" and array.size and array.dtype.kind in "iu":
        array = array.astype(np.int64)
        value = draw.choice([-1, -2, 1, 2**31, 2**62, -(2**63), len(array), len(array) - 1, 10**6, 3])
        array.reshape(-1)[draw.randrange(array.size)] = value
        arrays[name], act = array, f"element = {value}"
    elif act == "element" and array.size and array.dtype.kind == "f":
        value = draw.choice([np.nan, np.inf, -1.0, 1e300])
        array.reshape(-1)[draw.randrange(array.size)] = value
        arrays[name], act = array, f"element = {value}"
    elif act == "type":
        kind = draw.choice([np.float64, np.int8, np.uint64, np.bool_, np.complex128, "S5", "U9"])
        try:
            arrays[name] = array.astype(kind)
        except (ValueError, TypeError, OverflowError):
            del arrays[name]
    elif act == "shape":
        arrays[name] = array.reshape((1, *array.shape, 1))
    elif act == "drop":
        del arrays[name]
    else:
        arrays[name] = array.reshape(-1)[: draw.randrange(array.size + 1)]
    written_ = io.BytesIO()
    np.savez_compressed(written_, **arrays)
    return written_.getvalue(), Mutation(f"array {name}: {act}", UNKNOWN)


def npz_foreign(draw: Random, _data: bytes) -> tuple[Content, Mutation]:
    """An archive, or something of that name, that certainly holds no graph."""
    act = draw.choice(["empty", "text", "pickle", "zip", "other", "bomb", "npy"])
    file = io.BytesIO()
    if act == "text":
        file.write(b"no archive")
    elif act == "pickle":
        np.savez(file, meta=np.array([{}], dtype=object))
    elif act == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../x.npy", b"no array")
    elif act == "other":
        np.savez(file, a=np.arange(3))
    elif act == "bomb":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("meta.npy", b"\0" * 60_000_000)
    elif act == "npy":
        np.save(file, np.arange(5))
    return file.getvalue(), Mutation(f"a foreign archive: {act}", NONSENSE)


# ---- safetensors -------------------------------------------------------------------------------------------
def safetensors_mutation(draw: Random, data: bytes) -> tuple[Content, Mutation]:
    """A header with another value, of another length, or data that is too short."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    act = draw.choice(["header", "header", "length", "cut", "offset", "nan", "dtype"])
    nature = UNKNOWN
    if act == "header":
        made, how, path, _, new = other_json(draw, header)
        header, act = made, f"header {how} {path}: {str(new)[:60]!r}"
    elif act == "length":
        value = draw.choice([0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1])
        return value.to_bytes(8, "little") + header + body, Mutation(f"header length {value}", NONSENSE)
    elif act == "cut":
        body, nature = body[: draw.randrange(len(body))], NONSENSE
    elif act == "nan":
        body = b"\xff\xff\xff\x7f" * (len(body) // 4)
    elif act == "dtype":
        kinds = [f'"F{bits}"'.encode() for bits in (32, 16, 64)]
        odd = [*kinds[1:], b'"I32"', b'"BOOL"', b'"XYZ"']
        header = header.replace(kinds[0], draw.choice(odd), 1)
    else:
        content = json.loads(header)
        name = draw.choice(sorted(k for k in content if k != "__metadata__"))
        content[name]["data_offsets"] = draw.choice(
            [[0, 0], [-1, 4], [10**12, 10**12 + 4], [4, 0], [0, 10**9]]
        )
        header, nature = json.dumps(content).encode(), NONSENSE
    return len(header).to_bytes(8, "little") + header + body, Mutation(f"safetensors: {act}", nature)
