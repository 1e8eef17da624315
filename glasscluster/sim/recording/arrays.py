"""Archives of arrays that people bring: read whole or refused by name, and never unpickled."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_bytes, shown

LARGEST_UNPACKED = 4 << 30  # bytes of all arrays; a graph of ten million events has less


def read_npz(field: str, path: str | Path, limit: int = LARGEST_UNPACKED) -> dict[str, Any]:
    """The arrays of an .npz file by name, never unpickled.

    Raises:
        InputError: as `read_bytes`, or the file is no archive of arrays, or unpacks to too many bytes.
    """
    data = io.BytesIO(read_bytes(field, path))
    try:
        with zipfile.ZipFile(data) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > limit:
            rule = f"unpacks to {unpacked:,} bytes; at most {limit:,} are read"
            raise InputError(field, shown(path), rule)
        with np.load(data, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        if odd := [name for name, array in content.items() if not isinstance(array, np.ndarray)]:
            raise InputError(field, shown(path), f"holds {shown(odd[0])}, which is no array")
        return content
    except InputError:
        raise
    except Exception as problem:  # a damaged archive fails in many ways inside zipfile and numpy
        raise InputError(field, shown(path), f"is no archive of arrays ({type(problem).__name__})") from None
