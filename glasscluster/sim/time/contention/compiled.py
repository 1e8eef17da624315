"""How the functions of this folder are compiled, and how their machine code is cached between processes.

`@compiled` and `@inlined` switch off numba's reference counts (`_nrt=False`; numba's type hints do not list
it). With them, every call counts each array that it is given up and down, atomically, which took longer than
all the rest. In return such a function can neither make nor return an array: all tables are made beforehand
(tables.py).

Only the event loop is called from Python, and only it is cached on disk, with everything it calls inside.
numba decides by the loop's own file whether the cached code is still good, so a change in another file of
this folder would go unnoticed. `source_stamp` is a number that changes with any of these files; the loop
holds it, and numba's key includes it.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from numba import njit

compiled = njit(boundscheck=False, _nrt=False)  # type: ignore[call-overload]
# For what is called once per message: passing a dozen arrays would cost more than the work itself.
inlined = njit(boundscheck=False, _nrt=False, forceinline=True)  # type: ignore[call-overload]
# For a function that Python calls. Other threads may run meanwhile.
entry_point = njit(cache=True, nogil=True, boundscheck=False, _nrt=False)  # type: ignore[call-overload]


def source_stamp() -> int:
    """A number that depends on the text of every Python file in this folder."""
    stamp = 0
    for file in sorted(Path(__file__).parent.glob("*.py")):
        stamp = zlib.crc32(file.read_bytes(), stamp)
    return stamp
