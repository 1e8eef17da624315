"""`glass doctor`: what this machine has, and what to do where something is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OLDEST_TORCH, OLDEST_RAY = (2, 10), (2, 59)


def examine() -> list[dict[str, Any]]:
    """Examine this machine; one row an item, with the keys name, found, ok, needed and advice."""
    rows = [
        _python(),
        _package("torch", OLDEST_TORCH, True),
        _package("ray", OLDEST_RAY, False, "use --backend threads, or pip install 'glasscluster[ray]'"),
    ]
    rows += [
        _package(name, (), True)
        for name in ("numpy", "numba", "networkx", "plotly", "pydantic", "typer", "rich", "jinja2")
    ]
    return [*rows, _gloo(), _gpu(), _cores(), _browser(), _font()]


def _row(name: str, present: str, ok: bool, needed: bool, advice: str = "") -> dict[str, Any]:
    return {"name": name, "found": present, "ok": ok, "needed": needed, "advice": "" if ok else advice}


def _python() -> dict[str, Any]:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return _row("python", platform.python_version(), ok, True, "Python 3.11 to 3.13 is what is tested")


def _package(name: str, oldest: tuple[int, ...], needed: bool, advice: str = "") -> dict[str, Any]:
    if importlib.util.find_spec(name) is None:
        return _row(name, "not installed", False, needed, advice or f"pip install {name}")
    try:
        installed = version(name)
    except PackageNotFoundError:
        return _row(name, "version unknown", True, needed)
    numbers = tuple(int(n) for n in installed.split("+")[0].split(".")[:2] if n.isdigit())
    wanted = ".".join(map(str, oldest))
    return _row(name, installed, numbers >= oldest, needed, f"{name} {wanted} or later is needed")


def _gloo() -> dict[str, Any]:
    import torch.distributed as dist

    ok = dist.is_available() and dist.is_gloo_available()
    return _row(
        "gloo",
        "in this torch" if ok else "not in this torch",
        ok,
        False,
        "ray and torchrun backends need it on CPU; use --backend threads",
    )


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return _row(
            "GPU",
            "none that torch sees",
            False,
            False,
            "nothing needs one; with GPUs: torchrun ... -m glasscluster train --device cuda",
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _row("GPU", ", ".join(names), True, False)


def _cores() -> dict[str, Any]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _row(
        "cores", str(count), count >= 2, False, "two or more make Ray actors bearable; threads run on one"
    )


def _browser() -> dict[str, Any]:
    browser = next(
        (
            b
            for b in ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")
            if shutil.which(b)
        ),
        None,
    )
    return _row(
        "browser",
        browser or "none on PATH",
        browser is not None,
        False,
        "report.html opens in any browser; the browser tests need chromium",
    )


def _font() -> dict[str, Any]:
    if shutil.which("fc-list") is None:
        return _row("CJK font", "cannot tell (no fc-list)", True, False)
    fonts = subprocess.run(
        ["fc-list", ":lang=zh", "family"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return _row(
        "CJK font",
        fonts.splitlines()[0] if fonts else "none",
        bool(fonts),
        False,
        "for 中文 figures: install fonts-noto-cjk",
    )
