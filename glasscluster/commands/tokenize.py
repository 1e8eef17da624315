"""`glass tokenize`: a tokenizer of your own, and what it makes of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from glasscluster.commands.console import Json, emit, progress

app = typer.Typer(help="Learn a byte-level BPE tokenizer; encode and decode with it.", no_args_is_help=True)

Path = Annotated[str, typer.Option("--tokenizer", help="a tokenizer.json")]


@app.command()
def train(
    files: Annotated[list[str], typer.Argument(help="texts: files, folders, or python, english, chinese (built in)")],
    vocab: Annotated[int, typer.Option(help="tokens in all: 256 bytes, merges and special tokens")] = 8192,
    out: Annotated[str, typer.Option(help="file to write, in Hugging Face's layout")] = "tokenizer.json",
    special: Annotated[list[str] | None, typer.Option(help="a special token; may be repeated [default: <|endoftext|>]")] = None,
    json_: Json = False,
) -> int:
    """Learn merges from texts and write a tokenizer.json."""
    with progress() as say:
        say(f"glass tokenize train: {', '.join(files)}")
        from glasscluster.model.text.tokenizer import END_OF_TEXT
        from glasscluster.scenarios.jobs.tokenizing import learned

        content = learned(files, vocab, special or [END_OF_TEXT], out, say)
    if json_:
        emit(content)
    else:
        print(f"{content['vocab']:,} tokens ({content['merges']:,} merges) from {content['size_bytes']:,} bytes: {content['out']}")
        if content["tokens"]:
            print(f"the text is {content['tokens']:,} tokens, {content['bytes_per_token']:.3g} bytes each")
    return 0


@app.command()
def encode(
    text: Annotated[str, typer.Argument(help="a text; with --file a file of any bytes")],
    tokenizer: Path = "tokenizer.json",
    file: Annotated[bool, typer.Option("--file", help="TEXT names a file")] = False,
    allow: Annotated[list[str] | None, typer.Option(help="a special token that the text may spell, or all [default: none]")] = None,
    json_: Json = False,
) -> int:
    """The tokens of a text."""
    from glasscluster.scenarios.jobs.tokenizing import encoded

    content = encoded(tokenizer, text, allow or [], file)
    if json_:
        emit(content)
        return 0
    print(" ".join(map(str, content["tokens"])))
    print("│".join(repr(piece)[1:-1] for piece in content["pieces"]))
    return 0


@app.command()
def decode(
    tokens: Annotated[list[int], typer.Argument(help="token numbers")],
    tokenizer: Path = "tokenizer.json",
    json_: Json = False,
) -> int:
    """The text that tokens stand for."""
    from glasscluster.scenarios.jobs.tokenizing import decoded

    content = decoded(tokenizer, tokens)
    if json_:
        emit(content)
    else:
        print(content["text"])
    return 0
