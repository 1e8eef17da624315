"""The requests of `glass tokenize train`, `encode` and `decode`."""

from __future__ import annotations

from pydantic import Field

from glasscluster.base.requests import Request, argument, switch


class LearnRequest(Request):
    """Asks for a tokenizer, learned from texts."""

    files: list[str] = argument("texts: files, folders, or python, english, chinese (built in)")
    vocab: int = Field(8192, description="tokens in all: 256 bytes, merges and special tokens")
    out: str = Field("tokenizer.json", description="file to write, in Hugging Face's layout")
    special: list[str] = Field([], description="a special token; may be repeated [default: <|endoftext|>]")


class EncodeRequest(Request):
    """Asks for the tokens of a text."""

    text: str = argument("a text; with --file a file of any bytes")
    tokenizer: str = Field("tokenizer.json", description="a tokenizer.json")
    file: bool = switch("TEXT names a file")
    allow: list[str] = Field(
        [],
        description="a special token that the text may spell, or all [default: none]",
    )


class DecodeRequest(Request):
    """Asks for the text of some tokens."""

    tokens: list[int] = argument("token numbers")
    tokenizer: str = Field("tokenizer.json", description="a tokenizer.json")
