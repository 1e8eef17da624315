"""`glass tokenize`: learn a tokenizer from texts, encode and decode with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_bytes
from glasscluster.model.text.bpe import count_pieces, learn
from glasscluster.model.text.texts import documents
from glasscluster.model.text.tokenizer import END_OF_TEXT, Tokenizer, check_specials
from glasscluster.scenarios.requests.tokenize import DecodeRequest, EncodeRequest, LearnRequest

TELL_EVERY = 1000  # tokens


def learn_command(request: LearnRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `glass tokenize train`: learn a tokenizer.json from texts."""
    return learned(request.files, request.vocab, request.special or [END_OF_TEXT], request.out, say)


def encode_command(request: EncodeRequest) -> dict[str, Any]:
    """Run `glass tokenize encode`: the tokens of a text or of a file."""
    return encoded(request.tokenizer, request.text, request.allow, request.file)


def decode_command(request: DecodeRequest) -> dict[str, Any]:
    """Run `glass tokenize decode`: the text of some tokens."""
    return decoded(request.tokenizer, request.tokens)


def learned(
    sources: Sequence[str], vocab: int, specials: Sequence[str], out: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Learn a tokenizer from sources (model/text/texts.py) and write its file; the `glass.tokenize-train/1`
    object.
    """
    begun = time.perf_counter()
    if vocab < 256 + len(specials):
        raise InputError(
            "vocab",
            vocab,
            f"256 bytes and {len(specials)} special tokens need as many",
            [256 + len(specials)],
        )
    _check_specials(specials)
    texts = []
    for name in sources:
        texts += documents(name, "files")
    if not any(texts):
        raise InputError("files", ", ".join(sources), "hold no text to learn from")
    say(f"cutting {sum(map(len, texts)):,} bytes into pieces")
    pieces = count_pieces(texts)
    say(f"merging in {len(pieces):,} different pieces")
    bpe = learn(
        pieces, vocab - len(specials), lambda n: say(f"{n:,} tokens") if n % TELL_EVERY == 0 else None
    )
    try:
        made = Tokenizer.of(bpe, specials)
    except ValueError as problem:
        raise InputError("special", ", ".join(specials), str(problem)) from None
    made.save(out)
    size = sum(map(len, texts))
    tokens = sum(len(made.encode_piece(piece)[0]) * many for piece, many in pieces.items())
    return {
        "schema": "glass.tokenize-train/1",
        "vocab": made.size,
        "merges": len(made.merges),
        "documents": len(texts),
        "size_bytes": size,
        "pieces": len(pieces),
        "tokens": tokens,
        "bytes_per_token": size / tokens if tokens else None,
        "wall_s": time.perf_counter() - begun,
        "out": str(out),
    }


def _check_specials(specials: Sequence[str]) -> None:
    """InputError for special tokens that cannot be, before anything is learned; `Tokenizer.of` checks them
    against what was learned.
    """
    try:
        check_specials(specials)
    except ValueError as problem:
        raise InputError("special", ", ".join(specials), str(problem)) from None


def encoded(path: str, text: str, allowed: Sequence[str], from_file: bool) -> dict[str, Any]:
    """The `glass.tokenize-encode/1` object of a whole text, or of a file's bytes: also with the numbers that
    the tokenizer puts around a text.
    """
    tokenizer = Tokenizer.load(path)
    data = read_bytes("text", text) if from_file else text.encode("utf-8", "surrogateescape")
    everything: Sequence[str] | Literal["all"] = "all" if "all" in allowed else allowed
    for name in everything if everything != "all" else ():
        if name not in tokenizer.specials:
            raise InputError(
                "allow", name, "is no special token of this tokenizer", ["all", *tokenizer.specials]
            )
    numbers = tokenizer.encode(data, everything, whole=True)
    return {
        "schema": "glass.tokenize-encode/1",
        "tokens": numbers,
        "pieces": [tokenizer.decode([n]) for n in numbers],
        "size_bytes": len(data),
        "bytes_per_token": len(data) / len(numbers) if numbers else None,
    }


def decoded(path: str, numbers: Sequence[int]) -> dict[str, Any]:
    """The `glass.tokenize-decode/1` object: the text, and its bytes, which need not be valid text."""
    tokenizer = Tokenizer.load(path)
    known = sorted({*tokenizer.tokens, *tokenizer.added})
    for number in numbers:
        if number not in tokenizer:
            raise InputError("tokens", number, f"{path} has no such token", known)
    data = tokenizer.decode_bytes(numbers)
    return {
        "schema": "glass.tokenize-decode/1",
        "text": data.decode("utf-8", "replace"),
        "bytes_hex": data.hex(),
    }
