"""`glass tokenize`, `glass train` on weighted sources, and the picture of merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Theirs

from glasscluster.cli import main
from glasscluster.model.text.mixture import Mixture, Rows
from glasscluster.model.text.tasks import Choice, Text
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.strategies.serving.evaluation import row_of
from glasscluster.visualize.figures.merge_tree import merge_tree, merge_tree_figure
from glasscluster.visualize.figures.picture import plotly_figure


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


@pytest.mark.parametrize(
    ("specials", "said"),
    [
        (["a"], "spelled as an ordinary one"),
        (["\u0120"], "spelled as an ordinary one"),
        (["<s>", ""], "at least one character"),
        (["<s>", "<e>", "<s>"], "twice: ['<s>']"),
        (["\udcff"], "UTF-8"),
    ],
)
def test_special_tokens_that_no_file_can_hold_are_refused_before_one_is_written(capsys, specials, said):
    words = [word for special in specials for word in ("--special", special)]
    code, error = glass(capsys, "tokenize", "train", "a.txt", "--vocab", "280", *words, "--out", "t.json")
    assert (code, error["field"]) == (2, "special")
    assert said in error["message"]
    assert not Path("t.json").exists()
    with pytest.raises(ValueError, match="special token"):
        Tokenizer.train([b"a b"], 280, specials)


@pytest.mark.parametrize(
    "specials", [["<a>", "<a><b>", "<b>"], ["aa", "a a", "aaa"], [" ", "  ", "\n"], ["数", "数据"]]
)
def test_special_tokens_inside_each_other_are_found_as_tokenizers_finds_them(capsys, specials):
    words = [word for special in specials for word in ("--special", special)]
    code, _ = glass(capsys, "tokenize", "train", "b.txt", "--vocab", "280", *words, "--out", "t.json")
    assert code == 0
    text = "<a><b><a> aaaa a a  \n a<b> 数数据"
    said = glass(capsys, "tokenize", "encode", text, "--tokenizer", "t.json", "--allow", "all")[1]
    assert said["tokens"] == Theirs.from_file("t.json").encode(text).ids
    assert set(said["tokens"]) & set(Tokenizer.load("t.json").specials.values())


def test_a_strange_tokenizer_file_ends_with_2_in_every_command_that_takes_one(capsys):
    glass(capsys, "tokenize", "train", "a.txt", "--vocab", "280", "--out", "t.json")
    content = json.loads(Path("t.json").read_text())
    content["model"]["vocab"]["\x00"] = 280
    Path("t.json").write_text(json.dumps(content))
    shape = "--layers 1 --hidden 16 --heads 2 --seq 64 --vocab 512"
    for line in (
        "tokenize encode x",
        "tokenize decode 1",
        f"train --data a.txt --steps 1 {shape}",
        f"evaluate --task perplexity --items 2 {shape}",
    ):
        code, said = glass(capsys, *line.split(), "--tokenizer", "t.json")
        assert (code, said["field"]) == (2, "tokenizer"), line
        assert said["message"].count("tokenizer = ") == 1
        assert r"model.vocab['\x00'] = 280" in said["message"]


def test_numbers_that_a_file_puts_around_a_text_stand_around_documents_and_before_prompts(capsys):
    glass(capsys, "tokenize", "train", "a.txt", "--vocab", "280", "--out", "t.json", "--special", "<s>")
    content = json.loads(Path("t.json").read_text())
    begin = content["added_tokens"][0]["id"]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [begin], "tokens": ["<s>"]}},
    }
    Path("t.json").write_text(json.dumps(content))
    said = glass(capsys, "tokenize", "encode", "the cat", "--tokenizer", "t.json")[1]
    assert said["tokens"] == Theirs.from_file("t.json").encode("the cat").ids
    assert said["tokens"][0] == begin
    made = Tokenizer.load("t.json")
    rows = Rows(Mixture((("a.txt", 1.0),), "t.json", packed=True), 32)
    assert all(text[0] == begin and begin not in text[1:] for source in rows.sources for text in source.texts)
    choice = Choice(b"the", (b" cat", b" mat"), 0)
    assert row_of(choice, 0, made, 32)[0] == [begin, *made.encode("the"), *made.encode(" cat")]
    assert row_of(Text(b"the cat"), 0, made, 32) == (
        [begin, *made.encode("the cat")],
        len(made.encode("the cat")),
    )


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
    figure = plotly_figure(merge_tree_figure(tokenizer, [" that", "数据"], "zh"))
    assert [t.name for t in figure.data[1:]] == [
        "字节",
        "token 内部的合并及其名次",
        "token 及其最后一次合并的名次",
    ]
    assert len(figure.data[1].x) == 5 + 6


def test_nothing_is_learned_from_no_text(capsys, tmp_path):
    (tmp_path / "none.txt").write_text("")
    code, said = glass(capsys, "tokenize", "train", "none.txt", "--vocab", "300", "--out", "none.json")
    assert (code, said["field"], said["value"]) == (2, "files", "none.txt")
    assert not (tmp_path / "none.json").exists()
