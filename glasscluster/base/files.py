"""Files that people bring, and files that must not be lost: the one reader, and the one writer.

A file that somebody names can be anything: a pipe that never ends, a device, four gigabytes in four
megabytes, a text in another encoding, JSON a million brackets deep. `read_bytes`, `read_text` and
`read_json` (and `sim.recording.arrays.read_npz`) take regular files up to a size, and refuse everything
else by an InputError that names the field.

A file that we write can be cut anywhere: the process is killed, the disk is full. `replacing` writes beside
the file, makes the disk keep it, and renames: whoever looks sees the old file or the new one.
`replacing_together` does it for files that are true only together, as a model's shape and its weights:

    1. all of them are written into FOLDER/.glass-writing-XXXX, and flushed     (killed here: the old ones)
    2. that folder is renamed to FOLDER/.glass-complete                         (this is the moment)
    3. each file is moved to its place; `finish` does what is left of this      (killed here: the new ones)

Every reader and every writer of such a set calls `finish` first.

A killed writer leaves its folder .glass-writing-XXXX behind. Each is locked (flock) by the process that
writes in it, and the kernel takes the lock away when that process ends, however it does: the next writer to
the same place removes those without a lock (`remove_left`), and never one of a writer that lives.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from glasscluster.base.errors import InputError
from glasscluster.base.text import shown

try:
    import fcntl
except ImportError:  # Windows: what killed writers leave stays
    fcntl = None  # type: ignore[assignment]

LARGEST_TEXT = 256 << 20  # bytes of a text that is parsed
LARGEST_DATA = 2 << 30  # bytes of text to train on
DEEPEST = 64  # brackets inside each other
TOO_DEEP = f"has more than {DEEPEST} brackets inside each other"
WRITING, COMPLETE = ".glass-writing-", ".glass-complete"
REMOVED = ".removed"  # in a complete set: names of files that the new ones replace
BYTE_ORDER_MARK = "\ufeff"  # what some editors of Windows write first; `read_text` takes it off

# What this process has done to the disk, for the last line of a command that a person ends.
made: list[Path] = []  # folders that were not there before; they may still be empty
written: list[Path] = []  # files, and folders of files that are true together, which are in their place


# ---- reading -----------------------------------------------------------------------------------------------
def read_bytes(field: str, path: str | Path, limit: int = LARGEST_DATA) -> bytes:
    """All bytes of a regular file.

    Args:
        field: the option that named the file, for the message.
        path: the file.
        limit: bytes that it may have.

    Raises:
        InputError: there is no such file, it cannot be read, it is no regular file, or it is too large.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise InputError(field, shown(path), f"is {_kind(about.st_mode)}; a regular file is needed")
            if about.st_size > limit:
                rule = f"has {about.st_size:,} bytes; at most {limit:,} are read"
                raise InputError(field, shown(path), rule)
            return file.read(limit + 1)
    except InputError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a name with a zero character
        raise InputError(field, shown(path), f"cannot be read: {why(problem)}") from None


def is_there(path: str | Path, what: Callable[[str | Path], bool] = os.path.exists) -> bool:
    """Whether something of this name is there; False for what no name can be, as 5,000 characters."""
    try:
        return what(path)
    except (OSError, ValueError):
        return False


def is_file(path: str | Path) -> bool:
    """Whether a regular file of this name is there."""
    return is_there(path, os.path.isfile)


def is_folder(path: str | Path) -> bool:
    """Whether a folder of this name is there."""
    return is_there(path, os.path.isdir)


def stamp(*paths: str | Path | None) -> tuple[Any, ...]:
    """Which files stand at these paths now, for whoever remembers what it has read there: another folder to
    work in, another file or another content gives another stamp. Of a folder its files count.

    A path of None, or that is not there, has a stamp as well: nothing is refused here.
    """
    return tuple(None if path is None else _stamp(Path(path)) for path in paths)


