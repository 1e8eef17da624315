"""A case: a command line with its files, and what was done to it."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NONSENSE, HARMLESS, UNKNOWN = "nonsense", "harmless", "unknown"
BAD_ROW = "nonsense in a row"  # one bad row of a table stops nothing, and is named in its line

# a file is its bytes, or one of these
FIFO, FOLDER, ENDLESS = "a pipe", "a folder", "a link to /dev/zero"
Content = bytes | str


@dataclass
class Sheet:
    """What is handed to `glass`: words, files by path below the working folder, standard input."""

    words: list[str]
    files: dict[str, Content] = field(default_factory=dict)
    stdin: bytes = b""

    def write(self, folder: Path) -> None:
        """Put the files into a folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == FIFO:
                os.mkfifo(path)
            elif content == FOLDER:
                path.mkdir(exist_ok=True)
            elif content == ENDLESS:
                path.symlink_to("/dev/zero")
            else:
                assert isinstance(content, bytes)
                path.write_bytes(content)

    def copy(self) -> Sheet:
        """Another of the same content."""
        return Sheet(list(self.words), dict(self.files), self.stdin)


@dataclass
class Mutation:
    """What was done, and what must follow: NONSENSE is refused, HARMLESS is taken, UNKNOWN is either; of a
    BAD_ROW a row has an error.
    """

    says: str
    nature: str


@dataclass
class Case:
    """One sheet after its mutations."""

    kind: str
    number: int
    seed: int
    sheet: Sheet
    mutations: list[Mutation]

    @property
    def nature(self) -> str:
        """What must follow from all mutations together.

        The last one alone can be certain to be there still: what came before it may have been undone.
        """
        natures = [m.nature for m in self.mutations]
        if all(n == HARMLESS for n in natures):
            return HARMLESS
        certain = all(n == HARMLESS for n in natures[:-1])
        return natures[-1] if certain else UNKNOWN

    def as_json(self) -> dict[str, Any]:
        """For a file that `--rerun` reads."""
        return {
            "kind": self.kind,
            "number": self.number,
            "seed": self.seed,
            "mutations": [[m.says, m.nature] for m in self.mutations],
            "words": self.sheet.words,
            "stdin": base64.b64encode(self.sheet.stdin).decode(),
            "files": {
                name: c if isinstance(c, str) else {"base64": base64.b64encode(c).decode()}
                for name, c in self.sheet.files.items()
            },
        }

    @classmethod
    def read(cls, path: Path) -> Case:
        """The case that a file holds."""
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {
            name: c if isinstance(c, str) else base64.b64decode(c["base64"])
            for name, c in content["files"].items()
        }
        sheet = Sheet(content["words"], files, base64.b64decode(content["stdin"]))
        mutations = [Mutation(*m) for m in content["mutations"]]
        return cls(content["kind"], content["number"], content["seed"], sheet, mutations)
