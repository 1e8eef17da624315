"""A tokenizer: text to token numbers and back, by byte-pair merges (bpe.py) inside GPT-2's pieces
(pre_tokens.py).

Encoding a piece: its bytes, then always the merge that was learned first among those that its neighbours
allow, the leftmost if it stands at several places, until none is allowed (1508.07909, section 3.2).

    n e w e r      (e, r) was learned 3rd, (n, e) 9th, (ne, w) 20th
    n e w er  ─►  ne w er  ─►  new er      a heap of (rank, place) and a list of neighbours:
                                           O(n log n) for a piece of n bytes

Most pieces have been seen before, so their tokens are kept. Special tokens (an end of text) stand outside all
this: no merge makes one, and a text that spells one gets it only if the caller allows it (as in OpenAI's
tiktoken): text of users must not end the document.

Files are Hugging Face's tokenizer.json, so `tokenizers.Tokenizer.from_file` reads them, and GPT-2's own can
be read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json, write_text
from glasscluster.model.text.bpe import Pair, count_pieces, learn
from glasscluster.model.text.pre_tokens import pieces, spelled, unspelled

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
    """Tokens by number, merges in order of rank, and special tokens.

    tokens: the bytes of each ordinary token, all 256 single bytes among them. merges: pairs of tokens, by
    rank. specials: spelling -> number. Raises ValueError for tokens or merges that cannot be.
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes] | Sequence[bytes],
        merges: Iterable[Pair],
        specials: Mapping[str, int] | None = None,
    ) -> None:
        self.tokens = dict(tokens) if isinstance(tokens, Mapping) else dict(enumerate(tokens))
        self.merges, self.specials = list(merges), dict(specials or {})
        self.numbers = {token: number for number, token in self.tokens.items()}
        if missing := [b for b in range(256) if bytes([b]) not in self.numbers]:
            raise ValueError(f"a byte-level tokenizer has all 256 bytes as tokens; missing: {missing[:8]}")
        if taken := self.tokens.keys() & self.specials.values():
            raise ValueError(f"special tokens have numbers of their own; {sorted(taken)} are ordinary tokens")
        words = {spelled(token) for token in self.numbers} if self.specials else set()
        if alike := sorted(words & self.specials.keys()):
            raise ValueError(f"special tokens that are spelled as an ordinary one is: {alike[:8]}")
        try:
            made = [self.numbers[self.tokens[a] + self.tokens[b]] for a, b in self.merges]
        except KeyError as problem:
            raise ValueError(f"every merge is of tokens and makes one; there is no token {problem}") from None
        self.ranks = {
            pair: (rank, token) for rank, (pair, token) in enumerate(zip(self.merges, made, strict=True))
        }
        self.size = max([*self.tokens, *self.specials.values()]) + 1  # rows that a model's embedding needs
        self._spellings = {number: text.encode() for text, number in self.specials.items()}
        self._known: dict[bytes, tuple[int, ...]] = {}

    @classmethod
    def train(
        cls,
        texts: Iterable[bytes],
        vocab: int,
        specials: Sequence[str] = (),
        say: Callable[[int], None] = lambda _tokens: None,
    ) -> Tokenizer:
        """Learn from texts up to `vocab` tokens, with the special ones, which come last (as GPT-2's).
        ValueError if that is too few.
        """
        learned = learn(count_pieces(texts), vocab - len(specials), say)
        return cls(
            learned.tokens, learned.merges, {text: len(learned.tokens) + i for i, text in enumerate(specials)}
        )

    def check_vocab(self, vocab: int, name: str) -> None:
        """Check that a model has a row for each token; `name` is the file's, for the message.

        Raises:
            InputError: naming the vocabulary, and the least that works.
        """
        if self.size > vocab:
            raise InputError("vocab", vocab, f"{name} has {self.size} tokens", [self.size])

    # ---- text to tokens ------------------------------------------------------------------------------------
    def encode(self, text: str | bytes, allowed: Collection[str] | Literal["all"] = ()) -> list[int]:
        """Token numbers of a text, or of any bytes. `allowed`: special tokens that the text may spell; others
        are plain text.
        """
        data = text.encode() if isinstance(text, str) else text
        ready = self.specials if allowed == "all" else {s: self.specials[s] for s in allowed}
        if not ready:
            return self._ordinary(data)
        longest_first = sorted(ready, key=len, reverse=True)
        numbers: list[int] = []
        for i, part in enumerate(
            re.split(b"(" + b"|".join(re.escape(s.encode()) for s in longest_first) + b")", data)
        ):
            numbers += [ready[part.decode()]] if i % 2 else self._ordinary(part)
        return numbers

    def _ordinary(self, text: bytes) -> list[int]:
        numbers: list[int] = []
        for piece in pieces(text):
            made = self._known.get(piece)
            if made is None:
                made = tuple(self.encode_piece(piece)[0])
                if len(self._known) < KEPT:
                    self._known[piece] = made
            numbers += made
        return numbers

    def encode_piece(self, piece: bytes) -> tuple[list[int], list[Merge]]:
        """Tokens of one piece, and the merges that made them, in order."""
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
        """The bytes that token numbers stand for; exact for whatever `encode` made. KeyError for a number
        without a token.
        """
        return b"".join(self.tokens[n] if n in self.tokens else self._spellings[n] for n in numbers)

    def decode(self, numbers: Iterable[int]) -> str:
        """As text; bytes that are no UTF-8 (a token may end inside a character) are shown as U+FFFD."""
        return self.decode_bytes(numbers).decode("utf-8", "replace")

    # ---- files ---------------------------------------------------------------------------------------------
    def as_json(self) -> dict[str, Any]:
        """The content of a tokenizer.json."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        spellings = {number: spelled(token) for number, token in self.tokens.items()}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": number, "content": text, **plain} for text, number in self.specials.items()
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {word: number for number, word in spellings.items()},
                "merges": [[spellings[a], spellings[b]] for a, b in self.merges],
            },
        }

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json."""
        write_text(path, json.dumps(self.as_json(), ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json: byte-level BPE with GPT-2's pieces. ValueError for any other, with what is
        other about it.
        """
        try:
            content = read_json("tokenizer", path)
            model = content["model"]
            specials = {t["content"]: t["id"] for t in content.get("added_tokens") or []}
            numbers = {unspelled(w): n for w, n in model["vocab"].items() if specials.get(w) != n}
            pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
            merges = [(numbers[unspelled(a)], numbers[unspelled(b)]) for a, b in pairs]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ValueError(
                f"{path} is no byte-level tokenizer.json: {type(problem).__name__} {problem}"
            ) from None
        _check_rules(content)
        return cls({n: token for token, n in numbers.items()}, merges, specials)


def _check_rules(content: Mapping[str, Any]) -> None:
    """Refuse what a tokenizer.json can ask for and this one does not do."""
    before, model = content.get("pre_tokenizer") or {}, content["model"]
    wanted = {"type": "ByteLevel", "add_prefix_space": False}
    other = [f"pre_tokenizer.{k} = {before.get(k)!r}" for k, v in wanted.items() if before.get(k) != v]
    if not before.get("use_regex", True):
        other.append("pre_tokenizer.use_regex = False")
    if content.get("normalizer"):
        other.append(f"normalizer = {content['normalizer'].get('type')!r}")
    if model.get("type", "BPE") != "BPE":
        other.append(f"model.type = {model['type']!r}")
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    other += [f"model.{k} = {model[k]!r}" for k in options if model.get(k)]
    if other:
        raise ValueError(
            "this tokenizer splits by GPT-2's rule and merges bytes, nothing else; the file asks for "
            + ", ".join(other)
        )