def _stamp(path: Path) -> tuple[Any, ...]:
    try:
        about = os.stat(path)
        inside = sorted(path.iterdir()) if stat.S_ISDIR(about.st_mode) else [path]
        files = ((file.name, os.stat(file)) for file in inside)
        return (
            os.path.abspath(path),
            *((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in files),
        )
    except (OSError, ValueError):  # ValueError: a name with a zero character
        return (str(path),)


def check_regular(field: str, path: str | Path) -> None:
    """Refuse a pipe, a device or a folder before somebody else's reader waits for it; a missing file passes.

    Raises:
        InputError: the path is there and is no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        raise InputError(field, shown(path), f"is {_kind(mode)}; a regular file is needed")


def read_text(field: str, path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """A text in UTF-8, with or without a byte-order mark; line ends become newlines.

    Raises:
        InputError: as `read_bytes`, or the bytes are no UTF-8.
    """
    text = _decoded(field, path, read_bytes(field, path, limit))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(field: str, path: str | Path, limit: int = LARGEST_TEXT) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: as `read_text` and `parse_json`.
    """
    return parse_json(field, path, read_text(field, path, limit))


def read_json_of(field: str, name: str, stream: BinaryIO, limit: int = LARGEST_TEXT) -> Any:
    """What a stream holds as JSON: standard input, which may never end.

    Raises:
        InputError: as `read_json`.
    """
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(field, shown(name), f"has more than {limit:,} bytes; at most so many are read")
    return parse_json(field, name, _decoded(field, name, data))


def _decoded(field: str, name: str | Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        rule = f"is not UTF-8 text: byte {problem.start} is 0x{problem.object[problem.start]:02x}"
        raise InputError(field, shown(name), rule) from None


def parse_json(field: str, name: str | Path, text: str) -> Any:
    """What a JSON text holds; `name` says in messages where it came from.

    Raises:
        InputError: the text is no JSON, an object in it has a key twice (other readers keep the first value,
            or the last, or refuse: nobody can tell which was meant), or its brackets stand too deep.
    """

    def with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for i, key in enumerate(names) if key in names[:i])
            values = " and then ".join(shown(repr(value)) for key, value in pairs if key == twice)
            raise InputError(field, shown(name), f"has the key {shown(repr(twice))} twice: {values}")
        return made

    try:
        value = json.loads(text.removeprefix(BYTE_ORDER_MARK), object_pairs_hook=with_each_key_once)
    except RecursionError:
        raise InputError(field, shown(name), TOO_DEEP) from None
    except InputError:
        raise
    except ValueError as problem:
        raise InputError(field, shown(name), f"is no JSON: {shown(problem)}") from None
    if _too_deep(value):
        raise InputError(field, shown(name), TOO_DEEP)
    return value


def why(problem: BaseException) -> str:
    """Why a file could not be read or written, in words."""
    return str(getattr(problem, "strerror", None) or problem)


def _too_deep(value: Any) -> bool:
    """Whether more than DEEPEST lists and objects stand inside each other."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for inner in level if isinstance(inner, (dict, list))]
        if not level:
            return False
        level = [inner for x in level for inner in (x.values() if isinstance(x, dict) else x)]
    return True


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kinds |= {stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "something else")


# ---- writing -----------------------------------------------------------------------------------------------
@contextmanager
def replacing(path: str | Path, field: str = "out") -> Iterator[Path]:
    """Give a path beside `path` to write to; when the block ends well it takes the place of `path`.

    Args:
        path: the file to make, or to replace.
        field: the option that named it, for the message.

    Raises:
        InputError: it cannot be written; what was there is untouched.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt") as beside:
        ...     _ = beside.write_text("whole")
        >>> [p.name for p in folder.iterdir()], (folder / "a.txt").read_text()
        (['a.txt'], 'whole')
    """
    path = Path(path)
    with naming(field, path), _staging(path.parent) as staging:
        beside = staging / f"new{path.suffix[-20:]}"
        beside.touch(0o600)
        yield beside
        os.chmod(beside, _mode_of(path))
        _flush(beside)
        os.replace(beside, path)
        written.append(path)
        _flush(path.parent)


def write_text(path: str | Path, text: str, field: str = "out") -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"), field)


def write_bytes(path: str | Path, data: bytes, field: str = "out") -> None:
    """Write bytes, whole or not at all. A pipe or a device (`/dev/stdout`) is written to as it is."""
    with naming(field, path):
        special = Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()
        if special:
            Path(path).write_bytes(data)
            return
    with replacing(path, field) as beside:
        beside.write_bytes(data)


@contextmanager
def naming(field: str, path: str | Path) -> Iterator[None]:
    """Make what the disk refuses an error that names the option."""
    try:
        yield
    except InputError:
        raise
    except OSError as problem:
        raise InputError(field, shown(path), f"cannot be written: {why(problem)}") from None
    except ValueError as problem:  # a name with a zero character
        if "null" not in str(problem):
            raise
        raise InputError(field, shown(path), f"cannot be written: {problem}") from None


@contextmanager
def replacing_together(folder: str | Path, field: str = "out", without: Sequence[str] = ()) -> Iterator[Path]:
    """Give a folder to write files to that are true only together; they all come into `folder`, or none.

    Args:
        folder: where they belong; made if it is not there. Other files in it stay as they are.
        field: the option that named it, for the message.
        without: names of files that must be gone when the new ones are there.

    Raises:
        InputError: they cannot be written; what was there is untouched.
    """
    folder = Path(folder)
    with naming(field, folder):
        make_folder(folder)
        finish(folder)
    with naming(field, folder), _staging(folder) as staging:
        yield staging
        there = [file.relative_to(staging) for file in staging.rglob("*")]
        (staging / REMOVED).write_text(json.dumps(sorted(set(without) - set(map(str, there)))))
        for name in there:
            if (staging / name).is_file():
                os.chmod(staging / name, _mode_of(folder / name))
            _flush(staging / name)
        _flush(staging / REMOVED)
        _flush(staging)
        os.rename(staging, folder / COMPLETE)
        written.append(folder)
    finish(folder)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Give a new folder to write in, which goes at the end with what is still in it; first those of killed
    writers go.

    Raises:
        OSError: it cannot be made.
    """
    remove_left(folder)
    lock = None
    while lock is None:  # another writer may take a folder without a lock for one of a killed writer
        staging = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder))
        lock = _locked(staging)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _locked(staging: Path) -> int | None:
    """Lock a new folder for as long as this process lives; returns what holds the lock, -1 where the system
    or the disk has no locks, and None where somebody is removing the folder.
    """
    if fcntl is None:
        return -1
    number = -1
    try:
        number = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(staging)  # whoever had the lock a moment ago may have removed it
        return number
    except (BlockingIOError, FileNotFoundError):
        if number >= 0:
            os.close(number)
        return None
    except OSError:  # nobody can lock here, so nobody removes what is not locked
        if number >= 0:
            os.close(number)
        return -1


