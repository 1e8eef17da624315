"""`glass tokenize`: a tokenizer of your own, and what it makes of a text."""

from __future__ import annotations

import typer

from glasscluster.base.quantities import written_number
from glasscluster.base.text import counted
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.tokenize import DecodeRequest, EncodeRequest, LearnRequest

app = typer.Typer(help="Learn a byte-level BPE tokenizer; encode and decode with it.", no_args_is_help=True)


@app.command()
@command(LearnRequest)
def train(request: LearnRequest, as_json: bool) -> int:
    """Learn merges from texts and write a tokenizer.json."""
    with progress() as say:
        say(f"glass tokenize train: {', '.join(request.files)}")
        content = body("tokenize train")(request, say)
    if as_json:
        emit(content)
        return 0
    size = f"{content['size_bytes']:,} bytes: {content['out']}"
    print(f"{content['vocab']:,} tokens ({content['merges']:,} merges) from {size}")
    if content["tokens"]:
        each = written_number(content["bytes_per_token"], 3)
        print(f"the text is {counted(content['tokens'], 'token')}, {each} bytes each")
    return 0


@app.command()
@command(EncodeRequest)
def encode(request: EncodeRequest, as_json: bool) -> int:
    """The tokens of a text."""
    content = body("tokenize encode")(request)
    if as_json:
        emit(content)
        return 0
    print(" ".join(map(str, content["tokens"])))
    print("│".join(repr(piece)[1:-1] for piece in content["pieces"]))
    return 0


@app.command()
@command(DecodeRequest)
def decode(request: DecodeRequest, as_json: bool) -> int:
    """The text that tokens stand for."""
    content = body("tokenize decode")(request)
    if as_json:
        emit(content)
    else:
        print(content["text"])
    return 0
