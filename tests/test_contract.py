"""docs/contract.md is what the commands do: options, keys of their JSON, and what they do not have yet."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from glasscluster.cli import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```keys\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [block.strip().split("\n", 1) for block in FENCED.findall(TEXT)]
NOT_YET = TEXT[TEXT.index("## Not yet") :]
# the others end with 0
EXITS = {"glass train --zero 9 --json": 2, "glass doctor --model config.json --json": 1}
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "attention_bias": True, "mystery": 3}


def _maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_contract", ROOT / "docs" / "make_contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _maker()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run, one after the other: `replay` reads what `train` wrote."""
    made = tmp_path_factory.mktemp("contract")
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "rows.csv").write_text("dp,zero\n2,1\n3,9\n")
    (made / "text.txt").write_text("the cat the cat the cat")
    return made


def glass(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return int(end.value.code or 0), json.loads(capsys.readouterr().out)


def keys(value: Any, path: str = "") -> set[str]:
    """Every path to a value: `a.b` in an object, `a[]` in a list of objects; what is empty is a value."""
    if isinstance(value, dict) and value:
        return {found for k, v in value.items() for found in keys(v, f"{path}.{k}" if path else k)}
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return {found for v in value for found in keys(v, f"{path}[]")}
    return {path}


def test_the_lists_of_options_are_those_of_the_commands():
    assert maker.page() == TEXT, "docs/contract.md is old: python docs/make_contract.py"


def test_every_option_of_every_command_is_listed_with_its_default():
    lists = TEXT[TEXT.index(maker.BEGIN) : TEXT.index(maker.END)]
    for name, command in maker.commands().items():
        assert f"### `glass {name}`\n" in lists
        for option in command.params:
            if "--help" not in option.opts:
                assert maker.line(option) in lists, (name, option.name)


@pytest.mark.parametrize("block", BLOCKS, ids=[first for first, _ in BLOCKS])
def test_a_command_prints_the_keys_that_are_listed_and_no_others(block, folder, monkeypatch, capsys):
    call, listed = block[0].removeprefix("$ "), block[1].split()
    monkeypatch.chdir(folder)
    if "replay one" in call and not Path("one").is_dir():
        glass(capsys, *next(shlex.split(c)[2:] for c, _ in BLOCKS if "--out one" in c))
    code, said = glass(capsys, *shlex.split(call)[1:])
    assert code == EXITS.get(call, 0)
    assert re.search(rf"\b{re.escape(said['schema'])}", TEXT), "its schema is a heading"
    whole = [k.removesuffix("{}") for k in listed if k.endswith("{}")]
    found = {k for k in keys(said) if not any(k == w or k.startswith((f"{w}.", f"{w}[]")) for w in whole)}
    found |= {w for w in whole if any(k == w or k.startswith((f"{w}.", f"{w}[]")) for k in keys(said))}
    may = {k.removesuffix("?") for k in listed if k.endswith("?")}
    must = {k.removesuffix("{}") for k in listed if not k.endswith("?")}
    assert must <= found, f"listed and not there: {sorted(must - found)}"
    assert found <= must | may, f"there and not listed: {sorted(found - must - may)}"


def test_every_command_has_its_keys_listed():
    called = {" ".join(shlex.split(call)[2:4]) for call, _ in BLOCKS}
    for name in maker.commands():
        assert any(words == name or words.split()[0] == name for words in called), name


def test_what_is_not_yet_is_not_there():
    words = NOT_YET[NOT_YET.index("### Commands") : NOT_YET.index("### Options")]
    planned = {w.split()[0] for w in re.findall(r"(?:^- |, |, )`([a-z-]+[^`]*)`", words, re.MULTILINE)}
    assert {"watch", "envelope", "calibrate", "start", "check"} <= planned
    there = maker.commands()
    assert not planned & {name.split()[0] for name in there}, "it works now: move it out of `Not yet`"
    lists = NOT_YET[NOT_YET.index("### Options") : NOT_YET.index("### Meanings")].replace("\n  ", " ")
    for command, options in re.findall(r"- `([a-z ]+)`: (.*)", lists):
        here = {flag for o in there[command].params for flag in (*o.opts, *o.secondary_opts)}
        named = set(re.findall(r"`(--[a-z-]+)`", options))
        assert named, command
        assert not named & here, f"glass {command} has it now: move it out of `Not yet`"


def test_the_code_cites_the_contract_where_it_stands():
    old = re.compile(r"\bCONTRACT(?:\.md|'s|\b)")
    files = [*(ROOT / "glasscluster").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert not [p.name for p in files if old.search(p.read_text(encoding="utf-8"))]
