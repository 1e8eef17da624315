"""The tokenizer against Hugging Face's `tokenizers`: the same cuts, merges and numbers; and what ours adds:
any bytes come back.
"""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs
from tokenizers import models, pre_tokenizers, trainers

from glasscluster.model.text.bpe import count_pieces, learn
from glasscluster.model.text.data import corpus
from glasscluster.model.text.pre_tokens import as_bytes, pre_tokens, spelled, unspelled
from glasscluster.model.text.tokenizer import END_OF_TEXT, Tokenizer
from glasscluster.visualize import words

SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)
ASSIGNED = [
    chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")
]
ENGLISH = bytes(corpus()[:400_000]).decode(errors="ignore")
CHINESE = "\n".join(said.zh for said in words.CATALOGUE.values())
BOTH = [ENGLISH[:150_000], CHINESE]


def their_cut(text: str) -> list[str]:
    return [unspelled(word).decode() for word, _ in SPLIT.pre_tokenize_str(text)]


def their_training(texts: list[str], vocab: int) -> Theirs:
    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = SPLIT
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def merges_of(theirs: Theirs) -> list[tuple[str, str]]:
    return [tuple(m) for m in json.loads(theirs.to_str())["model"]["merges"]]


def spelled_merges(ours: Tokenizer) -> list[tuple[str, str]]:
    return [(spelled(ours.tokens[a]), spelled(ours.tokens[b])) for a, b in ours.merges]


# ---- cuts --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.soak)])
def test_every_character_that_this_python_knows_is_cut_as_tokenizers_cuts_it(every):
    text = "".join(f"a{c}1{c} {c}b,{c}{c}'s  {c}" for c in ASSIGNED[::every])
    assert pre_tokens(text.encode()) == their_cut(text)


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        st.sampled_from("ab'strevdml 1\n\t\x1c\x85\u3000中²Ⅷé́-_") | st.sampled_from(ASSIGNED), max_size=40
    )
)
def test_random_text_is_cut_as_tokenizers_cuts_it(text):
    assert pre_tokens(text.encode()) == their_cut(text)


def test_bytes_that_are_no_character_lie_with_punctuation():
    assert [as_bytes(p) for p in pre_tokens(b"ab\xff\xfe!c \x80 1")] == [
        b"ab",
        b"\xff\xfe!",
        b"c",
        b" \x80",
        b" 1",
    ]


# ---- merges ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("texts", "vocab"),
    [([ENGLISH], 1256), ([CHINESE], 1500), (BOTH, 900)],
    ids=["English code", "Chinese", "both"],
)
def test_merges_and_numbers_equal_those_of_tokenizers_on_the_same_text(texts, vocab):
    ours, theirs = Tokenizer.train((t.encode() for t in texts), vocab), their_training(texts, vocab)
    assert spelled_merges(ours) == merges_of(theirs)
    assert {spelled(token): number for number, token in ours.tokens.items()} == theirs.get_vocab()
    for text in (*BOTH, "naïve 数据并行 x_{i}  = 1e-3\n\n\t'll"):
        assert ours.encode(text) == theirs.encode(text).ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("aab ", max_size=30), max_size=8), st.integers(257, 300))
@example(["aaaa aaaaaaa aaa"], 270)
def test_ties_and_overlaps_are_broken_as_tokenizers_breaks_them(texts, vocab):
    ours, theirs = Tokenizer.train((t.encode() for t in texts), vocab), their_training(texts, vocab)
    assert spelled_merges(ours) == merges_of(theirs)
    assert ours.size == 256 + len(ours.merges)
    assert all(ours.encode(t) == theirs.encode(t).ids for t in [*texts, "aabaaab baaaaab"])


def test_another_tie_rule_would_be_noticed(monkeypatch):
    from glasscluster.model.text import bpe

    monkeypatch.setattr(bpe, "heapify", lambda heap: heap.sort(key=lambda e: (e[0], -e[1][0], e[1][1])))
    assert spelled_merges(Tokenizer.train([b"ab cd ab cd"], 258)) != merges_of(
        their_training(["ab cd ab cd"], 258)
    )


