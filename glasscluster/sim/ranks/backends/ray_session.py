"""A Ray that this process starts and stops: its folder, its token, its address, and what it changes in us.

Ray keeps sockets, logs and tokens in a folder for each session, which it makes for everybody to write to and
leaves behind. Ours lies in a folder that only its owner may enter, and goes when Ray stops. A driver that is
killed cannot remove it: its processes end with it (the kernel sees to that on Linux), and the folder goes
when the next Ray is started, for which its lock tells it from one in use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glasscluster.base.errors import BackendUnavailable

try:
    import fcntl
except ImportError:  # Windows: folders of killed drivers stay
    fcntl = None  # type: ignore[assignment]

FOLDERS = "glass-ray-"  # how the folders of sessions begin
LOCK = "lock"
ANSWER_S = 5.0  # for a Ray that somebody else has started to take a connection, and to answer
PUT_BACK_S = 0.02  # how often the handler of SIGTERM is put back while Ray starts
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a client's first bytes


def check_address(address: str) -> None:
    """Refuse an address where nobody listens, or something else than Ray; Ray itself would try for minutes.

    Ray speaks gRPC, which is HTTP/2: whoever does answers a client's first bytes with settings of its own.

    Args:
        address: as RAY_ADDRESS has it: HOST:PORT, ray://HOST:PORT, or a word of Ray's own.

    Raises:
        BackendUnavailable: nobody takes a connection there, or answers.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:  # auto, local
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
                connection.sendall(HELLO)
                answer = connection.recv(9)
                if answer[3:4] != b"\x04":
                    raise ValueError("what listens there is something else")
    except (OSError, ValueError) as problem:
        raise BackendUnavailable(
            f"RAY_ADDRESS is {address}, and no Ray answers there ({problem}): start it, or unset RAY_ADDRESS"
        ) from None


class Session:
    """A Ray of our own; or somebody else's, to which RAY_ADDRESS leads."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.folder: Path | None = None
        self._lock: Any = None
        self._environment = dict(os.environ)

    def start(self, cpus: int) -> None:
        """Start Ray on this machine, or connect to RAY_ADDRESS.

        Args:
            cpus: how many actors it must have room for.
        """
        options: dict[str, Any] = {}
        if address := os.environ.get("RAY_ADDRESS"):
            check_address(address)
        else:
            remove_left_folders()
            self.folder, self._lock = _make_folder()
            temporary = str(self.folder / "ray")
            options = {"address": "local", "num_cpus": cpus, "_node_ip_address": "127.0.0.1"}
            options["_temp_dir"] = temporary
        mask = os.umask(0o077)  # of files that Ray makes, its token among them
        try:
            with _handler_kept(), quiet():
                self.ray.init(
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    configure_logging=False,
                    **options,
                )
        finally:
            os.umask(mask)
        if self.folder is not None:
            _close_token()

    def stop(self) -> None:
        """Stop it, remove its folder, and put the environment back as it was."""
        with quiet():
            self.ray.shutdown()
        for key in set(os.environ) - set(self._environment):
            del os.environ[key]
        os.environ.update(self._environment)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _base() -> Path:
    """/tmp where there is one: the names of Ray's sockets may have 107 characters with their folder."""
    return Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())


def _make_folder() -> tuple[Path, Any]:
    """A new folder that only we may enter, and its lock, which is ours until we end."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS, dir=_base()))
    lock = (folder / LOCK).open("w")
    _lock(lock)
    return folder, lock


def remove_left_folders() -> None:
    """Remove the folders of sessions whose driver was killed."""
    for folder in _base().glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
            if folder.stat().st_uid == os.getuid() and _lock(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file: Any) -> bool:
    """Lock a file; False where somebody has it, or where this system cannot."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return fcntl is not None


def _close_token() -> None:
    """Ray's token lies in ~/.ray; an older one there may be readable by everybody."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        token.chmod(0o600)
        token.parent.chmod(0o700)


@contextlib.contextmanager
def _handler_kept() -> Iterator[None]:
    """Keep whoever handles SIGTERM: Ray takes it twice when it starts, first in Python, then in C++, where it
    aborts the process.

    The second time no hook of ours runs, so a timer puts the handler back as soon as Python runs again.
    """
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (None, signal.SIG_DFL) or not hasattr(signal, "setitimer"):
        yield
        return

    def put_back(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)

    from ray._private import utils

    taking, utils.set_sigterm_handler = utils.set_sigterm_handler, put_back
    alarm = signal.signal(signal.SIGALRM, put_back)
    signal.setitimer(signal.ITIMER_REAL, PUT_BACK_S, PUT_BACK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        utils.set_sigterm_handler = taking
        put_back()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray prints hints on standard error while starting; standard output must stay ours."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def loaded() -> Any:
    """Ray, if this process has imported it."""
    return sys.modules.get("ray")
