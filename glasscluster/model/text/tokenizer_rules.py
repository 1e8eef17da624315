"""What a tokenizer does around its merges: normalise a text, cut it, and put numbers before and after it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glasscluster.model.text.pre_tokens import rule

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@dataclass(frozen=True)
class Cut:
    """One step that cuts texts.

    pattern: its matches are pieces; None: the text is not cut. gaps: what lies between matches is kept, too.
    space: a text gets a space before it, unless one stands there.
    """

    pattern: re.Pattern[str] | None
    gaps: bool = False
    space: bool = False

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, none empty."""
        if self.space and text and not text.startswith(" "):
            text = " " + text
        if self.pattern is None:
            return [text] if text else []
        if not self.gaps:
            return self.pattern.findall(text)
        pieces, done = [], 0
        for match in self.pattern.finditer(text):
            pieces += [text[done : match.start()], match[0]]
            done = match.end()
        return [piece for piece in (*pieces, text[done:]) if piece]


@dataclass(frozen=True)
class Rules:
    """What is done around the merges; as it stands here, GPT-2's.

    form: the normal form of texts, "NFC"; None: as they are. cuts: one after the other. whole_pieces: a piece
    that is a token becomes it, whatever its merges make. before, after: numbers around a whole text.
    sections: how a file says this.
    """

    form: str | None = None
    cuts: tuple[Cut, ...] = field(default_factory=lambda: (Cut(rule()),))
    whole_pieces: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    sections: Mapping[str, Any] = field(
        default_factory=lambda: {"normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None}
    )

    def cut(self, text: str) -> list[str]:
        """The pieces of a text, inside which bytes are merged."""
        pieces = [text]
        for cut in self.cuts:
            pieces = [part for piece in pieces for part in cut.pieces(piece)]
        return pieces
