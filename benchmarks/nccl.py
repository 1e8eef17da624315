"""NCCL as `glasscluster.sim.time.nccl.model` predicts it against all-reduces that other people measured.

    python -m benchmarks.nccl [FOLDER OF nccl_busbw_measured.csv]

Each row stands three times: our time, NCCL's own estimate (without the copy out of a ring's last buffer) and
what NCCL would have chosen where the row does not say. No number is fitted, but that a copy out exists was
found by looking at the A100 rows. So the rows are in two halves by message size, every other power of two:
even powers are those to look at, odd ones are held out, and whoever changes the model looks at the first half
only.

Goal: the median absolute error of the time on the half held out is at most 10 %.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from glasscluster.sim.time.nccl.model import choose

TABLES = Path(__file__).parents[1] / "tests" / "data" / "published"
CATALOGUE_NAME = {
    "A100": "dgx-a100-80gb",
    "A100 SXM": "dgx-a100-80gb",
    "H200 SXM": "dgx-h200",
    "B200 SXM": "dgx-b200",
}
GOAL = 10.0  # percent, median, of the half held out
HALVES = {"looked at": False, "held out": True}
MIB = 1024**2
CLASSES = (
    ("up to 4 MiB", 4 * MIB),
    ("8 to 32 MiB", 32 * MIB),
    ("64 to 512 MiB", 512 * MIB),
    ("1 GiB and more", float("inf")),
)


def restriction(collective: str) -> set[str] | None:
    """The algorithms a row's text allows: "all_reduce (NVLS)" ran NVLS, "(Ring, NVLS off)" a ring; None where
    it says nothing.
    """
    inside = collective.partition("(")[2].rstrip(")").partition(",")[0].strip()
    return {inside} if inside else None


def held_out(nbytes: int) -> bool:
    """Whether rows of this message size may not be looked at while the model changes: an odd power of two."""
    return (nbytes.bit_length() - 1) % 2 == 1


def compare(row: dict[str, str]) -> dict[str, Any]:
    """One measured row beside the prediction, microseconds; errors are signed percent of the
    measured time.
    """
    operation, nbytes, gpus = row["collective"].split()[0], int(row["bytes"]), int(row["gpus"])
    hw, measured = CATALOGUE_NAME[row["hardware"]], float(row["time_us"])
    only = restriction(row["collective"])
    choice = choose(operation, nbytes, hw, gpus, only)
    free = choose(operation, nbytes, hw, gpus)
    return {
        "hardware": row["hardware"],
        "gpus": gpus,
        "bytes": nbytes,
        "collective": row["collective"],
        "choice": f"{choice.algorithm}/{choice.protocol}",
        "unrestricted": free.algorithm,
        "measured_us": measured,
        "predicted_us": round(choice.time_s * 1e6, 2),
        "error_percent": 100 * (choice.time_s * 1e6 / measured - 1),
        "estimate_error_percent": 100 * (choice.estimate_s * 1e6 / measured - 1),
    }


def size_class(row: dict[str, Any]) -> str:
    """The name of the class of sizes a row falls in."""
    return next(name for name, most in CLASSES if row["bytes"] <= most)


def summary(rows: Iterable[dict[str, Any]], field: str = "error_percent") -> dict[str, float]:
    """Rows, median and mean of the absolute error in percent, and the mean signed one."""
    errors = [r[field] for r in rows]
    sizes = [abs(e) for e in errors]
    return {
        "rows": len(errors),
        "median": round(median(sizes), 2),
        "mean": round(mean(sizes), 2),
        "signed": round(mean(errors), 2),
    }


def measure(tables: str = str(TABLES)) -> dict[str, Any]:
    """Compare every row of nccl_busbw_measured.csv whose hardware is in the catalogue."""
    with (Path(tables) / "nccl_busbw_measured.csv").open() as file:
        table = list(csv.DictReader(file))
    rows = [compare(r) for r in table if r["hardware"] in CATALOGUE_NAME and r["time_us"]]

    def by(key: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, float]]:
        return {name: summary(r for r in rows if key(r) == name) for name in dict.fromkeys(map(key, rows))}

    halves = {name: [r for r in rows if held_out(r["bytes"]) == held] for name, held in HALVES.items()}
    alone = {name: summary(half, "estimate_error_percent") for name, half in halves.items()}
    halves |= {f"{name}, A100": [r for r in half if r["hardware"] == "A100"] for name, half in halves.items()}
    return {
        "goal_median_percent": GOAL,
        "left_out": len(table) - len(rows),
        "overall": summary(rows),
        "nccl_estimate_alone": summary(rows, "estimate_error_percent"),
        "halves": {name: summary(half) for name, half in halves.items()},
        "halves_nccl_estimate_alone": alone,
        "by_hardware": by(
            lambda r: f"{r['hardware']} x{r['gpus']}" if r["hardware"] == "A100" else r["hardware"]
        ),
        "by_size": by(size_class),
        "furthest": sorted(rows, key=lambda r: -abs(r["error_percent"]))[:8],
        "rows": rows,
    }


def main(tables: str = str(TABLES)) -> None:
    """Print the rows and what they add up to."""
    found = measure(tables)
    print(
        f"{'hardware':<10}{'gpus':>5}{'MiB':>8}  "
        f"{'measured us':>12}{'ours us':>12}{'error':>8}{'NCCL est.':>10}  ran / would choose"
    )
    for r in found["rows"]:
        print(
            f"{r['hardware']:<10}{r['gpus']:>5}{r['bytes'] / MIB:>8.0f}  "
            f"{r['measured_us']:>12.1f}{r['predicted_us']:>12.1f}"
            f"{r['error_percent']:>+7.1f}%{r['estimate_error_percent']:>+9.1f}%  {r['choice']} / "
            f"{r['unrestricted']}"
        )
    groups = {
        "overall": found["overall"],
        "NCCL's estimate alone": found["nccl_estimate_alone"],
        **found["halves"],
        **{f"{name}, estimate": s for name, s in found["halves_nccl_estimate_alone"].items()},
        **found["by_hardware"],
        **found["by_size"],
    }
    print(f"\n{'absolute error, percent':<26}{'rows':>5}{'median':>8}{'mean':>8}{'signed':>8}")
    for name, s in groups.items():
        print(f"{name:<26}{s['rows']:>5}{s['median']:>8.1f}{s['mean']:>8.1f}{s['signed']:>+8.1f}")
    print(f"goal: median of the half held out at most {found['goal_median_percent']:g} %")


if __name__ == "__main__":
    main(*sys.argv[1:2])
