"""A tokenizer: text to token numbers and back, by byte-pair merges (bpe.py) inside GPT-2's pieces
(pre_tokens.py).

Encoding a piece: its bytes, then always the merge that was learned first among those that its neighbours
allow, the leftmost if it stands at several places, until none is allowed (1508.07909, section 3.2).

    n e w e r      (e, r) was learned 3rd, (n, e) 9th, (ne, w) 20th
    n e w er  ─►  ne w er  ─►  new er      a heap of (rank, place) and a list of neighbours:
                                           O(n log n) for a piece of n bytes

Most pieces have been seen before, so their tokens are kept. Added tokens (added_tokens.py) stand outside all
this: no merge makes one. A text that spells a special one (an end of text) gets it only if the caller allows
it (as in OpenAI's tiktoken): text of users must not end the document.

Files are Hugging Face's tokenizer.json, so `tokenizers.Tokenizer.from_file` reads them, and those of GPT-2,
BART, Phi-2, Llama 3 or Qwen2 can be read here (tokenizer_file.py says what they may ask for).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from glasscluster.base.errors import InputError
from glasscluster.base.files import write_text
from glasscluster.model.text.added_tokens import AddedToken, AddedTokens
from glasscluster.model.text.bpe import Learned, Pair, count_pieces, learn
from glasscluster.model.text.pre_tokens import ESCAPE, as_bytes, spelled
from glasscluster.model.text.tokenizer_file import is_utf_8, read_tokenizer
from glasscluster.model.text.tokenizer_rules import BYTE_LEVEL, Rules

END_OF_TEXT = "<|endoftext|>"
KEPT = 1 << 16  # pieces whose tokens are remembered


class Merge(NamedTuple):
    """One step of encoding: the tokens at `place` and behind it became `token`. Places count the piece's
    bytes.
    """

    place: int
    rank: int
    token: int


class Tokenizer:
    """Tokens by number, merges in order of rank, and added tokens.

    tokens: the bytes of each ordinary token, all 256 single bytes among them. merges: pairs of tokens, by
    rank. added: special tokens as spelling -> number, or tokens of any kind. rules: how texts are cut, and
    what stands around them. Raises ValueError for tokens or merges that cannot be.
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes] | Sequence[bytes],
        merges: Iterable[Pair],
        added: Mapping[str, int] | Sequence[AddedToken] = (),
        rules: Rules | None = None,
    ) -> None:
        self.tokens = dict(tokens) if isinstance(tokens, Mapping) else dict(enumerate(tokens))
        self.merges, self.rules = list(merges), rules or Rules()
        if isinstance(added, Mapping):
            added = [AddedToken(content, number) for content, number in added.items()]
        self.added = {token.number: token for token in added}
        self.specials = {token.content: token.number for token in added if token.special}
        self.numbers = {token: number for number, token in self.tokens.items()}
        self._check(added)
        try:
            made = [self.numbers[self.tokens[a] + self.tokens[b]] for a, b in self.merges]
        except KeyError as problem:
            raise ValueError(f"every merge is of tokens and makes one; there is no token {problem}") from None
        self.ranks = {
            pair: (rank, token) for rank, (pair, token) in enumerate(zip(self.merges, made, strict=True))
        }
        self.size = max([*self.tokens, *self.added]) + 1  # rows that a model's embedding needs
        self._find = AddedTokens(list(added), self.rules.form)
        self._known: dict[bytes, tuple[int, ...]] = {}

    def _check(self, added: Sequence[AddedToken]) -> None:
        if missing := [b for b in range(256) if bytes([b]) not in self.numbers]:
            raise ValueError(f"a byte-level tokenizer has all 256 bytes as tokens; missing: {missing[:8]}")
        check_specials([token.content for token in added])
        if len(self.added) < len(added):
            raise ValueError("two added tokens have one number")
        both = [token for token in added if token.number in self.tokens]
        if taken := [t.number for t in both if self.tokens[t.number] != t.content.encode()]:
            raise ValueError(f"special tokens have numbers of their own; {sorted(taken)} are ordinary tokens")
        words = {spelled(token): number for number, token in self.tokens.items()} if added else {}
        if alike := sorted(t.content for t in added if words.get(t.content, t.number) != t.number):
            raise ValueError(f"special tokens that are spelled as an ordinary one is: {alike[:8]}")

    @classmethod
    def train(
        cls,
        texts: Iterable[bytes],
        vocab: int,
        specials: Sequence[str] = (),
        say: Callable[[int], None] = lambda _tokens: None,
    ) -> Tokenizer:
        """Learn from texts up to `vocab` tokens, with the special ones, which come last (as GPT-2's).
        ValueError if that is too few, or for special tokens that cannot be.
        """
        check_specials(specials)
        return cls.of(learn(count_pieces(texts), vocab - len(specials), say), specials)

    @classmethod
    def of(cls, learned: Learned, specials: Sequence[str] = ()) -> Tokenizer:
        """What training found, and special tokens behind it. ValueError for those that cannot be."""
        first = len(learned.tokens)
        return cls(learned.tokens, learned.merges, [AddedToken(s, first + i) for i, s in enumerate(specials)])

    def __contains__(self, number: int) -> bool:
        """Whether a number is a token's."""
        return number in self.tokens or number in self.added

    def check_vocab(self, vocab: int, name: str, weights: str | None = None) -> None:
        """Check that a model has a row for each token.

        Args:
            vocab: the model's rows.
            name: the tokenizer's file, for the message.
            weights: the folder that the model comes from, if it does: it has as many rows as it has.

        Raises:
            InputError: naming the vocabulary, and the least that works.
        """
        if self.size > vocab:
            rule = f"{name} has {self.size} tokens"
            if weights is not None:
                rule += f", and {weights} was trained with {vocab}: give the tokenizer that belongs to it"
            raise InputError("vocab", vocab, rule, [self.size])

    # ---- text to tokens ------------------------------------------------------------------------------------
    def encode(
        self, text: str | bytes, allowed: Collection[str] | Literal["all"] = (), whole: bool = False
    ) -> list[int]:
        """Token numbers of a text, or of any bytes.

        Args:
            text: what to encode.
            allowed: special tokens that the text may spell; others are plain text.
            whole: whether nothing comes before and after the text, so that the numbers come around it that
                the rules put there (Llama 3's begin of text).

        Raises:
            KeyError: there is no special token of a name in `allowed`.
        """
        data = text.encode() if isinstance(text, str) else text
        ready = self.specials if allowed == "all" else {s: self.specials[s] for s in allowed}
        numbers: list[int] = []
        for part in self._find.split(data.decode("utf-8", ESCAPE), ready):
            numbers += [part] if isinstance(part, int) else self._ordinary(part)
        return [*self.rules.before, *numbers, *self.rules.after] if whole else numbers

    def pieces(self, text: bytes) -> list[bytes]:
        """The pieces of a text between added tokens, inside which bytes are merged."""
        return [as_bytes(piece) for piece in self.rules.cut(text.decode("utf-8", ESCAPE))]

    def _ordinary(self, text: str) -> list[int]:
        numbers: list[int] = []
        for piece in map(as_bytes, self.rules.cut(text)):
            made = self._known.get(piece)
            if made is None:
                alone = self.numbers.get(piece) if self.rules.whole_pieces else None
                made = (alone,) if alone is not None else tuple(self.encode_piece(piece)[0])
                if len(self._known) < KEPT:
                    self._known[piece] = made
            numbers += made
        return numbers

    def encode_piece(self, piece: bytes) -> tuple[list[int], list[Merge]]:
        """Tokens of one piece by merges alone, and these merges, in order."""
        tokens: list[int] = [self.numbers[piece[i : i + 1]] for i in range(len(piece))]
        after, before = (
            list(range(1, len(piece) + 1)),
            list(range(-1, len(piece) - 1)),
        )  # the places of neighbours
        alive, steps = [True] * len(piece), []
        open_ = [
            (*self.ranks[pair], place, pair)
            for place, pair in enumerate(pairwise(tokens))
            if pair in self.ranks
        ]
        heapify(open_)
        while open_:
            rank, token, place, pair = heappop(open_)
            right = after[place]
            if not alive[place] or right == len(piece) or (tokens[place], tokens[right]) != pair:
                continue  # one of the two has been merged since
            steps.append(Merge(place, rank, token))
            tokens[place], alive[right], after[place] = token, False, after[right]
            if after[place] < len(piece):
                before[after[place]] = place
            for left in (before[place], place):
                if left >= 0 and after[left] < len(piece):
                    near = tokens[left], tokens[after[left]]
                    if near in self.ranks:
                        heappush(open_, (*self.ranks[near], left, near))
        return [token for token, there in zip(tokens, alive, strict=True) if there], steps

    # ---- and back ------------------------------------------------------------------------------------------
    def decode_bytes(self, numbers: Iterable[int]) -> bytes:
        """The bytes that token numbers stand for; exact for whatever `encode` made, unless the rules change
        texts (a normal form, a space before them, an added token that takes the spaces beside it).

        KeyError for a number without a token.
        """
        return b"".join(
            self.tokens[n] if n in self.tokens else self.added[n].content.encode() for n in numbers
        )

    def decode(self, numbers: Iterable[int]) -> str:
        """As text; bytes that are no UTF-8 (a token may end inside a character) are shown as U+FFFD."""
        return self.decode_bytes(numbers).decode("utf-8", "replace")

    # ---- files ---------------------------------------------------------------------------------------------
    def as_json(self) -> dict[str, Any]:
        """The content of a tokenizer.json."""
        spellings = {number: spelled(token) for number, token in self.tokens.items()}
        words = {word: number for number, word in spellings.items()}
        words |= {token.content: token.number for token in self.added.values() if token.listed}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [token.as_json() for token in self.added.values()],
            **self.rules.sections,
            "decoder": BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.rules.whole_pieces,
                "vocab": words,
                "merges": [[spellings[a], spellings[b]] for a, b in self.merges],
            },
        }

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json."""
        write_text(path, json.dumps(self.as_json(), ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json: byte-level BPE.

        Raises:
            InputError: with key and value: the file is no such one, or asks for something that is not done.
        """
        return cls(*read_tokenizer(path))


def check_specials(specials: Sequence[str]) -> None:
    """ValueError for special tokens that no file can hold, or that no text can spell."""
    if "" in specials:
        raise ValueError("a special token has at least one character")
    if twice := [text for i, text in enumerate(specials) if text in specials[:i]]:
        raise ValueError(f"special tokens that are there twice: {twice[:8]}")
    if broken := [text for text in specials if not is_utf_8(text)]:
        raise ValueError(f"special tokens that UTF-8 cannot spell: {broken[:8]}")
