"""Run the benchmarks and print what they found, each goal beside its figure."""

from __future__ import annotations

import json
import sys

from benchmarks import (
    attention,
    collectives,
    commands,
    comparison,
    network,
    recorder,
    replay,
    ring,
    tokenizer,
)

ALL = {
    "attention": attention.measure,
    "collectives": collectives.measure,
    "commands": commands.measure,
    "replay": replay.measure,
    "recorder": recorder.measure,
    "ring": ring.measure,
    "comparison": comparison.measure,
    "network": network.measure,
    "tokenizer": tokenizer.measure,
}


def main(names: list[str]) -> None:
    """Print one JSON object a benchmark."""
    for name in names or list(ALL):
        if name not in ALL:
            sys.exit(f"no benchmark {name!r}; there are {', '.join(ALL)}")
        print(f"measuring {name}", file=sys.stderr, flush=True)
        print(json.dumps({name: ALL[name]()}, indent=1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
