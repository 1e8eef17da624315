"""Contention against SimGrid, message by message.

    python -m benchmarks.simgrid --python PYTHON_WITH_SIMGRID [--write]

Goal: 0.1 % for every message of every case in simgrid_cases.py. SimGrid stays outside of our environment
(docs/contention.md says how to install it). `--write` writes docs/contention.md, and SimGrid's times to
tests/data/simgrid.json, with which the tests compare ours without SimGrid.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simgrid_cases import Case, all_cases, events, ours

FLAGS = ("network/model:CM02", "network/crosstraffic:0", "network/TCP-gamma:0", "network/weight-S:0")
GOAL = 0.001
DIGITS = 12  # significant, in the file of SimGrid's times
ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("simgrid_worker.py")
FROZEN, PAGE = ROOT / "tests/data/simgrid.json", ROOT / "docs/contention.md"

TEXT = """# Contention, held against SimGrid

`replay(graph, hw, contention=True)` shares links between messages max-min fairly
([sim/contention](../glasscluster/sim/contention/__init__.py)). [SimGrid](https://simgrid.org) (Casanova et
al. 2014) does so with other code. Both were given the same networks, routes, messages and dependencies, and
every message's arrival was compared, not only the end of the whole.

- **SimGrid** {version}, {flags}.
  Goal: {goal:g} % for every message.
- **Found**: {cases} cases, {messages:,} messages; the largest difference is
  **{worst:.1e}** ({worst_case}).
- **Difference** below is the largest relative one over a case's messages and its makespan. Where messages end
  within 1e-9 s of each other, SimGrid lets them end at once (its `precision/timing`), which is all there is
  to the largest; the others are rounding.
- **Latency**: SimGrid pays a route's latency before the transfer, GlassCluster after it. Where all messages
  that share links have the same latency, transfers are later by just that and arrivals are the same; the
  cases that name a latency are such. The others have none. Overhead (the sender's port is busy before
  anything moves) is a delay before the message in SimGrid.
- **Switches**: a message cuts through, so it takes its time once, however many switches there are. Where
  links store and forward, it is one message after the other in SimGrid.
- A sender's lane sends one message at a time; messages of different lanes go at once.
- **Limit**: shared links amplify rounding where many equal messages would end at once. In a direct all-to-all
  of 64 ranks on a tree oversubscribed 2:1, sizes changed by 1e-15 of themselves moved arrivals by 5 % and the
  end by 1 %. There no two programs can agree message by message; hence cases of at most some thirty GPUs.

The cases are in [simgrid_cases.py](../benchmarks/simgrid_cases.py), with their seeds. SimGrid's times are
kept in `tests/data/simgrid.json`; `tests/test_contention_simgrid.py` compares all cases with them, without
SimGrid. To make them anew:

```
apt-get install g++ cmake libboost-dev libeigen3-dev && python3 -m venv simgrid
echo 'pybind11<3' > old && PIP_CONSTRAINT=old simgrid/bin/pip install simgrid  # 4.1 needs pybind11 2
LD_LIBRARY_PATH=$(simgrid/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))') \\
  .venv/bin/python -m benchmarks.simgrid --python simgrid/bin/python --write
```

or, in a minute, Debian's `apt-get install python3-simgrid` and `--python /usr/bin/python3` (3.32 finds
the same times).

{table}
"""


def in_simgrid(python: str, content: dict[str, Any]) -> tuple[str, np.ndarray]:
    """SimGrid's version, and when it ends each event."""
    command = [python, "-I", str(WORKER), *FLAGS]
    done = subprocess.run(command, input=json.dumps(content), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"SimGrid did not run in {python}: {last}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["version"], np.array(answer["ended"])


def fingerprint(content: dict[str, Any]) -> int:
    """Of what SimGrid was given: tells a case that has changed since from a difference."""
    return zlib.crc32(json.dumps(content).encode())


def difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest relative difference."""
    return float(np.max(np.abs(mine - theirs) / theirs))


def compare(case: Case, python: str) -> dict[str, Any]:
    """One case on both sides."""
    content = events(case)
    version, ended = in_simgrid(python, content)
    line, arrival = ours(case)
    theirs, whole = ended[content["arrivals"]], float(ended.max())
    return {
        "family": case.family,
        "case": case.name,
        "messages": len(arrival),
        "links": len({link for _, _, way in content["routes"] for link in way}),
        "ours_s": line.makespan,
        "simgrid_s": whole,
        "difference": max(difference(arrival, theirs), abs(line.makespan / whole - 1)),
        "version": version,
        "of": fingerprint(content),
        "times": theirs.tolist(),
    }


def measure(python: str) -> list[dict[str, Any]]:
    """One row a case."""
    return [compare(case, python) for case in all_cases()]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; links are those that a message goes over."""
    lines = ["| network | case | messages | links | ours, s | SimGrid, s | difference |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for r in rows:
        about = f"| {r['family']} | {r['case']} | {r['messages']} | {r['links']} "
        lines.append(f"{about}| {r['ours_s']:.9f} | {r['simgrid_s']:.9f} | {r['difference']:.1e} |")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]]) -> None:
    """The page and SimGrid's times."""
    worst = max(rows, key=lambda r: r["difference"])
    text = TEXT.format(
        version=rows[0]["version"],
        flags=" ".join(f"`{f}`" for f in FLAGS),
        goal=100 * GOAL,
        cases=len(rows),
        messages=sum(r["messages"] for r in rows),
        worst=worst["difference"],
        worst_case=worst["case"],
        table=table(rows),
    )
    PAGE.write_text(text)

    def short(x: float) -> float:
        return float(f"{x:.{DIGITS}g}")

    cases = {}
    for r in rows:
        times = {"makespan": short(r["simgrid_s"]), "messages": [short(x) for x in r["times"]]}
        cases[r["case"]] = {"of": r["of"], **times}
    head = json.dumps({"simgrid": rows[0]["version"], "flags": FLAGS})[1:-1]
    compact = {name: json.dumps(case, separators=(",", ":")) for name, case in cases.items()}
    body = ",\n".join(f"{json.dumps(name)}: {case}" for name, case in compact.items())
    FROZEN.parent.mkdir(exist_ok=True)
    FROZEN.write_text(f'{{{head}, "cases": {{\n{body}\n}}}}\n')


def main() -> None:
    """Compare, print, and write if asked to. Exit code 1 when a case misses the goal."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--python", required=True, help="a Python in which `import simgrid` works")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write docs/{PAGE.name} and tests/data/{FROZEN.name}",
    )
    asked = parser.parse_args()
    rows = measure(asked.python)
    print(table(rows))
    worst = max(rows, key=lambda r: r["difference"])
    count = sum(r["messages"] for r in rows)
    print(f"\nSimGrid {rows[0]['version']}, {' '.join(FLAGS)}")
    largest = f"largest difference {worst['difference']:.1e} ({worst['case']})"
    print(f"{len(rows)} cases, {count:,} messages; {largest}, goal {GOAL:g}")
    if asked.write:
        write(rows)
    sys.exit(worst["difference"] > GOAL)


if __name__ == "__main__":
    main()
