"""A11: positions compared: what a score knows of two places, which encodings linear attention can keep, and
what becomes of each beyond the trained length.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels.rope import rope
from glasscluster.model.layers.attention import unfused_attention
from glasscluster.model.layers.position import alibi, buckets, sinusoidal, slopes
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.two_before import VOCAB, best_loss, draw_table, language, train
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.palette import SERIES
from glasscluster.visualize.figures.plots import lines

Tensors = dict[str, Any]
ABSOLUTE, RELATIVE = ("learned", "sinusoidal", "turned_embeddings"), ("shaw", "t5", "alibi", "rope")
TERMS = ("content_content", "content_position", "position_content", "position_position")
BUCKETS, FARTHEST, REACH = 8, 32, 16  # of T5's table, and of Shaw's: distances beyond share a row
DRAWS, SEEDS = 64, 2
STRETCHED = (
    "sinusoidal",
    "relative",
    "alibi",
    "rope",
)  # the GPT's options that have a position for any token


# ---- one head ----------------------------------------------------------------------------------------------
def draw_head(n: int, h: int, last: int, draw: torch.Generator) -> Tensors:
    """Contents [n, h] of a head, its two matrices [h, h], and tables for positions up to `last`."""

    def normal(*size: int) -> Any:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    made: Tensors = {"content": normal(n, h), "w_q": normal(h, h) / h**0.5, "w_k": normal(h, h) / h**0.5}
    made |= {"learned": normal(last + 1, h) / 2**0.5, "sinusoidal": sinusoidal(last + 1, h)}
    made |= {"shaw": normal(2 * REACH + 1, h) / h**0.5, "t5": normal(BUCKETS)}
    return made


def turned(x: Any, at: Any) -> Any:
    """Rows of x [n, d] rotated to the positions `at`, by the kernel that trains the GPT."""
    config = make_model("tiny", hidden=x.shape[1], heads=1, position="rope")
    spans = [number for place in at.tolist() for number in (place, 1)]
    return rope(x[None, :, None].contiguous(), spans, config)[0, :, 0]


def four_terms(kind: str, at: Any, head: Tensors) -> Any:
    """The score of every pair of tokens that stand at positions `at`, as content with content, content with
    position, position with content, position with position: [4, n, n].
    """
    e, w_q, w_k = head["content"], head["w_q"], head["w_k"]
    if kind == "turned_embeddings":
        e = turned(e, at)
    q, k, distance = e @ w_q, e @ w_k, at[:, None] - at
    terms = torch.zeros(4, len(e), len(e), dtype=e.dtype)
    if kind == "rope":
        q, k = turned(q, at), turned(k, at)
    terms[0] = q @ k.T
    if kind in ("learned", "sinusoidal"):
        of_position = head[kind][at]
        p_q, p_k = of_position @ w_q, of_position @ w_k
        terms[1], terms[2], terms[3] = q @ p_k.T, p_q @ k.T, p_q @ p_k.T
    elif kind == "shaw":  # k_n + r_(m-n)
        terms[1] = torch.einsum("md,mnd->mn", q, head["shaw"][distance.clamp(-REACH, REACH) + REACH])
    elif kind == "t5":
        farthest = int(distance.max())
        terms[3] = head["t5"][buckets(farthest + 1, BUCKETS, FARTHEST, False)[distance + farthest]]
    elif kind == "alibi":
        terms[3] = -slopes(1)[0] * distance.abs()
    return terms / e.shape[1] ** 0.5


def spread(scores: Any) -> float:
    """The largest difference of two scores [n, n] whose tokens are equally far from each other."""
    diagonals = [scores.diagonal(offset) for offset in range(1 - len(scores), len(scores))]
    return max(float(x.max() - x.min()) for x in diagonals)


def explained(scores: Any) -> float:
    """The share of the variance of scores [n, n] that their distance explains: a mean for each distance is
    fitted, in %.
    """
    n, fit = len(scores), torch.zeros_like(scores)
    for offset in range(1 - n, n):
        fit.diagonal(offset).fill_(scores.diagonal(offset).mean())
    return 100 * (1 - float((scores - fit).square().mean() / scores.var(correction=0)))


def relative_part(form: Any) -> Any:
    """What of a matrix [h, h] between two sinusoidal positions, p_m A p_n, depends on m - n alone.

    Columns 2i and 2i + 1 are the sine and cosine of one frequency. A 2 x 2 block keeps m - n alone where it
    turns and scales, [[a, b], [-b, a]], and only on the diagonal: h numbers of h².
    """
    part = torch.zeros_like(form)
    for i in range(0, len(form), 2):
        (a, b), (c, d) = form[i : i + 2, i : i + 2]
        same, turn = (a + d) / 2, (b - c) / 2
        part[i, i] = part[i + 1, i + 1] = same
        part[i, i + 1], part[i + 1, i] = turn, -turn
    return part


def of_one_head(n: int, h: int, shift: int, draw: torch.Generator) -> Tensors:
    """Score all pairs with every encoding: as they stand, shifted, and twice as far apart."""
    head, at = draw_head(n, h, shift + 2 * n, draw), torch.arange(n)
    measured: Tensors = {"shifted": {}, "stretched": {}, "there": {}}
    for kind in ABSOLUTE + RELATIVE:
        here, there, far = (four_terms(kind, where, head) for where in (at, at + shift, 2 * at))
        measured["shifted"][kind] = [float((a - b).abs().max()) for a, b in zip(there, here, strict=True)]
        measured["stretched"][kind] = [float((a - b).abs().max()) for a, b in zip(far, here, strict=True)]
        measured["there"][kind] = [bool(term.any()) for term in here]
    p = head["sinusoidal"][:n]
    own = p @ p.T
    shares, fits = [], []
    for _ in range(DRAWS):
        w_q, w_k = torch.randn(2, h, h, generator=draw, dtype=torch.float64)
        form = w_q @ w_k.T / h
        part = relative_part(form)
        shares.append(100 * float(part.square().sum() / form.square().sum()))
        fits.append(explained(p @ form @ p.T))
    measured |= {"own": spread(own), "own_fit": explained(own), "part": spread(p @ part @ p.T)}
    measured |= {"share": sum(shares) / DRAWS, "fit": sum(fits) / DRAWS}
    lag = 8
    series = {"own": own, "between": p @ form @ p.T, "kept": p @ part @ p.T}
    measured["along"] = {key: (x.diagonal(-lag) / x.std()).tolist() for key, x in series.items()}
    return measured | {"lag": lag}


# ---- linear attention --------------------------------------------------------------------------------------
def quadratic(q: Any, k: Any, v: Any, factor: Any) -> Any:
    """Linear attention as a matrix of scores: q, k [n, d], v [n, d_v], a factor for each pair [n, n]."""
    return (q @ k.T * factor).tril() @ v


def recurrent(q: Any, k: Any, v: Any, step: Any) -> Any:
    """The same with one state [d, d_v]: every token multiplies it by the same `step`, and adds itself."""
    state, out = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype), []
    for token in range(len(q)):
        state = step(state) + k[token, :, None] @ v[token, None]
        out.append(q[token, None] @ state)
    return torch.cat(out)


def by_convolution(q: Any, k: Any, v: Any, factor: Any) -> Any:
    """The same for any factor of the distance, [n] from distance 0 on: a convolution over the tokens."""
    added, size = k[:, :, None] * v[:, None], 2 * len(q)
    spectrum = torch.fft.rfft(added, size, 0) * torch.fft.rfft(factor, size)[:, None, None]
    return torch.einsum("nd,ndv->nv", q, torch.fft.irfft(spectrum, size, 0)[: len(q)])


def states_needed(factor: Any) -> int:
    """The smallest state that makes factor(1), factor(2), ... by one fixed linear step: the rank of
    factor(i + j + 1), past by future (Kronecker's theorem).
    """
    past = torch.arange((len(factor) - 1) // 2)
    values = torch.linalg.svdvals(factor[past[:, None] + past + 1])
    return int((values > 1e-9 * values[0]).sum())


def of_linear_attention(n: int, d: int, draw: torch.Generator) -> Tensors:
    """Every encoding as scores and as a state; what each form costs; how many states each factor needs."""
    q, k, v = torch.randn(3, n, d, generator=draw, dtype=torch.float64)
    q, k = (1 + torch.nn.functional.elu(x) for x in (q, k))  # φ of 2006.16236, section 3.2.1
    at, decay = torch.arange(n), math.exp(-slopes(4)[1])
    distance = (at[:, None] - at).clamp(0)
    faded, whole = decay ** distance.double(), torch.ones(n, n, dtype=torch.float64)
    turn = turned(torch.eye(d, dtype=torch.float64), torch.ones(d, dtype=torch.long))  # one token's rotation
    q_turned, k_turned = turned(q, at), turned(k, at)
    pairs = {
        "plain": (quadratic(q, k, v, whole), recurrent(q, k, v, lambda s: s)),
        "decay": (quadratic(q, k, v, faded), recurrent(q, k, v, lambda s: decay * s)),
        "rope": (quadratic(q_turned, k_turned, v, whole), recurrent(q, k, v, lambda s: turn @ s)),
        "both": (
            quadratic(q_turned, k_turned, v, faded),
            recurrent(q, k, v, lambda s: decay * (turn @ s)),
        ),
    }
    table = torch.randn(BUCKETS, generator=draw, dtype=torch.float64).exp()
    of_table = table[buckets(n, BUCKETS, FARTHEST, False)[n - 1 :]]  # from distance 0 on
    pairs["t5"] = quadratic(q, k, v, of_table[distance]), by_convolution(q, k, v, of_table)
    measured: Tensors = {"apart": {x: float((a - b).abs().max()) for x, (a, b) in pairs.items()}}
    lags = torch.arange(n, dtype=torch.float64)
    factors = {"decay": decay**lags, "rope": torch.cos(lags / 2), "t5": of_table}
    measured["states"] = {name: states_needed(factor) for name, factor in factors.items()}
    return measured | {"softmax": alibi_by_decay(n, d, draw)}


def alibi_by_decay(n: int, d: int, draw: torch.Generator, heads: int = 4) -> float:
    """ALiBi's attention of the GPT less e^score times a decay a token, normalised: the largest difference."""
    q, k, v = torch.randn(3, 1, heads, n, d, generator=draw, dtype=torch.float64)
    with_bias = unfused_attention(q, k, v, bias=alibi(n, heads))
    distance = (torch.arange(n)[:, None] - torch.arange(n)).clamp(0)
    decay = torch.tensor([math.exp(-slope) for slope in slopes(heads)], dtype=torch.float64)
    weights = ((q @ k.mT / d**0.5).exp() * decay[:, None, None] ** distance).tril()
    return float((with_bias - weights @ v / weights.sum(-1, keepdim=True)).abs().max())


# ---- beyond the trained length -----------------------------------------------------------------------------
def scores_of(model: Any, tokens: Any) -> Any:
    """The logits of a GPT, [rows, n, vocabulary]."""
    return model.head.scores(model.layers["0"](model.embedding(tokens)))


def beyond(kind: str, seed: int, steps: int, seq: int, times: int) -> list[float]:
    """Train a GPT of one layer on `seq` tokens; its loss on the first, second, ... `seq` of longer texts."""
    shape: Tensors = {"layers": 1, "hidden": 32, "heads": 4, "vocab": VOCAB, "init_std": 32**-0.5}
    shape |= {"position": kind, "relative_buckets": 16, "relative_distance": seq, "attention": "unfused"}
    lengths = seq, times * seq
    model, longer = [GPTStage(make_model("tiny", seq=s, **shape), seed=seed) for s in lengths]
    draw = torch.Generator().manual_seed(seed)
    table = draw_table(draw)
    weights = train(model, steps, seq, table, draw)
    with torch.no_grad():
        for theirs, ours in zip(longer.full_names().values(), weights, strict=True):
            theirs[0].copy_(ours)
        tokens, targets = language(64, times * seq, table, draw)
        logits = scores_of(longer, tokens)
        losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")[:, 2:]
    return [float(part.mean()) for part in losses.split([seq - 2] + [seq] * (times - 1), 1)]


# ---- the lesson --------------------------------------------------------------------------------------------
def program(gpu: Any, sizes: tuple[int, ...], d: int) -> None:
    """Linear attention as a matrix of scores and as a state, for every number of tokens."""
    q, k, v = torch.randn(3, sizes[-1], d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, size in enumerate(sizes):
        factor, few = torch.ones(size, size, dtype=torch.float64), slice(0, size)
        with gpu.region("forward", layer=2 * i, micro_batch=0):
            quadratic(q[few], k[few], v[few], factor)
        with gpu.region("forward", layer=2 * i + 1, micro_batch=0):
            recurrent(q[few], k[few], v[few], lambda state: 0.9 * state)


@lesson
def positions_compared(
    lab: Lab, n: int = 64, h: int = 64, shift: int = 1000, d: int = 16, steps: int = 100
) -> None:
    """One head scores all pairs with every encoding, shifted and stretched; linear attention keeps some of
    them in a state; then small GPTs read texts eight times as long as those they were trained on.
    """
    if n < FARTHEST:
        raise InputError("n", n, f"must reach the distances of T5's table, {FARTHEST} or more", [FARTHEST])
    for name, value in (("h", h), ("d", d)):
        if value < 2 or value % 2:
            raise InputError(name, value, "frequencies take two columns each: an even number", [16, 32, 64])
    seq, times = 16, 8
    sizes, draw = (n // 2, n, 2 * n), torch.Generator().manual_seed(lab.seed)
    graph = lab.run("linear", lab.text("linear"), program, sizes, d, gpus=1).graph
    measured = of_one_head(n, h, shift, draw)
    moved = {kind: max(measured["shifted"][kind]) for kind in ABSOLUTE + RELATIVE}
    for kind in RELATIVE:
        source = "Eq 4" if kind == "rope" else "it is looked up by m − n"
        tolerance: Tensors = {"unit": "absolute", "tolerance": 1e-11}
        lab.row("relative", 0, moved[kind], source, **tolerance, kind=lab.text(kind), shift=shift)
    for kind in ABSOLUTE:
        yes = int(moved[kind] > 0.1)
        lab.row("absolute", 1, yes, "measured", unit="", kind=lab.text(kind), shift=shift)
    rounding: Tensors = {"unit": "absolute", "tolerance": 1e-11}
    lab.row("own_product", 0, measured["own"], "Σ cos θ_i (m − n), float64", **rounding)
    lab.row("relative_part", 0, measured["part"], "blocks [[a, b], [−b, a]], float64", **rounding)
    # of h numbers of one variance the sum of squares scatters by √(2/h); five standard errors of the mean
    share = 100 / h
    chance: Tensors = {"match": "statistical", "tolerance": 5 * share * (2 / h / DRAWS) ** 0.5}
    lab.row("share", share, measured["share"], "h of h² numbers", unit="%", **chance)
    lab.ask("share", measured["share"], h=h, pairs=h // 2)
    state = linear_attention(lab, of_linear_attention(sizes[-1], d, draw))
    measured["flops"] = costs(lab, graph, sizes, d)
    seeds = range(lab.seed, lab.seed + SEEDS)
    losses = {kind: [beyond(kind, seed, steps, seq, times) for seed in seeds] for kind in STRETCHED}
    said = far_away(lab, losses, seq, times)
    figures(lab, measured, shift, sizes)
    beyond_length(lab, losses, seq, said["best"])
    values: Tensors = {"share": measured["share"], "fit": measured["fit"], "h": h}
    lab.tell("what_shifts", view="tab=story", shift=shift, rope=moved["rope"], sines=moved["sinusoidal"])
    lab.tell("sines", view="tab=ledger", own=measured["own"], **values)
    lab.tell("states", view="tab=ledger", **state)
    lab.tell("beyond", view="tab=story", seq=seq, **said)
    lab.conclude(share=measured["share"], t5=state["t5"])
    lab.explain()
    lab.own_number(**values)
    lab.card(seq=seq, shift=shift, **state, **said)


def linear_attention(lab: Lab, measured: Tensors) -> Tensors:
    """Rows of linear attention: both forms give the same, and how many states are needed."""
    rounding: Tensors = {"unit": "absolute", "tolerance": 1e-9}
    for kind, difference in measured["apart"].items():
        source = "2106.12566: a convolution" if kind == "t5" else "2307.08621, section 2.1"
        lab.row("two_forms", 0, difference, source, **rounding, kind=lab.text(f"linear_{kind}"))
    source = "e^(x − s(m−n)) = e^x · (e^−s)^(m−n)"
    lab.row("alibi_is_decay", 0, measured["softmax"], source, unit="absolute", tolerance=1e-12)
    exact = BUCKETS // 2  # distances with a bucket of their own
    last = math.ceil(exact * (FARTHEST / exact) ** ((BUCKETS - exact - 1) / (BUCKETS - exact)))
    expected = {
        "decay": (1, "one exponential"),
        "rope": (2, "cos is two: e^{iθ}, e^{−iθ}"),
        "t5": (last, "1910.10683: the first distance of the last bucket"),
    }
    for kind, (states, source) in expected.items():
        name = lab.text(f"linear_{kind}")
        lab.row("states", states, measured["states"][kind], source, unit="states", kind=name)
    return dict(measured["states"])


def costs(lab: Lab, graph: Any, sizes: tuple[int, ...], d: int) -> tuple[list[int], list[int]]:
    """Rows of what both forms cost, and their FLOPs for every number of tokens."""
    flops = [int(graph.flops[graph.layer == layer].sum()) for layer in range(2 * len(sizes))]
    for i, size in enumerate(sizes):
        lab.row("scores_cost", 4 * size**2 * d, flops[2 * i], "2n²d twice", unit="FLOPs", size=size)
        lab.row("state_costs", 4 * size * d**2, flops[2 * i + 1], "2nd² twice", unit="FLOPs", size=size)
    return flops[::2], flops[1::2]


def far_away(lab: Lab, losses: Tensors, seq: int, times: int) -> Tensors:
    """Rows of the GPTs beyond their trained length; each holds on every seed.

    Tried on ten seeds. On the second `seq` tokens sinusoidal positions lost 0.44 to 1.4 nats a token and rope
    0.0 to 0.27; on the last quarter of eight times the length sinusoidal 0.67 to 1.5, rope 0.85 to 2.1, T5's
    table 0.2 to 0.8, ALiBi -0.1 to 0.17. ALiBi's loss within the length was 0.09 to 0.27 above rope's.
    """
    far = {kind: [sum(x[-2:]) / 2 - x[0] for x in of_seeds] for kind, of_seeds in losses.items()}
    second = {kind: [x[1] - x[0] for x in of_seeds] for kind, of_seeds in losses.items()}
    rows = {
        "sinusoidal_breaks": sum(x > 0.2 for x in second["sinusoidal"]),
        "rope_breaks": sum(x > 0.5 for x in far["rope"]),
        "rope_next": sum(x < 0.5 for x in second["rope"]),
        "alibi_stays": sum(abs(x) < 0.3 for x in far["alibi"]),
        "alibi_pays": sum(a[0] > r[0] for a, r in zip(losses["alibi"], losses["rope"], strict=True)),
    }
    by_chance: Tensors = {"unit": "seeds", "match": "statistical"}
    for key, count in rows.items():
        lab.row(key, SEEDS, count, "measured", **by_chance, seq=seq, times=times, seeds=SEEDS)
    learned: Any = GPTStage(make_model("tiny", seq=seq, position="learned")).embedding
    lab.row("no_row", seq, len(learned.position), "a table of n rows", unit="positions", seq=seq)
    said = {f"{kind}_far": sum(x) / SEEDS for kind, x in far.items()}
    said |= {f"{kind}_in": sum(x[0] for x in losses[kind]) / SEEDS for kind in losses}
    said |= {f"{kind}_second": sum(x) / SEEDS for kind, x in second.items()}
    return {**said, "times": times, "seeds": SEEDS, "best": best_loss()}


def figures(lab: Lab, measured: Tensors, shift: int, sizes: tuple[int, ...]) -> None:
    """Draw which term knows what; one distance at many places; what both forms cost."""
    kinds = ("learned", "sinusoidal", "shaw", "t5", "alibi", "rope", "turned_embeddings")
    colours = {"none": "#ffffff", "content": "#e8e8e8", "distance": SERIES[0], "places": SERIES[1]}

    def knows(kind: str, term: int) -> str:
        if not measured["there"][kind][term]:
            return "none"
        if measured["shifted"][kind][term] > 1e-9:
            return "places"
        return "distance" if measured["stretched"][kind][term] > 1e-9 else "content"

    def terms(lang: str) -> Any:
        known = [[knows(kind, term) for term in range(4)] for kind in kinds]
        names, columns = [lab.word(kind, lang) for kind in kinds], [lab.word(term, lang) for term in TERMS]
        text = [[lab.word(f"knows_{x}", lang) for x in row] for row in known]
        return cells_figure([Table("", names, columns, text, [[colours[x] for x in row] for row in known])])

    def along(lang: str) -> Any:
        series = {}
        for key, values in measured["along"].items():
            series[lab.word(key, lang)] = (
                list(range(measured["lag"], measured["lag"] + len(values))),
                values,
            )
        axes = lab.word("place", lang), lab.word("score_over_spread", lang)
        return lines(series, *axes).update_traces(mode="lines")

    def both_forms(lang: str) -> Any:
        pair = dict(zip(("as_scores", "as_state"), measured["flops"], strict=True))
        series = {lab.word(key, lang): (sizes, flops) for key, flops in pair.items()}
        return lines(series, lab.word("tokens", lang), lab.word("flops", lang), log_x=True, log_y=True)

    lab.figure("terms", terms, shift=shift)
    lab.figure("along", along, lag=measured["lag"])
    lab.figure("costs", both_forms)


def beyond_length(lab: Lab, losses: Tensors, seq: int, best: float) -> None:
    """Draw the loss against the place in the text; bars reach from one seed to the other."""

    def by_place(lang: str) -> Any:
        series, at = {}, [seq * (1 + i) for i in range(len(losses["rope"][0]))]
        for kind, of_seeds in losses.items():
            middle = [(max(x) + min(x)) / 2 for x in zip(*of_seeds, strict=True)]
            series[lab.word(f"gpt_{kind}", lang)] = (at, middle)
        series[lab.word("best", lang)] = ([at[0], at[-1]], [best] * 2)
        drawn = lines(series, lab.word("up_to_token", lang), lab.word("loss", lang))
        for trace, of_seeds in zip(drawn.data, losses.values(), strict=False):
            half = [(max(x) - min(x)) / 2 for x in zip(*of_seeds, strict=True)]
            trace["error_y"] = {"type": "data", "array": half, "thickness": 2, "width": 5}
        return drawn.update_xaxes(tickvals=at)

    lab.figure("beyond_length", by_place, seq=seq)
