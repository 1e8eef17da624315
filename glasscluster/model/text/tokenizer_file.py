"""Hugging Face's tokenizer.json: what a file asks for is done as `tokenizers` does it, or refused by its key.

    normalizer       NFC, or none                                                    Qwen2, GPT-NeoX
    pre_tokenizer    ByteLevel, or Split and Digits before it                        GPT-2; Llama 3
    model            BPE on bytes, with ignore_merges                                Llama 3
    added_tokens     special or not, single_word, lstrip, rstrip, normalized         BART, Phi-2
    post_processor   numbers before and after a text                                 RoBERTa, Llama 3

Everything else would give other tokens without a word: `Place.refuse` names the file, the key, the value.

But: no truncation, no padding. `byte_fallback`, `unk_token` and `fuse_unk` change nothing, since every byte
is a token. A number in the file must be the one that `tokenizers` gives the token: it counts added ones
itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json
from glasscluster.base.text import shown
from glasscluster.model.text.added_tokens import AddedToken
from glasscluster.model.text.pre_tokens import rule, unspelled
from glasscluster.model.text.split_pattern import translated
from glasscluster.model.text.tokenizer_rules import BYTE_LEVEL, Cut, Rules

MOST_TOKENS = 1 << 24  # rows of a model's embedding that a number may ask for
MODEL = (
    "type",
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "vocab",
    "merges",
)
FILE = (
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
)


class Content(NamedTuple):
    """The content of a file, in the order of `Tokenizer`'s arguments."""

    tokens: dict[int, bytes]
    merges: list[tuple[int, int]]
    added: list[AddedToken]
    rules: Rules


# ---- a value and its key -----------------------------------------------------------------------------------
class Place:
    """A value in a file, with the key that leads to it. Methods that expect a type refuse any other."""

    def __init__(self, file: str, key: str, value: Any) -> None:
        self.file, self.key, self.value = file, key, value

    def refuse(self, rule: str) -> NoReturn:
        """Raise InputError with the file, the key and the value."""
        said = f"{self.key} = {shown(repr(self.value))}: " if self.key else ""
        raise InputError("tokenizer", shown(self.file), f"is no byte-level tokenizer.json: {said}{rule}")

    def get(self, key: str) -> Place:
        """What an object has by a name; None where it has nothing."""
        if not isinstance(self.value, dict):
            self.refuse("must be an object")
        return Place(self.file, f"{self.key}.{key}" if self.key else key, self.value.get(key))

    def each(self) -> Iterator[Place]:
        """The values of a list."""
        if not isinstance(self.value, list):
            self.refuse("must be a list")
        for i, value in enumerate(self.value):
            yield Place(self.file, f"{self.key}[{i}]", value)

    def object(self) -> dict[str, Any]:
        """An object."""
        return self.value if isinstance(self.value, dict) else self.refuse("must be an object")

    def text(self) -> str:
        """A text that UTF-8 can spell."""
        if not isinstance(self.value, str) or not is_utf_8(self.value):
            self.refuse("must be a text in Unicode")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        return self.value if isinstance(self.value, bool) else self.refuse("must be true or false")

    def number(self) -> int:
        """The number of a token."""
        if type(self.value) is not int or not 0 <= self.value < MOST_TOKENS:
            self.refuse(f"must be a whole number from 0 to {MOST_TOKENS - 1:,}")
        return self.value

    def one_of(self, *values: Any) -> Any:
        """One of a few values."""
        if not any(type(self.value) is type(v) and self.value == v for v in values):
            self.refuse(f"must be {' or '.join(map(repr, values))}; nothing else is done here")
        return self.value

    def only(self, *names: str) -> Place:
        """An object that asks for nothing beside some names."""
        for name, value in self.object().items():
            if name not in names and value not in (None, False):
                self.get(name).refuse("is unknown here, so its tokens could be other ones")
        return self