def remove_left(folder: str | Path) -> None:
    """Remove what writers that were killed have left in a folder: ours, and those without a lock."""
    if fcntl is None:
        return
    for left in Path(folder).glob(f"{WRITING}*"):
        with suppress(OSError):
            number = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(number).st_uid == os.getuid():
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(number)


def finish(folder: str | Path) -> None:
    """Bring the files of a complete set to their places, if a writer was killed between them.

    Raises:
        InputError: the list of what the new files replace is none, or names files outside the folder.
        OSError: a file cannot be moved, for instance because the disk may only be read.
    """
    complete = Path(folder) / COMPLETE
    if not is_folder(complete):
        return
    if (complete / REMOVED).exists():  # else the removals are done, and this file went first
        for name in _removed(complete / REMOVED):
            with suppress(IsADirectoryError):
                (Path(folder) / name).unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another reader did it
        for file in sorted(complete.rglob("*")):
            place = Path(folder) / file.relative_to(complete)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            elif file.name != REMOVED:
                os.replace(file, place)
        _flush(Path(folder))
        shutil.rmtree(complete)


def _removed(path: Path) -> list[str]:
    """The names in a list of removals: files below the folder, and nothing else."""
    names = read_json("folder", path)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError("folder", shown(path), "must be a JSON list of names of files")
    for name in names:
        if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(
                "folder", shown(path), f"names {shown(repr(name))}, which is not below its folder"
            )
    return names


def new_folder(parent: str | Path, name: str, field: str = "out") -> Path:
    """Make PARENT/NAME-1, or the first number that is free, also beside runs that do the same just now."""
    number = 1
    with naming(field, parent):
        make_folder(parent)
        while True:
            folder = Path(parent) / f"{name}-{number}"
            try:
                folder.mkdir()
                made.append(folder)
                return folder
            except FileExistsError:
                number += 1


def make_folder(path: str | Path) -> None:
    """Make a folder and those that it lies in, as far as they are not there.

    Raises:
        OSError: it cannot be made.
        ValueError: its name has a zero character.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    made.extend(reversed(missing))
    path.mkdir(parents=True, exist_ok=True)


def take_back_empty_folders() -> None:
    """Remove the folders that this process has made and written nothing into."""
    for folder in reversed(made):
        with suppress(OSError):  # not empty, or not made
            folder.rmdir()
    made.clear()


def _mode_of(path: Path) -> int:
    """The permissions that a file has, or that a new one would get."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0o666 & ~_UMASK


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()


def _flush(path: Path) -> None:
    """Make the disk keep a file, or the names in a folder."""
    if sys.platform == "win32" and path.is_dir():
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.EROFS):  # some file systems cannot
            raise
    finally:
        os.close(number)
