"""A2: causal, padding and packed-document masks: which token can influence which, found by experiment."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm

from glasscluster.model.layers.attention import unfused_attention
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.visualize.figures.cells import Table, cells_figure, shade

DOCUMENTS = (5, 4, 3)  # lengths of packed documents
PADS = 3  # tokens of padding at the end
KINDS = ("none", "causal", "padding", "packed")


def allowed(kind: str, n: int) -> Any:
    """The mask [n, n] of truth values: whether query i may see key j."""

    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    document = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS))
    match kind:
        case "causal":
            return j <= i
        case "padding":
            return (j < n - PADS).expand(n, n)
        case "packed":
            return (j <= i) & (document[i] == document[j])
    return torch.ones(n, n, dtype=torch.bool)


def transformer(x: Any, weights: list[Any], mask: Any) -> Any:
    """Two layers on x [n, h]: attention under a mask, then an MLP, each with a residual connection."""

    for w_qkv, w_out, w_up, w_down in weights:
        q, k, v = (layer_norm(x, x.shape[-1:]) @ w_qkv).chunk(3, -1)
        scores = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
        x = x + scores.softmax(-1) @ v @ w_out
        x = x + gelu(layer_norm(x, x.shape[-1:]) @ w_up) @ w_down
    return x


def influence(mask: Any, x: Any, weights: list[Any]) -> list[list[float]]:
    """The matrix [n][n] of how far output i moves when input j is changed."""

    before, moved = transformer(x, weights, mask), []
    for j in range(len(x)):
        changed = x.clone()
        changed[j] += torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)
        moved.append((transformer(changed, weights, mask) - before).abs().amax(-1))
    return torch.stack(moved, -1).tolist()


def program(gpu: Any, h: int) -> dict[str, Any]:
    """Measure influence under every mask, additive masks in 16 bits, and the model's own causal attention."""
    n = sum(DOCUMENTS)
    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        shapes = ((h, 3 * h), (h, h), (h, 4 * h), (4 * h, h))
        weights = [
            [torch.randn(*s, generator=draw, dtype=torch.float64) * s[0] ** -0.5 for s in shapes]
            for _ in range(2)
        ]
        x = torch.randn(n, h, generator=draw, dtype=torch.float64)
        measured: dict[str, Any] = {kind: influence(allowed(kind, n), x, weights) for kind in KINDS}
        scores, hidden = torch.randn(n, n, generator=draw), ~allowed("packed", n)
        hidden[0] = True  # this query may see nothing
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            added = scores.to(dtype) + torch.where(hidden, -1e9, 0.0).to(dtype)
            attention = added.softmax(-1)
            measured[name] = int(attention.isnan().any(-1).sum())
            measured[f"uneven_{name}"] = float(attention[0].max() - attention[0].min())
        q, k, v = torch.randn(3, 1, 1, n, h, generator=draw, dtype=torch.float64)
    with gpu.region("forward", layer=0, micro_batch=0):
        ours = unfused_attention(q, k, v)
    with gpu.unrecorded():
        plain = (q @ k.mT * h**-0.5).masked_fill(~allowed("causal", n), float("-inf")).softmax(-1) @ v
        measured["difference"] = float((ours - plain).abs().max())
    return measured


@lesson
def masks(lab: Lab, h: int = 16) -> None:
    """A two-layer transformer under four masks: every input is changed in turn, and every output that moves
    is noted.
    """
    n = sum(DOCUMENTS)
    run = lab.run("masks", lab.text("four_masks"), program, h, gpus=1)
    measured = run.results[0]
    size = {
        "none": n * n,
        "causal": n * (n + 1) // 2,
        "padding": n * (n - PADS) + PADS,
        "packed": sum(k * (k + 1) // 2 for k in DOCUMENTS),
    }
    for kind in KINDS:
        moved = sum(x != 0 for row in measured[kind] for x in row)
        relation = "allowed(i, j), or i = j: the residual"
        name = lab.text(kind, pads=PADS, n=n)
        lab.row("pairs_with_influence", size[kind], moved, relation, unit="pairs", kind=name)
        wrong = pairs_not_as_masked(measured[kind], allowed(kind, n).tolist())
        lab.row("pairs_not_as_masked", 0, wrong, "allowed(i, j)", unit="pairs", kind=name)
    may = allowed("packed", n).tolist()
    leak = max(measured["packed"][i][j] for i in range(n) for j in range(n) if not may[i][j])
    lab.row("between_documents", 0, leak, "exactly 0", unit="absolute")
    lab.row("own_causal_attention", 0, measured["difference"], "float64", unit="absolute", tolerance=1e-12)
    lab.row(
        "nan_in_fp16", 1, measured["fp16"], "−1e9 is −∞ in fp16: 0/0 where a row sees nothing", unit="rows"
    )
    lab.row("nan_in_bf16", 0, measured["bf16"], "bf16 has the range of fp32", unit="rows")
    uneven, source = measured["uneven_bf16"], "beside −1e9 a score is less than a rounding"
    lab.row("uneven_in_bf16", 0, uneven, source, unit="absolute")

    packed, pairs = size["packed"], n * n
    lab.ask("pairs_allowed", packed, documents=listed(DOCUMENTS), n=n, pairs=pairs)

    def who_moves(lang: str) -> Any:
        return cells_figure([table(lab, kind, measured[kind], lang) for kind in KINDS], across=2)

    lab.figure("who_moves", who_moves)
    lab.tell("packed", view="tab=ledger", packed=packed, pairs=pairs)
    lab.tell("causal_alone", view="tab=ledger", across=size["causal"] - packed)
    lab.tell("padded_token", view="tab=ledger")
    lab.tell("added_mask", view="tab=ledger", fp16=measured["fp16"], bf16=measured["bf16"])
    lab.conclude(packed=packed, across=size["causal"] - packed)
    lab.explain()
    lab.own_number(packed=packed, pairs=pairs)


def pairs_not_as_masked(moved: list[list[float]], may: list[list[bool]]) -> int:
    """How many pairs have an influence that the mask forbids, or lack one that it allows.

    A token always influences itself, through the residual connection.
    """
    n = len(may)
    return sum((moved[i][j] != 0) != (may[i][j] or i == j) for i in range(n) for j in range(n))


def table(lab: Lab, kind: str, moved: list[list[float]], lang: str) -> Table:
    """One mask's table: how far each output moved with each input."""
    top = max(max(row) for row in moved)
    tokens = [str(i) for i in range(len(moved))]
    text = [["" if x else "0" for x in row] for row in moved]
    fill = [[shade(0.2 + 0.8 * x / top) if x else "#ffffff" for x in row] for row in moved]
    title = lab.word(kind, lang, pads=PADS, n=len(moved))
    return Table(title, tokens, tokens, text, fill, lab.word("input_changed", lang), lab.word("output", lang))