def is_utf_8(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half of a surrogate pair stands alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- reading -----------------------------------------------------------------------------------------------
def read_tokenizer(path: str | Path) -> Content:
    """Read a tokenizer.json.

    Raises:
        InputError: the file cannot be read, or is none; or asks for something that is not done here.
    """
    file = Place(str(path), "", read_json("tokenizer", path))
    if not isinstance(file.value, dict):
        file.refuse("the file must hold an object")
    file.only(*FILE)
    for name in ("truncation", "padding"):
        if file.get(name).value is not None:
            file.get(name).refuse("texts are neither cut to a length nor filled up; set it to null")
    _read_decoder(file.get("decoder"))
    model = file.get("model").only(*MODEL)
    if model.get("type").value is not None:
        model.get("type").one_of("BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name).value not in (None, "", 0):
            model.get(name).refuse("is not done here")
    whole_pieces = model.get("ignore_merges")
    vocabulary, entries = model.get("vocab").object(), file.get("added_tokens")
    added = _read_added(entries, vocabulary)
    tokens = _read_vocabulary(model.get("vocab"), {t.content for t in added})
    _check_numbers(entries, added, vocabulary)
    rules = Rules(
        _read_normalizer(file.get("normalizer")),
        _read_cuts(file.get("pre_tokenizer")),
        whole_pieces.value is not None and whole_pieces.flag(),
        *_read_frame(file.get("post_processor"), tokens.keys() | {t.number for t in added}),
        {name: file.get(name).value for name in ("normalizer", "pre_tokenizer", "post_processor")},
    )
    return Content(tokens, _read_merges(model.get("merges"), tokens), added, rules)


def _read_added(place: Place, vocabulary: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens."""
    added: dict[str, AddedToken] = {}
    for entry in place.each() if place.value is not None else ():
        content, number = entry.get("content").text(), entry.get("id").number()
        if not content:
            entry.get("content").refuse("an added token has at least one character")
        if content in added:
            entry.get("content").refuse("is there twice")
        flags = {name: entry.get(name).flag() for name in AddedToken._fields[2:-1]}
        added[content] = AddedToken(content, number, **flags, listed=content in vocabulary)
    return list(added.values())


def _check_numbers(place: Place, added: Sequence[AddedToken], vocabulary: Mapping[str, int]) -> None:
    """Refuse numbers that `tokenizers` does not give: it takes that of the vocabulary, else the first that is
    free behind it.
    """
    highest, taken = -1, set(vocabulary.values())
    for i, token in enumerate(added):
        given = vocabulary[token.content] if token.listed else max(len(vocabulary), highest + 1)
        entry = Place(place.file, f"{place.key}[{i}].id", token.number)
        if token.number != given:
            entry.refuse(f"`tokenizers` gives {token.content!r} the number {given}")
        if not token.listed and token.number in taken:
            entry.refuse("a token of the vocabulary has this number")
        highest = max(highest, token.number)


def _read_vocabulary(place: Place, added: Collection[str]) -> dict[int, bytes]:
    """The tokens that merges make: number -> bytes."""
    tokens: dict[int, bytes] = {}
    seen: set[int] = set()
    for word in place.object():
        entry = Place(place.file, f"{place.key}[{shown(repr(word))}]", place.value[word])
        number = entry.number()
        if number in seen:
            entry.refuse("another token has this number")
        seen.add(number)
        try:
            token = unspelled(word)
        except KeyError as problem:
            if word in added:
                continue  # found before bytes are merged, so no merge needs it
            entry.refuse(f"{problem} is no letter that stands for a byte")
        if not token:
            entry.refuse("a token has at least one byte")
        if word in added and token != word.encode():
            entry.refuse("is an added token, which would not be the bytes that these letters stand for")
        tokens[number] = token
    there = set(tokens.values())
    if missing := [b for b in range(256) if bytes([b]) not in there]:
        place_of_all = Place(place.file, place.key, f"{len(tokens)} tokens")
        place_of_all.refuse(f"all 256 single bytes are needed; missing: {missing[:8]}")
    return tokens


def _read_merges(place: Place, tokens: Mapping[int, bytes]) -> list[tuple[int, int]]:
    """The merges as pairs of numbers, the first learned first."""
    numbers = {token: number for number, token in tokens.items()}
    pairs = []
    for entry in place.each():
        pair = entry.value.split(" ") if isinstance(entry.value, str) else entry.value
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
            entry.refuse("must be two tokens")
        try:
            a, b = map(unspelled, pair)
            _ = numbers[a + b]
            pairs.append((numbers[a], numbers[b]))
        except KeyError as problem:
            entry.refuse(f"every merge is of tokens and makes one; there is no token {problem}")
    return pairs


def _read_normalizer(place: Place) -> str | None:
    """The normal form of texts."""
    if place.value is None:
        return None
    if place.get("type").value == "Sequence":
        forms = [
            _read_normalizer(each) for each in place.only("type", "normalizers").get("normalizers").each()
        ]
        return next((form for form in forms if form), None)
    place.only("type").get("type").one_of("NFC")
    return "NFC"


def _read_cuts(place: Place) -> tuple[Cut, ...]:
    """The steps of the pre-tokenizer; ByteLevel is the last one, and only there."""
    if place.value is not None and place.get("type").value == "Sequence":
        steps = list(place.only("type", "pretokenizers").get("pretokenizers").each())
        if not steps:
            place.refuse("a step ByteLevel is needed")
    else:
        steps = [place]
    *first, last = steps
    cuts = []
    for step in first:
        step.get("type").one_of("Split", "Digits")
        cuts.append(_read_split(step) if step.value["type"] == "Split" else _read_digits(step))
    if last.value is None:
        last.refuse("must be ByteLevel")
    last.only(*BYTE_LEVEL).get("type").one_of("ByteLevel")
    cut_as_gpt_2 = last.get("use_regex").value is None or last.get("use_regex").flag()
    cuts.append(Cut(rule() if cut_as_gpt_2 else None, space=last.get("add_prefix_space").flag()))
    return tuple(cuts)


def _read_split(place: Place) -> Cut:
    place.only("type", "pattern", "behavior", "invert")
    pattern = _read_pattern(place.get("pattern").only("Regex", "String"))
    # Isolated: each match and each gap is a piece, whichever of them `invert` calls the delimiter.
    inverted = place.get("invert").flag()
    if place.get("behavior").one_of("Isolated", "Removed") == "Isolated":
        return Cut(pattern, gaps=True)
    if not inverted:
        place.get("invert").refuse("with behavior = 'Removed' the matches would be lost")
    return Cut(pattern)


def _read_pattern(place: Place) -> re.Pattern[str]:
    exact, regex = place.get("String"), place.get("Regex")
    if exact.value is not None:
        return re.compile(re.escape(exact.text())) if exact.text() else exact.refuse("must not be empty")
    text = regex.text()
    try:
        return translated(text)
    except ValueError as problem:
        regex.refuse(str(problem))


def _read_digits(place: Place) -> Cut:
    single = place.only("type", "individual_digits").get("individual_digits").flag()
    return Cut(translated(r"\p{N}" if single else r"\p{N}+"), gaps=True)


def _read_frame(place: Place, known: set[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers that the post-processor puts before a text, and those that it puts behind."""
    if place.value is None:
        return (), ()
    kind = place.get("type").one_of(
        "ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing", "Sequence"
    )
    if kind == "ByteLevel":
        return (), ()
    before: list[int] = []
    after: list[int] = []
    if kind == "Sequence":
        steps = [
            _read_frame(each, known) for each in place.only("type", "processors").get("processors").each()
        ]
        adding = [step for step in steps if step != ((), ())]
        if len(adding) > 1:
            place.refuse("two steps add tokens, which `tokenizers` cannot do")
        return adding[0] if adding else ((), ())
    if kind != "TemplateProcessing":
        place.only("type", "sep", "cls", "trim_offsets", "add_prefix_space")
        for name, numbers in (("cls", before), ("sep", after)):
            pair = list(place.get(name).each())
            if len(pair) != 2:
                place.get(name).refuse("must be a token and its number")
            pair[0].text()
            numbers.append(_known(pair[1], known))
        return tuple(before), tuple(after)
    place.only("type", "single", "pair", "special_tokens")
    seen = False
    for each in place.get("single").each():
        each.only("SpecialToken", "Sequence")
        if each.get("Sequence").value is not None:
            each.get("Sequence").get("id").one_of("A")
            if seen:
                each.refuse("the text stands there twice")
            seen = True
            continue
        name = each.get("SpecialToken").get("id").text()
        ids = place.get("special_tokens").get(name).get("ids")
        (after if seen else before).extend(_known(number, known) for number in ids.each())
    if not seen:
        place.get("single").refuse("the text is missing")
    return tuple(before), tuple(after)


def _known(place: Place, known: set[int]) -> int:
    """A number that is a token's."""
    return place.number() if place.number() in known else place.refuse("no token has this number")


def _read_decoder(place: Place) -> None:
    """Tokens stand for bytes, so a file cannot ask for another way back to text."""
    if place.value is None:
        return
    if place.get("type").value == "Sequence":
        for each in place.get("decoders").each():
            _read_decoder(each)
    else:
        place.get("type").one_of("ByteLevel")
