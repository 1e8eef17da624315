"""Documents to train on: files, folders, and what every installation has: Python's own library, and sentences
in two languages.

FILE    its text; a line <|endoftext|> ends a document  python   the standard library, a module a document
FOLDER  every file in it is a document                  english  sentences about training on many GPUs,
                                                        chinese  and the same ones in Chinese
"""

from __future__ import annotations

import json
import sysconfig
from functools import cache
from pathlib import Path

from glasscluster.base.errors import InputError, alike
from glasscluster.base.files import is_folder, is_there, read_bytes
from glasscluster.model.text.tokenizer import END_OF_TEXT

BUILT_IN = ("python", "english", "chinese")
LIMIT = 4_000_000  # bytes of the standard library


def documents(source: str, field: str = "data") -> list[bytes]:
    """The documents of a file, a folder, or a built-in text, in a fixed order, none empty.

    Args:
        source: path, or the name of a built-in text.
        field: the option that named it, for the message.

    Raises:
        InputError: there is no such thing, or it cannot be read.
    """
    path = Path(source)
    if is_folder(path):
        texts = [read_bytes(field, p) for p in sorted(path.rglob("*")) if p.is_file()]
    elif not is_there(path) and source not in BUILT_IN:
        raise InputError(field, source, "is no file, no folder and no built-in text", alike(source, BUILT_IN))
    elif is_there(path):
        texts = read_bytes(field, path).split(END_OF_TEXT.encode())
    elif source == "python":
        texts = standard_library()
    else:
        texts = [pair[source == "chinese"].encode() for pair in bilingual()]
    return [text for text in texts if text.strip()]


@cache
def standard_library(limit: int = LIMIT, deep: bool = False) -> list[bytes]:
    """Modules of the running Python's standard library by name, until they have `limit` bytes. deep: packages
    inside it, too.
    """
    home, texts, size = Path(sysconfig.get_paths()["stdlib"]), list[bytes](), 0
    for module in sorted(home.rglob("*.py") if deep else home.glob("*.py")):
        if size >= limit:
            break
        if "site-packages" not in module.parts:
            texts.append(module.read_bytes()[: limit - size])
            size += len(texts[-1])
    return texts


@cache
def bilingual() -> list[tuple[str, str]]:
    """Sentences in English and in Chinese, side by side, about training on many GPUs (bilingual.json)."""
    text = Path(__file__).with_name("bilingual.json").read_text(encoding="utf-8")
    return [(english, chinese) for english, chinese in json.loads(text)]
