"""`glass tokenize`, `glass train` on weighted sources, and the picture of merges."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Theirs

from glasscluster.cli import main
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.visualize.figures.merge_tree import merge_tree, merge_tree_figure


def glass(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    """Exit code and the JSON object."""
    with pytest.raises(SystemExit) as end:
        main([*words, "--json"])
    return int(end.value.code or 0), json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(
        "the cat sat on the mat, the hat on the cat\n" * 20 + "<|endoftext|>another document\n" * 9
    )
    (tmp_path / "b.txt").write_text("数据并行与张量并行\n" * 40)


def test_a_tokenizer_is_trained_and_used_from_the_command_line(capsys):
    code, made = glass(capsys, "tokenize", "train", "a.txt", "b.txt", "--vocab", "300", "--out", "t.json")
    assert (code, made["schema"], made["vocab"], made["merges"], made["documents"]) == (
        0,
        "glass.tokenize-train/1",
        300,
        43,
        11,
    )
    text = "the cat 数据<|endoftext|>"
    code, said = glass(capsys, "tokenize", "encode", text, "--tokenizer", "t.json", "--allow", "all")
    assert (code, said["tokens"]) == (0, Theirs.from_file("t.json").encode(text).ids)
    assert said["bytes_per_token"] == len(text.encode()) / len(said["tokens"])
    code, back = glass(capsys, "tokenize", "decode", *map(str, said["tokens"]), "--tokenizer", "t.json")
    assert (code, back["text"]) == (0, text)
    assert bytes.fromhex(back["bytes_hex"]) == text.encode()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("tokenize train nothing.txt", "files"),
        ("tokenize train a.txt --vocab 100", "vocab"),
        ("tokenize train a.txt --vocab 280 --special a", "special"),
        ("tokenize encode x --tokenizer none.json", "tokenizer"),
        ("tokenize encode x --tokenizer a.txt", "tokenizer"),
        ("tokenize train a.txt --vocab many", "vocab"),
        ("train --data a.txt:0 --steps 1", "data"),
        ("train --data a.txt --data none.txt --steps 1", "data"),
        ("train --data b.txt:1 --seq 5000 --steps 1", "data"),
        ("train --data a.txt --tokenizer none.json --steps 1", "tokenizer"),
        ("train --data a.txt --pack --attention unfused --steps 1", "attention"),
    ],
)
def test_a_mistake_is_named_and_ends_with_2(capsys, words, field):
    code, said = glass(capsys, *words.split())
    assert (code, said["field"]) == (2, field)


def test_a_vocabulary_without_room_for_the_tokenizer_is_refused_with_the_right_size(capsys):
    glass(capsys, "tokenize", "train", "a.txt", "--vocab", "280", "--out", "t.json")
    code, said = glass(capsys, "train", "--data", "a.txt", "--tokenizer", "t.json", "--steps", "1")
    assert (code, said["field"], said["nearest"]) == (2, "vocab", 280)


def test_glass_train_packs_weighted_sources_and_equals_one_device(capsys):
    glass(capsys, "tokenize", "train", "a.txt", "b.txt", "--vocab", "280", "--out", "t.json")
    layout = "--dp 2 --layers 1 --hidden 16 --heads 2 --seq 32 --vocab 280 --steps 2 --backend threads"
    layout = f"{layout} --out run".split()
    code, said = glass(
        capsys,
        "train",
        *layout,
        "--data",
        "a.txt:0.7",
        "--data",
        "b.txt:0.3",
        "--tokenizer",
        "t.json",
        "--pack",
    )
    assert (code, said["checked_steps"]) == (0, 2)
    assert said["max_rel_grad_diff"] < 1e-10
    a, b = said["data"]["sources"]
    assert (said["data"]["rows_read"], a["weight_fraction"], b["weight_fraction"]) == (8, 0.7, 0.3)
    assert a["epochs"] * a["rows"] + b["epochs"] * b["rows"] == pytest.approx(8)
    assert a["filling_fraction"] == pytest.approx(1 - a["tokens"] / (32 * a["rows"]))


# ---- the picture -------------------------------------------------------------------------------------------
def test_a_merge_tree_ends_in_the_tokens_of_the_encoding_and_ranks_grow_upwards():
    tokenizer = Tokenizer.train([b"the cat sat on the mat; that hat " * 9, "数据并行数据".encode()], 290)
    for piece in (b" that", "数据并".encode(), b"zzz"):
        roots = merge_tree(tokenizer, piece)
        assert [tokenizer.numbers[piece[r.start : r.stop]] for r in roots] == tokenizer.encode_piece(piece)[0]
        nodes = [n for r in roots for n in r.all()]
        assert sorted(n.start for n in nodes if not n.children) == list(range(len(piece)))
        for node in nodes:
            for child in node.children:
                assert child.rank is None or (node.rank is not None and child.rank < node.rank)
            if node.children:
                a, b = (tokenizer.numbers[piece[c.start : c.stop]] for c in node.children)
                assert tokenizer.merges[node.rank] == (a, b)
    figure = merge_tree_figure(tokenizer, [" that", "数据"], "zh")
    assert [t.name for t in figure.data[1:]] == [
        "字节",
        "token 内部的合并及其名次",
        "token 及其最后一次合并的名次",
    ]
    assert len(figure.data[1].x) == 5 + 6