def test_a_merge_happened_as_often_as_was_counted():
    """By hand (1508.07909, algorithm 1): low 5, lower 2, newest 6, widest 3."""
    found = learn({b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 256 + 4)
    assert [found.tokens[-4:], found.counts] == [[b"es", b"est", b"lo", b"low"], [9, 9, 7, 7]]
    with pytest.raises(ValueError, match="no room"):
        learn(count_pieces([b"abc"]), 255)


# ---- encoding ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train((t.encode() for t in BOTH), 700, [END_OF_TEXT, "<|user|>"])


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
@example(data=b"\xed\xb2\x80\xe4\xb8<|endoftext|>")
def test_any_bytes_come_back(ours, data):
    for allowed in ((), "all"):
        assert ours.decode_bytes(ours.encode(data, allowed)) == data


def test_a_long_piece_is_merged_as_tokenizers_merges_it(ours, tmp_path):
    ours.save(tmp_path / "tokenizer.json")
    text = "selfreturn" * 3000
    assert ours.encode(text) == Theirs.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids


def test_a_special_token_is_made_only_where_it_is_allowed(ours):
    end, user = ours.specials[END_OF_TEXT], ours.specials["<|user|>"]
    assert (end, user, ours.size) == (698, 699, 700)
    text = f"a{END_OF_TEXT}<|user|>b"
    assert not {end, user} & set(ours.encode(text))
    assert ours.encode(text, [END_OF_TEXT]) == [*ours.encode("a"), end, *ours.encode("<|user|>b")]
    assert ours.encode(text, "all") == [*ours.encode("a"), end, user, *ours.encode("b")]
    with pytest.raises(KeyError):
        ours.encode("a", ["<|other|>"])


# ---- files -------------------------------------------------------------------------------------------------
def test_a_saved_file_means_the_same_to_tokenizers_and_to_us(ours, tmp_path):
    ours.save(tmp_path / "tokenizer.json")
    theirs, again = (
        Theirs.from_file(str(tmp_path / "tokenizer.json")),
        Tokenizer.load(tmp_path / "tokenizer.json"),
    )
    text = f"def f(x):\n    return '数据'{END_OF_TEXT}<|user|>  \n"
    assert again.encode(text, "all") == ours.encode(text, "all") == theirs.encode(text).ids
    assert (
        theirs.decode(theirs.encode(text).ids, skip_special_tokens=False)
        == text
        == again.decode(again.encode(text, "all"))
    )
    theirs.save(str(tmp_path / "theirs.json"))
    assert Tokenizer.load(tmp_path / "theirs.json").as_json() == again.as_json()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.binary(max_size=80) | st.sampled_from(["aaabbb ab ab", "数据 数据"]).map(str.encode), max_size=3
    ),
    vocab=st.integers(262, 280),
    specials=st.lists(st.text(min_size=1, max_size=4), max_size=4, unique=True),
)
@example(texts=[b"ab ab ab"], vocab=262, specials=["ab"])
@example(texts=[b"ab ab ab"], vocab=262, specials=["\u0120"])
def test_a_tokenizer_is_read_back_as_it_was_saved_or_was_none(tmp_path, texts, vocab, specials):
    ordinary = {spelled(token) for token in Tokenizer.train(texts, vocab - len(specials)).tokens.values()}
    if ordinary & set(specials):
        with pytest.raises(ValueError, match="spelled as an ordinary"):
            Tokenizer.train(texts, vocab, specials)
        return
    made = Tokenizer.train(texts, vocab, specials)
    made.save(tmp_path / "tokenizer.json")
    back = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (back.tokens, back.merges, back.specials) == (made.tokens, made.merges, made.specials)
    text = b" ".join(texts) + "".join(specials).encode()
    assert back.encode(text, "all") == made.encode(text, "all")
    assert back.decode_bytes(back.encode(text, "all")) == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer.type"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "no byte-level"),
    ],
)
def test_a_file_that_asks_for_something_else_is_refused(ours, tmp_path, change, said):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**ours.as_json(), **change}))
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(path)
    broken = ours.as_json()
    broken["model"]["vocab"] = {word: n for word, n in broken["model"]["vocab"].items() if n != 690}
    path.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=r"no byte-level|no token"):
        Tokenizer.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no byte-level"):
        Tokenizer.load(path)
