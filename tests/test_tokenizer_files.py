"""Files of other people's tokenizers: the numbers that `tokenizers` makes of texts, or a refusal by key."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Theirs

from glasscluster.base.errors import InputError
from glasscluster.model.text.split_pattern import translated
from glasscluster.model.text.tokenizer import Tokenizer

ASSIGNED = [
    chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")
]
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
TEXTS = [
    "def f(x):\n    return x + 1 if x else 12345\n\n\nclass A:\n        pass\n" * 3,
    "The cat's hat isn't the mat; we'll see, they'd said IT'S 2024 café 数据并行 数据\t\r\n" * 4,
]


def pattern(text: str, behaviour: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(text), behaviour, invert)


def base(
    cuts: list[pre_tokenizers.PreTokenizer] | None = None,
    specials: list[str] | None = None,
    prefix: bool = False,
    **options: Any,
) -> Theirs:
    """A small tokenizer that learned TEXTS; `cuts` stand before ByteLevel, `specials` come first."""
    made = Theirs(models.BPE(**options))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=cuts is None)
    made.pre_tokenizer = level if cuts is None else pre_tokenizers.Sequence([*cuts, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=specials or [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def template(made: Theirs, single: str, *names: str) -> processors.TemplateProcessing:
    numbers = [(name, made.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, special_tokens=numbers)


def gpt_2() -> Theirs:
    made = base()
    made.add_special_tokens(["<|endoftext|>"])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def phi_2() -> Theirs:
    made = base()
    made.add_special_tokens(["<|endoftext|>"])
    made.add_tokens([AddedToken(" " * n, normalized=False) for n in range(8, 1, -1)])
    made.add_tokens([AddedToken("\t" * n, normalized=False) for n in range(3, 1, -1)])
    return made


def neox() -> Theirs:
    made = base(specials=["<|endoftext|>", "<|padding|>"])
    made.normalizer = normalizers.NFC()
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in range(6, 1, -1)])
    made.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return made


def bart() -> Theirs:
    made = base(specials=["<s>", "<pad>", "</s>", "<unk>"])
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def bert_frame() -> Theirs:
    made = base(prefix=True)
    made.add_special_tokens(["[CLS]", "[SEP]"])
    made.post_processor = processors.BertProcessing(
        ("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]"))
    )
    return made


def qwen_2() -> Theirs:
    made = base([pattern(QWEN_2)])
    made.normalizer = normalizers.NFC()
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens(
        [AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)]
    )
    return made


def llama_3() -> Theirs:
    made = base([pattern(LLAMA_3)], ignore_merges=True)
    made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            template(made, "<|begin_of_text|> $A", "<|begin_of_text|>"),
        ]
    )
    return made


def gpt_4o() -> Theirs:
    made = base([pattern(GPT_4O, "removed", True)], byte_fallback=True)
    made.add_special_tokens(["<|start|>", "<|end|>"])
    return made


def deepseek_3() -> Theirs:
    cuts = [pattern(r"\p{N}{1,3}"), pattern("[一-龥぀-ゟ゠-ヿ]+"), pattern(DEEPSEEK_3)]
    made = base(cuts, specials=["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    made.normalizer = normalizers.Sequence([])
    made.post_processor = template(made, "<｜begin▁of▁sentence｜> $A", "<｜begin▁of▁sentence｜>")
    return made


def starcoder() -> Theirs:
    made = base()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    made.add_special_tokens(["<fim_prefix>", "<fim_suffix>"])
    return made


def digits_and_words() -> Theirs:
    cuts = [pre_tokenizers.Digits(False), pre_tokenizers.Split("at", "isolated")]
    made = base(cuts, prefix=True)
    made.add_tokens([AddedToken("hat", single_word=True), AddedToken("Σ", rstrip=True, lstrip=True)])
    made.normalizer = normalizers.NFC()
    made.post_processor = template(made, "Σ $A hat hat", "hat", "Σ")
    return made


KINDS: dict[str, Callable[[], Theirs]] = {
    made.__name__: made
    for made in (
        gpt_2,
        phi_2,
        neox,
        bart,
        bert_frame,
        qwen_2,
        llama_3,
        gpt_4o,
        deepseek_3,
        starcoder,
        digits_and_words,
    )
}


@cache
def both(kind: str) -> tuple[Tokenizer, Theirs]:
    theirs = KINDS[kind]()
    return ours_of(theirs.to_str()), theirs


def ours_of(text: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "tokenizer.json"
        path.write_text(text, encoding="utf-8")
        return Tokenizer.load(path)


WORDS = [
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\r\n",
    "a",
    "the cat",
    " return",
    "IT'S",
    "'Ll",
    "12345",
    "é",
    "e\u0301",
]
WORDS += [
    "数据并行",
    "hat",
    "at",
    "_",
    "Ⅷ",
    "\u00a0",
    "\u3000",
    "x+=1;",
    "Σ",
    "<",
    "|>",
    "s>",
    "\u1e9b\u0323",
    "\u212b",
]


ANY = st.text(st.sampled_from(ASSIGNED), max_size=3)


def same(ours: Tokenizer, theirs: Theirs, text: str) -> None:
    """With special tokens in the text and without, with what the file puts around a text and without."""
    for allowed, hidden in (("all", False), ((), True)):
        theirs.encode_special_tokens = hidden
        assert ours.encode(text, allowed, whole=True) == theirs.encode(text).ids
        assert ours.encode(text, allowed) == theirs.encode(text, add_special_tokens=False).ids


# ---- what is done as `tokenizers` does it ------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_of_every_kind_gives_the_numbers_that_tokenizers_gives(kind, data):
    ours, theirs = both(kind)
    contents = [t.content for t in theirs.get_added_tokens_decoder().values()]
    parts = st.sampled_from([*WORDS, *contents, *contents]) | ANY
    same(ours, theirs, "".join(data.draw(st.lists(parts, max_size=9))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_written_as_it_was_read(kind):
    ours, theirs = both(kind)
    again = ours_of(json.dumps(ours.as_json()))
    assert again.as_json() == ours.as_json()
    written, read = (
        json.loads(Theirs.from_str(json.dumps(ours.as_json())).to_str()),
        json.loads(theirs.to_str()),
    )
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor"):
        assert written[part] == read[part]
    assert written["model"]["vocab"] == read["model"]["vocab"]
    text = "".join(WORDS) + "".join(t.content for t in ours.added.values())
    assert again.encode(text, "all", whole=True) == ours.encode(text, "all", whole=True)
    assert ours.size == theirs.get_vocab_size()


@pytest.mark.parametrize("kind", ["gpt_2", "phi_2", "llama_3", "gpt_4o", "deepseek_3", "starcoder"])
def test_what_changes_no_text_gives_it_back(kind):
    ours, theirs = both(kind)
    theirs.encode_special_tokens = False
    text = "".join(WORDS) + "".join(t.content for t in ours.added.values())
    numbers = ours.encode(text, "all")
    assert ours.decode(numbers) == text == theirs.decode(numbers, skip_special_tokens=False)
    assert ours.decode_bytes(ours.encode(b"\xff 1\xe4\xb8")) == b"\xff 1\xe4\xb8"


def test_runs_of_spaces_and_a_mask_are_found_as_phi_2_and_bart_find_them():
    ours, _ = both("phi_2")
    spaces = {t.content: n for n, t in ours.added.items()}
    assert ours.encode("    return") == [spaces["    "], *ours.encode("return")]
    ours, _ = both("bart")
    mask = ours.specials["<mask>"]
    assert ours.encode("a <mask>b", "all") == [*ours.encode("a"), mask, *ours.encode("b")]
    assert ours.encode("a", whole=True) == [0, *ours.encode("a"), 2]


FLAGS = st.fixed_dictionaries(
    {n: st.booleans() for n in ("single_word", "lstrip", "rstrip", "normalized", "special")}
)
CONTENTS = st.text("ab <>é\u0301e_", min_size=1, max_size=3)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tokens=st.lists(st.tuples(CONTENTS, FLAGS), max_size=5, unique_by=lambda t: t[0]),
    text=st.text("ab <>é\u0301e_\n", max_size=14),
    form=st.booleans(),
)
@example([("<a>", {"lstrip": True, "rstrip": True}), ("  ", {})], "b  <a>   <a>b", False)
@example([(" ", {"rstrip": True}), ("  ", {"special": True})], "a      b", False)
@example([("a", {"single_word": True}), ("aa", {"special": True})], "aa a aab", False)
def test_any_added_tokens_are_found_as_tokenizers_finds_them(tokens, text, form):
    theirs = copy.deepcopy(both("gpt_2")[1])
    theirs.normalizer = normalizers.NFC() if form else normalizers.Sequence([])
    for content, flags in tokens:
        token = AddedToken(content, **flags)
        if flags.get("special"):
            theirs.add_special_tokens([token])
        else:
            theirs.add_tokens([token])
    if "é" in [content for content, _ in tokens]:  # a letter of the vocabulary, which stands for a byte
        with pytest.raises(InputError, match="would not be the bytes"):
            ours_of(theirs.to_str())
        return
    for hidden in (False, True):
        theirs.encode_special_tokens = hidden
        assume(not panics(lambda: theirs.encode(text)))
    same(ours_of(theirs.to_str()), theirs, text)


def panics(call: Callable[[], Any]) -> bool:
    """Whether `tokenizers` gives up: a token before took more white space than where this one ends."""
    try:
        call()
    except BaseException as problem:
        if "bad split" not in str(problem):
            raise
        return True
    return False


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.soak)])
def test_every_character_beside_a_single_word_is_judged_as_tokenizers_judges_it(every):
    theirs = copy.deepcopy(both("gpt_2")[1])
    theirs.add_tokens([AddedToken("<w>", single_word=True, normalized=False)])
    theirs.add_tokens([AddedToken("<s>", lstrip=True, rstrip=True, normalized=False)])
    chosen = {
        *ASSIGNED[::every],
        *(c for c in ASSIGNED if unicodedata.category(c)[0] == "Z"),
        *"\u200c\u200dⒶ🅰_",
    }
    text = "".join(f"{c}<w> <w>{c};<s>{c}<s>" for c in sorted(chosen))
    same(ours_of(theirs.to_str()), theirs, text)


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("text", [GPT_2, LLAMA_3, QWEN_2, GPT_4O, DEEPSEEK_3, r"\p{N}{1,3}", r"\P{Ll}\S?"])
def test_every_character_is_cut_by_a_pattern_as_tokenizers_cuts_it(text, every):
    long = "".join(f"a{c}1{c} {c}b,{c}'{c}'s  {c}'{c}{c}" for c in ASSIGNED[::every])
    theirs = [piece for piece, _ in pattern(text, "removed", True).pre_tokenize_str(long)]
    assert translated(text).findall(long) == theirs


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(
            [*r"ab|()?*+-1.^$", "(?:", "(?i:", "(?!", "(?=", "[^", "[", "]", r"\s", r"\S", r"\p{L}"]
        )
        | st.sampled_from([r"\P{Nd}", r"\]", r"\w", r"\n", "{2}", "{1,2}", "&&", " ", "+?", "++", "ſ", "K"]),
        min_size=1,
        max_size=8,
    ).map("".join),
    sample=st.text("abAB1K \nſ-]", max_size=12),
)
@example("(?i:ab|k)", "aBkK")
@example(r"(?:a|\s)+?b", "a  bab")
@example(r"(a|ab)(?!b)", "aabab")
def test_a_pattern_that_is_read_cuts_as_the_one_of_tokenizers(text, sample):
    try:
        ours = translated(text)
    except ValueError:
        return
    theirs = [piece for piece, _ in pattern(text, "removed", True).pre_tokenize_str(sample)]
    assert [piece for piece in ours.findall(sample) if piece] == theirs


SLOW = {  # on a text that does not match, all but the first few in more time than there is
    "nested": r"(a+)+b",
    "letters shared out": r"(?:a|aa)+b",
    "two repetitions": r"a*a*b",
    "in a look ahead": r"a*(?=a*b)c",
    "a fixed number": r"(?:a|a){30}",
    "written out": "a?" * 30 + "a" * 30 + "b",
    "bounded": r"(?:a{1,2}){1,40}b",
    "before a look ahead": r"(?:a+)+(?!a)",
    "lazy": r"(?:a+?)+?b",
}


@pytest.mark.parametrize("case", SLOW)
def test_an_expression_that_could_be_tried_for_ever_is_refused_by_its_key(case, tmp_path):
    content = json.loads(both("gpt_2")[1].to_str())
    split = {"type": "Split", "pattern": {"Regex": SLOW[case]}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}],
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        Tokenizer.load(tmp_path / "t.json")
    assert "pre_tokenizer.pretokenizers[0].pattern.Regex" in str(error.value)
    assert "can take more than 1,000,000 steps" in str(error.value)


QUICK = [GPT_2, LLAMA_3, QWEN_2, GPT_4O, DEEPSEEK_3, r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", r"(?:ab|cd)+"]
QUICK += [
    r"[0-9]+(?:[.,][0-9]+)*",
    r"(?:[a-z]|[0-9])+_",
    r"[a-z]*[0-9]*_",
    r"(?:a++)+b",
    r"a++a++b",
    r"(?:a|ab)+",
]
TRIED = """
import random, sys, time
from glasscluster.model.text.split_pattern import translated
draw, longest, read = random.Random(0), 0.0, 0
parts = ["a", "b", "[ab]", "(?:", "(?=", ")", "|", "*", "+", "?", "{2}", "{1,3}", "{2,}", "++"]
for _ in range(int(sys.argv[1])):
    text = "".join(draw.choice(parts) for _ in range(draw.randint(2, 14))) + draw.choice(["", "c", "(?!a)"])
    text += ")" * max(0, text.count("(") - text.count(")"))
    try:
        ours = translated(text)
    except ValueError:
        continue
    read += 1
    for letters in ("a", "ab", "b", "aab"):
        begun = time.process_time()
        ours.findall(letters * (300 // len(letters)))
        longest = max(longest, time.process_time() - begun)
print(read, longest)
"""


@pytest.mark.parametrize("text", QUICK)
def test_an_expression_that_takes_a_while_at_most_is_read(text):
    ours = translated(text)
    for letters in ("a", "0", " ", "\r\n", "ab", "A", ".", "aaaaab"):
        ours.findall(letters * 500)


def test_random_expressions_that_are_read_come_to_an_end():
    """In a process of their own: what hangs would hang the test."""
    words = [sys.executable, "-c", TRIED, "20000"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    read, longest = done.stdout.split()
    assert int(read) > 500
    assert float(longest) < 5


# ---- what is refused ---------------------------------------------------------------------------------------
def changed(path: str, value: Any) -> Callable[[dict], None]:
    """What sets a value, "a.0.b" being the b of the first of a."""

    def change(content: Any) -> None:
        *way, last = path.split("/")
        for name in way:
            content = content[int(name) if isinstance(content, list) else name]
        content[int(last) if isinstance(content, list) else last] = value

    return change


SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
REFUSED = [
    ("normalizer", {"type": "Lowercase"}, "normalizer.type = 'Lowercase'"),
    (
        "normalizer",
        {"type": "Sequence", "normalizers": [{"type": "NFD"}]},
        "normalizer.normalizers[0].type = 'NFD'",
    ),
    ("normalizer", [], "normalizer = []"),
    ("pre_tokenizer", None, "pre_tokenizer = None"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}, "pre_tokenizer = "),
    (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [LEVEL, SPLIT]},
        "pretokenizers[0].type = 'ByteLevel'",
    ),
    ("pre_tokenizer", {"type": "Metaspace"}, "pre_tokenizer"),
    ("pre_tokenizer/add_prefix_space", 1, "pre_tokenizer.add_prefix_space = 1"),
    ("post_processor", {"type": "Unknown"}, "post_processor.type = 'Unknown'"),
    (
        "post_processor",
        {"type": "BertProcessing", "sep": ["x", 999], "cls": ["y", 1]},
        "post_processor.sep[1] = 999",
    ),
    ("post_processor", {"type": "TemplateProcessing", "single": []}, "post_processor.single"),
    (
        "post_processor",
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B"}}]},
        "post_processor.single[0].Sequence.id = 'B'",
    ),
    (
        "post_processor",
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}},
        "post_processor.special_tokens.x",
    ),
    (
        "post_processor",
        {
            "type": "Sequence",
            "processors": [{"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 0]}] * 2,
        },
        "two steps add tokens",
    ),
    ("truncation", {"max_length": 5}, "truncation = "),
    ("padding", {"strategy": "BatchLongest"}, "padding = "),
    ("decoder", {"type": "WordPiece"}, "decoder.type = 'WordPiece'"),
    ("model/type", "Unigram", "model.type = 'Unigram'"),
    ("model/dropout", 0.1, "model.dropout = 0.1"),
    ("model/dropout", float("nan"), "model.dropout = nan"),
    ("model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"),
    ("model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"),
    ("model/ignore_merges", "yes", "model.ignore_merges = 'yes'"),
    ("model/other", 1, "model.other = 1"),
    ("other", {"a": 1}, "other = "),
    ("model", None, "model = None"),
    ("model/vocab", [], "model.vocab = []"),
    ("model/vocab", {}, "all 256 single bytes"),
    ("model/vocab/\x00", 500, r"model.vocab['\x00'] = 500"),
    ("model/vocab/\ud800", 500, r"model.vocab['\ud800'] = 500"),
    ("model/vocab/", 500, "model.vocab[''] = 500"),
    ("model/vocab/a", -1, "model.vocab['a'] = -1"),
    ("model/vocab/a", 1 << 40, "model.vocab['a'] = 1099511627776"),
    ("model/vocab/a", True, "model.vocab['a'] = True"),
    ("model/vocab/a", 2.0, "model.vocab['a'] = 2.0"),
    ("model/vocab/a", float("nan"), "model.vocab['a'] = nan"),
    ("model/vocab/a", 3, "= 3: another token has this number"),
    ("model/merges", None, "model.merges = None"),
    ("model/merges/3", ["a", "zzz"], "model.merges[3] = ['a', 'zzz']"),
    ("model/merges/3", "a b c", "model.merges[3] = 'a b c'"),
    ("model/merges/3", ["a", 1], "model.merges[3] = ['a', 1]"),
    ("model/merges/3", [["a"], "b"], "model.merges[3]"),
    ("added_tokens", {}, "added_tokens = {}"),
    ("added_tokens/0/id", 400, "added_tokens[0].id = 400"),
    ("added_tokens/0/id", -1, "added_tokens[0].id = -1"),
    ("added_tokens/0/id", None, "added_tokens[0].id = None"),
    ("added_tokens/0/content", "", "added_tokens[0].content = ''"),
    ("added_tokens/0/content", "\ud800", r"added_tokens[0].content = '\ud800'"),
    ("added_tokens/0/content", 5, "added_tokens[0].content = 5"),
    ("added_tokens/0/special", None, "added_tokens[0].special = None"),
    ("added_tokens/0/content", "a", "added_tokens[0].id = "),
    ("added_tokens/0", 7, "added_tokens[0] = 7"),
] + [
    (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [{**SPLIT, **other}, LEVEL]},
        f"pretokenizers[0].{said}",
    )
    for other, said in [
        ({"behavior": "MergedWithNext"}, "behavior = 'MergedWithNext'"),
        ({"behavior": "Removed"}, "invert = False"),
        ({"pattern": {"Regex": r"\w+"}}, r"pattern.Regex = '\\w+'"),
        ({"pattern": {"Regex": "a*"}}, "pattern.Regex = 'a*'"),
        ({"pattern": {"Regex": "("}}, "pattern.Regex = '('"),
        ({"pattern": {"Regex": "(" * 5000}}, "pattern.Regex = "),
        ({"pattern": {"String": ""}}, "pattern.String = ''"),
        ({"pattern": "a"}, "pattern = 'a'"),
        ({"type": "Punctuation"}, "type = 'Punctuation'"),
    ]
]


@pytest.mark.parametrize(
    ("path", "value", "said"), REFUSED, ids=[f"{i} {r[2][:40]}" for i, r in enumerate(REFUSED)]
)
def test_what_is_not_done_is_refused_with_its_key_and_value(path, value, said):
    content = json.loads(both("gpt_2")[1].to_str())
    changed(path, value)(content)
    with pytest.raises(InputError) as error:
        ours_of(json.dumps(content))
    assert error.value.field == "tokenizer"
    assert said in error.value.message
    assert len(error.value.message) < 1000


def test_an_added_token_that_is_there_twice_is_refused():
    content = json.loads(both("gpt_2")[1].to_str())
    content["added_tokens"] *= 2
    with pytest.raises(InputError, match=r"added_tokens\[1\]\.content = '<\|endoftext\|>'"):
        ours_of(json.dumps(content))


# ---- any change of a good file -----------------------------------------------------------------------------
STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1 << 40,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\x00",
    "\ud800",
]
STRANGE += [
    "é",
    " ",
    "<s>",
    "ByteLevel",
    "Sequence",
    [],
    {},
    [[]],
    {"type": "x"},
    ["a", "b"],
    [1],
    "a b",
    300,
    255,
]


def mutate(content: Any, draw: random.Random) -> None:
    """Change one thing somewhere: a value, a key, an entry less or once more."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            break
        key = draw.choice(keys)
        if isinstance(content[key], (dict, list)) and content[key] and draw.random() < 0.8:
            content = content[key]
            continue
        what = draw.randrange(4)
        if what == 0:
            del content[key]
        elif what == 1 and isinstance(content, dict):
            content[draw.choice(["\x00", "é", "x", "type", "zz", ""])] = content[key]
        elif what == 1:
            content.insert(draw.randrange(len(content) + 1), content[key])
        else:
            content[key] = copy.deepcopy(draw.choice(STRANGE))
        break


def read_by_them(text: str) -> Theirs | None:
    try:
        return Theirs.from_str(text)
    except Exception:  # they raise nothing narrower
        return None


@pytest.mark.parametrize("kind", ["bart", "llama_3", "digits_and_words"])
def test_a_changed_file_is_refused_by_name_or_means_what_tokenizers_reads_in_it(kind):
    read, messages, text = 0, [], "".join(WORDS) + "".join(t.content for t in both(kind)[0].added.values())
    for seed in range(100):
        draw, content = random.Random(seed), json.loads(both(kind)[1].to_str())
        for _ in range(draw.choice([1, 1, 2, 3])):
            mutate(content, draw)
        try:
            ours = ours_of(json.dumps(content))
        except InputError as error:
            messages.append(error.as_dict() | {"exit": error.exit_code})
            continue
        if (theirs := read_by_them(json.dumps(content))) is None:
            continue  # for something that changes no token, as a flag of the decoder
        same(ours, theirs, text)
        read += 1
    assert read >= 8
    assert {(m["field"], m["exit"]) for m in messages} == {("tokenizer", 2)}
    assert max(len(m["message"]) for m in messages) < 1000


# ---- size --------------------------------------------------------------------------------------------------
def test_the_time_for_a_text_grows_with_its_length_also_beside_tokens_that_take_spaces():
    theirs = copy.deepcopy(both("gpt_2")[1])
    theirs.add_tokens([AddedToken("<s>", lstrip=True, rstrip=True, normalized=False)])
    ours = ours_of(theirs.to_str())

    def seconds(times: int) -> float:
        begun = time.perf_counter()
        assert len(ours.encode("the cat  <s> " * times)) >= 2 * times
        return time.perf_counter() - begun

    short, long = (min(seconds(times) for _ in range(3)) for times in (5_000, 40_000))
    assert long < 30 * short  # 8 times as long; a copy of the text at each token makes it 64
