"""What every test shares: one thread a process, and reasons for skipping."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray starts its workers with the least priority: beside another worker's tests they would wait for seconds
os.environ.setdefault("RAY_worker_niceness", "0")

import drawn
import pytest
import torch
from torchrun_pool import Pool

from glasscluster.sim.ranks.backends import threads

torch.set_num_threads(1)
drawn.watch()
if not torch.cuda.is_available():  # read when triton is first imported, which any test may be the first to do
    os.environ.setdefault("TRITON_INTERPRET", "1")


SHARED_CPUS = 16
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker and hasattr(
    os, "sched_getaffinity"
):  # thread-ranks share a core, and should not meet another worker's there
    _cpus = sorted(os.sched_getaffinity(0))
    threads._one_cpu = lambda: _cpus[int(_worker.removeprefix("gw")) % len(_cpus)]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook, and was there before us
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for alone in ("ray", "torchrun"):  # one cluster at a time
            if item.get_closest_marker(alone):
                item.add_marker(pytest.mark.xdist_group("processes"))
        if not item.get_closest_marker("xdist_group") and any(
            made[-1].scope == "module" for made in item._fixtureinfo.name2fixturedefs.values()
        ):  # what a file's tests share is made once, by one worker
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU that torch sees on this machine"))
        if item.get_closest_marker("browser") and shutil.which("chromium") is None:
            item.add_marker(pytest.mark.skip(reason="no chromium on PATH (Debian: apt-get install chromium)"))
        if item.get_closest_marker("node") and shutil.which("node") is None:
            item.add_marker(pytest.mark.skip(reason="no node on PATH (Debian: apt-get install nodejs)"))


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("loadgroup", False):
        unseen = [
            i.nodeid for i in session.items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid
        ]
        assert not unseen, f"xdist has not seen the groups of {len(unseen)} tests: {unseen[:3]}"
    gc.collect()
    # what is imported stays: the collector, which went through it again and again, took a tenth of the suite
    gc.freeze()


@pytest.fixture(autouse=True)
def _pictures_are_plotly_s():
    """What a test drew, and its fixtures before it, plotly must accept."""
    yield
    drawn.judge()


@pytest.fixture(scope="session")
def shared_ray():
    """One Ray for the worker that runs the tests with processes; clusters use it and leave it alone."""
    import ray

    before = dict(os.environ)
    ray.init(
        num_cpus=SHARED_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()
    for key in set(os.environ) - set(before):
        del os.environ[key]
    os.environ.update(before)


@pytest.fixture(scope="session")
def actors(shared_ray):
    """`actors(n)` is a cluster of n Ray actors, started once, which run one program after the other."""
    from glasscluster.sim.run import Cluster

    started: dict[int, Cluster] = {}

    def cluster(gpus: int) -> Cluster:
        if gpus not in started:
            started[gpus] = Cluster("classroom", gpus, "ray", timeout_s=60, memory_bytes=None).__enter__()
        return started[gpus]

    yield cluster
    for one in started.values():
        one.close()


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    """`pool(n, script, *words, cwd=...)` runs a script in n processes of a torchrun that stays."""
    with Pool(tmp_path_factory.mktemp("torchrun")) as running:
        yield running


FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """`visit(path, width, fragment)` opens a page; errors, warnings and requests land in `page.problems`."""
    opened = []

    def open_page(path: Path, width: int = 1360, fragment: str = ""):
        page = browser.new_page(viewport={"width": width, "height": 760}, reduced_motion="reduce")
        opened.append(page)
        page.problems = []
        page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: page.problems.append(str(e)))
        page.on(
            "request",
            lambda r: (
                page.problems.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
            ),
        )
        page.goto(path.as_uri() + fragment)
        return page

    yield open_page
    for page in opened:
        page.close()


@pytest.fixture(scope="session")
def labs():
    """Each lesson, performed once on its default backend, with the lines that it shows watched."""
    from lesson_rules import perform_watched

    from glasscluster.scenarios.lesson import taught_lesson

    made: dict[str, object] = {}

    def perform_once(id_: str):
        if id_ not in made:
            made[id_] = perform_watched(taught_lesson(id_))
        return made[id_]

    return perform_once
