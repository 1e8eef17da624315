"""How words become tokens: the bytes are at the bottom, every merge is a fork above them with its rank, and
the final tokens are filled.

The tree is the record of an encoding (`Tokenizer.encode_piece`): nothing is merged here. A word is drawn by
itself, as it stands between two cuts of the text; a byte that is no printable ASCII is written in
hexadecimal, and the characters stand below their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glasscluster.visualize.figures.layout import LEGEND, plain_layout
from glasscluster.visualize.figures.picture import Picture, trace
from glasscluster.visualize.words import word

if TYPE_CHECKING:
    from glasscluster.model.text.tokenizer import Tokenizer

TOKEN, INNER, BYTE = "#0072B2", "#ffffff", "#ffffff"
LEVEL, GAP = 1.0, 1.4  # height of a merge; gap between two words, as wide as so many bytes


@dataclass
class Node:
    """A node of the tree: the bytes [start, stop) of a word. `rank` is that of the merge which made it; None
    for a single byte.
    """

    start: int
    stop: int
    rank: int | None = None
    children: tuple[Node, ...] = field(default=(), repr=False)

    @property
    def height(self) -> int:
        """The largest number of merges between this node and a byte below it."""
        return 1 + max(c.height for c in self.children) if self.children else 0

    def all(self) -> list[Node]:
        """Return this node and all nodes below it."""
        return [self, *(n for c in self.children for n in c.all())]


def merge_tree(tokenizer: Tokenizer, piece: bytes) -> list[Node]:
    """Return the tokens of a piece of text, left to right, each with the tokens it was merged from."""
    at = {i: Node(i, i + 1) for i in range(len(piece))}
    for step in tokenizer.encode_piece(piece)[1]:
        left = at[step.place]
        right = at.pop(left.stop)
        at[step.place] = Node(left.start, right.stop, step.rank, (left, right))
    return [at[i] for i in sorted(at)]


def merge_tree_figure(tokenizer: Tokenizer, words: Sequence[str], lang: str = "en") -> Picture:
    """Draw the trees of some words side by side. A word that the pre-tokenizer splits is drawn as several
    trees.
    """

    figure, left, highest = Picture(), 0.0, 1
    marks: dict[str, list[dict[str, Any]]] = {"tree_byte": [], "tree_merge": [], "tree_token": []}
    lines: tuple[list[float | None], list[float | None]] = ([], [])
    for text in words:
        begin = left
        for piece in tokenizer.pieces(text.encode()):
            roots = merge_tree(tokenizer, piece)
            highest = max(highest, *(r.height for r in roots))
            for root in roots:
                for node in root.all():
                    x, y = left + (node.start + node.stop - 1) / 2, node.height * LEVEL
                    kind = "tree_token" if node is root else "tree_merge" if node.children else "tree_byte"
                    marks[kind].append(_mark(x, y, node, piece))
                    for child in node.children:
                        lines[0].extend([left + (child.start + child.stop - 1) / 2] * 2 + [x, None])
                        lines[1].extend([child.height * LEVEL, y, y, None])
            _characters(figure, piece, left)
            left += len(piece)
        count = sum(len(merge_tree(tokenizer, p)) for p in tokenizer.pieces(text.encode()))
        said = word("tree_word", lang, text=text.replace(" ", "␣"), bytes=len(text.encode()), tokens=count)
        middle = (begin + left - 1) / 2
        figure.add_annotation(
            x=middle, y=-1.35, text=f"<b>{said}</b>", showarrow=False, font={"size": 16}, yanchor="top"
        )
        left += GAP
    figure.add_trace(
        trace(
            "scatter",
            x=lines[0],
            y=lines[1],
            mode="lines",
            line={"color": "#52606d", "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for kind, nodes in marks.items():
        if nodes:
            figure.add_trace(_trace(kind, nodes, lang))
    width, height = max(left - GAP, 1), (highest + 2.6) * LEVEL
    figure.update_layout(**plain_layout(150 + 62 * height, left=24, right=24, top=20, bottom=60, size=15))
    figure.update_layout(legend=LEGEND)
    figure.update_xaxes(visible=False, range=[-0.9, width - 0.1], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-2.0, highest * LEVEL + 0.6], fixedrange=True)
    return figure


def _mark(x: float, y: float, node: Node, piece: bytes) -> dict[str, Any]:
    own = piece[node.start : node.stop]
    text = own.decode("utf-8", "replace").replace(" ", "␣") if node.children else _byte(own)
    return {"x": x, "y": y, "rank": node.rank, "text": text, "bytes": own.hex(" ").upper()}


def _byte(own: bytes) -> str:
    return "␣" if own == b" " else own.decode() if 0x20 < own[0] < 0x7F else own.hex().upper()


def _trace(kind: str, nodes: list[dict[str, Any]], lang: str) -> Any:
    """Make the marks of one kind. Bytes and tokens show their text; a merge inside a token shows only its
    rank.
    """
    final = kind == "tree_token"
    inner = kind == "tree_merge"
    texts = [f"#{m['rank']}" if inner or (final and m["rank"] is not None) else m["text"] for m in nodes]
    wide = [max(26, 9 * len(t) + 12) for t in texts]
    return trace(
        "scatter",
        name=word(kind, lang),
        x=[m["x"] for m in nodes],
        y=[m["y"] for m in nodes],
        mode="markers+text",
        text=texts,
        textfont={"color": "#ffffff" if final else "#000000", "size": 14},
        marker={
            "symbol": "square" if kind == "tree_byte" else "circle",
            "size": wide if not final else [w + 4 for w in wide],
            "color": TOKEN if final else INNER if inner else BYTE,
            "line": {"color": TOKEN if final else "#52606d", "width": 2},
            "opacity": 1,
        },
        customdata=[
            f"{m['text']} · {m['bytes']}" + ("" if m["rank"] is None else f" · #{m['rank']}") for m in nodes
        ],
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def _characters(figure: Picture, piece: bytes, left: float) -> None:
    """Write each character of several bytes below them, with a line that spans these bytes."""
    at = 0
    for character in piece.decode("utf-8", "replace"):
        width = len(character.encode())
        if width > 1:
            first, last = left + at - 0.4, left + at + width - 0.6
            figure.add_shape(
                type="line", x0=first, x1=last, y0=-0.55, y1=-0.55, line={"color": "#52606d", "width": 2}
            )
            figure.add_annotation(
                x=(first + last) / 2,
                y=-0.6,
                text=character,
                showarrow=False,
                yanchor="top",
                font={"size": 18},
            )
        at += width
