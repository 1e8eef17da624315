"""Every block of code in the README and in docs/ runs: commands, programs, and the files that they need.

A page's blocks run in their order, in one folder and one process. A block with a title is a file. What a
line is said to exit with stands behind it (`# exit 2: ...`), else it is 0. A comment above a block takes
lines out of it, by how they begin, or all of it, and says why:

    <!-- not run: torchrun: tests/test_torchrun.py runs the same -->
    <!-- not run: all: installs the package -->

Trainings run on threads where a page leaves it to Ray, and for a few steps and items where it has hundreds.
docs/extending.md has its own test (test_extending.py), and so have the keys of docs/contract.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {"docs/extending.md"}
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [p.relative_to(ROOT).as_posix() for p in PAGES]
FENCE = re.compile(
    r'((?:^<!-- [^\n]*-->\n)*)^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"^<!-- not run: (.+?): (.+) -->$", re.MULTILINE)
RUN = {"bash", "python"}
OTHER = {"text", "keys", "json", "csv", "toml", "diff"}  # not code, or files that a block needs
FEW = "4"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32}
LLAMA |= {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}
LLAMA |= {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
RUNNER = """
import contextlib, io, json, sys, traceback
from pathlib import Path
from glasscluster.cli import main
for kind, what, target in json.load(sys.stdin):
    out, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(sys.stderr if target else out):
            if kind == "command":
                main(what)
            else:
                name = "block.py"
                Path(name).write_text(what)
                exec(compile(what, name, "exec"), {"__name__": "__main__"})
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        code = traceback.format_exc()
    if target:
        Path(target).write_text(out.getvalue())
    print(json.dumps([code, out.getvalue()[-600:]]), flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its file's name, its text, and which lines are not run, and why."""

    language: str
    title: str
    text: str
    left_out: dict[str, str]


@dataclass(frozen=True)
class Step:
    """A command or a program of a page, the file that its output goes to, and its exit code."""

    kind: str
    what: Any
    target: str
    code: int


def blocks(page: Path) -> list[Block]:
    """Every block of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(lang, title, body, dict(MARK.findall(marks)))
        for marks, lang, title, body in FENCE.findall(text)
    ]


def commands(block: Block) -> list[tuple[str, int]]:
    """The commands of a block of bash that are run, and what each exits with."""
    made = []
    for line in block.text.replace("\\\n", "").splitlines():
        command, _, remark = line.partition(" # ")
        code = re.match(r"exit (\d)", remark.strip())
        parts = [part.strip() for part in command.split(";") if part.strip()]
        made += [(part, int(code[1]) if code else 0) for part in parts if not part.startswith("#")]
    return [(c, n) for c, n in made if not any(k == "all" or c.startswith(k) for k in block.left_out)]


def as_tested(words: list[str]) -> list[str]:
    """A command on threads where it would be on Ray, and with few steps and items."""
    if words[0] in ("train", "run") and "--backend" not in words:
        words = [*words, "--backend", "threads"]
    if words[0] == "evaluate" and "--items" not in words:
        words = [*words, "--items", FEW]
    return [FEW if words[i - 1] == "--steps" and i else word for i, word in enumerate(words)]


def steps(page: Path) -> list[Step]:
    """What a page runs, in order; its files are written before."""
    made = []
    for block in blocks(page):
        if block.language == "python" and not block.title and "all" not in block.left_out:
            made.append(Step("program", block.text, "", 0))
        for command, code in commands(block) if block.language == "bash" else ():
            name, *words = shlex.split(command)
            assert name == "glass", f"{command}: the test runs glass; say why this is not run"
            target = words.pop() if len(words) > 1 and words[-2] == ">" else ""
            words = [word for word in words if word != ">"]
            made.append(Step("command", as_tested(words), target, code))
    return made


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_block_says_its_language_and_a_line_that_is_not_run_is_there_and_says_why(page):
    if page.relative_to(ROOT).as_posix() in ELSEWHERE:
        return
    text = page.read_text(encoding="utf-8")
    assert len(FENCE.findall(text)) == len(re.findall(r"^```", text, re.MULTILINE)) // 2
    assert len(MARK.findall(text)) == sum(len(b.left_out) for b in blocks(page)), (
        "a mark stands above its block"
    )
    for block in blocks(page):
        assert block.language in RUN | OTHER, f"```{block.language} before {block.text[:60]!r}"
        lines = [line.strip() for row in block.text.splitlines() for line in row.split(";")]
        for begin, why in block.left_out.items():
            assert begin == "all" or any(line.startswith(begin) for line in lines), begin
            assert len(why.split()) >= 3, f"{begin}: {why}"
        if block.language not in RUN:
            assert (
                not re.search(r"^(\$ )?(glass|make|pip|torchrun) ", block.text, re.M)
                or block.language == "keys"
            )


def test_the_chinese_readme_runs_what_the_english_one_does():
    english, chinese = (steps(page) for page in PAGES[:2])
    programs = [[s.what for s in made if s.kind == "command"] for made in (english, chinese)]
    assert programs[0] == programs[1]
    assert len(programs[0]) > 25


@pytest.mark.parametrize(
    "page", [p for p in PAGES if steps(p) and p.name != "README.zh.md"], ids=lambda p: p.name
)
def test_the_code_of_a_page_runs(page, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    made = steps(page)
    given = json.dumps([(s.kind, s.what, s.target) for s in made])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"input": given, "capture_output": True, "text": True, "timeout": 900}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=tmp_path, env=environment, check=False, **options
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(made), done.stderr[-2000:]
    for step, (code, said) in zip(made, answers, strict=True):
        assert code == step.code, f"{step.what}\n{code}\n{said}"
