"""A9: why token and position embeddings may be added: the four terms of the dot product, before and after
training.
"""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.plots import bars

TERMS = ("token_token", "token_position", "position_token", "position_position")


def four_terms(state: dict[str, Any], tokens: Any, config: Any) -> dict[str, Any]:
    """Split the first layer's attention scores [a, s, s] of a sequence into four terms.

    With x = e + p and q = W_q (γ (x − mean x) / σ + β) + b_q, a query is a part from e, a part from p, and a
    constant, which is counted with the position. Mean and σ of the norm are those of the sum x, so that the
    split is linear.
    """
    e, p = state["embedding.token"][tokens], state["embedding.position"][: len(tokens)]
    h, a = config.hidden, config.heads
    x = e + p
    sigma = (x.var(-1, unbiased=False, keepdim=True) + config.norm_eps).sqrt()
    weight, bias = state["layers.0.qkv_weight"][: 2 * h], state["layers.0.qkv_bias"][: 2 * h]
    gamma, beta = state["layers.0.norm1_weight"], state["layers.0.norm1_bias"]
    of_e, of_p = (((part - part.mean(-1, keepdim=True)) / sigma * gamma) @ weight.T for part in (e, p))
    of_p = of_p + beta @ weight.T + bias
    (q_e, k_e), (q_p, k_p) = (
        [y.unflatten(-1, (a, -1)).transpose(0, 1) for y in part.chunk(2, -1)] for part in (of_e, of_p)
    )
    scale = (h // a) ** -0.5
    terms = [q @ k.mT * scale for q, k in ((q_e, k_e), (q_e, k_p), (q_p, k_e), (q_p, k_p))]
    normed = torch.nn.functional.layer_norm(x, (h,), gamma, beta, config.norm_eps)
    q, k = (y.unflatten(-1, (a, -1)).transpose(0, 1) for y in (normed @ weight.T + bias).chunk(2, -1))
    score = q @ k.mT * scale
    side_by_side = torch.cat([e, p], -1) @ torch.cat([weight.T, weight.T])  # through the matrix twice
    difference = side_by_side - x @ weight.T
    visible = torch.ones_like(score[0], dtype=torch.bool).tril()
    cosine = torch.nn.functional.cosine_similarity(e[:, None], p[None], dim=-1)
    return {
        "sum": float((sum(terms) - score).abs().max()),
        "side by side": float(difference.abs().max()),
        "spread": [float(t[:, visible].var()) for t in terms],
        "cosine": float(cosine.square().mean().sqrt()),
    }


@lesson
def adding_positions(lab: Lab, steps: int = 30, hidden: int = 64, seq: int = 64) -> None:
    """A small GPT learns real text; before and after, the first layer's scores are taken apart into their
    four terms.
    """
    model = make_model("tiny", layers=2, hidden=hidden, seq=seq)
    lab.train("gpt", lab.text("first_step"), model=model, steps=1, dp=2, global_batch=8)
    job = Job(make_plan(dp=2, global_batch=8, lr=5e-3), model, steps)
    text = [job.batch(step) for step in range(steps)]
    newborn = GPTStage(model, seed=0, dtype=torch.float64)
    born = {name: parameter.detach().double() for name, (parameter, _) in newborn.full_names().items()}
    learnt = train_one_device(model, text, job.optimizer, 1.0, 0, torch.float32)
    grown = {name: weight.double() for name, weight in learnt.weights[-1].items()}
    tokens = text[0][0][0]
    by_moment = {"before": four_terms(born, tokens, model), "after": four_terms(grown, tokens, model)}

    for when, terms in by_moment.items():
        source = "the dot product of two sums, float64"
        lab.row(
            "terms_less_score",
            0,
            terms["sum"],
            source,
            unit="absolute",
            tolerance=1e-10,
            when=lab.text(f"word_{when}"),
        )
        source, difference = "(e+p)W = [e, p][W; W]", terms["side by side"]
        lab.row(
            "added_less_side_by_side",
            0,
            difference,
            source,
            unit="absolute",
            tolerance=1e-12,
            when=lab.text(f"word_{when}"),
        )
    expected, cosine = hidden**-0.5, by_moment["before"]["cosine"]
    source = "random vectors of dimension h: 1/√h"
    lab.row("cosine", expected, cosine, source, unit="", match="statistical", tolerance=0.02)

    share = {when: [100 * v / sum(f["spread"]) for v in f["spread"]] for when, f in by_moment.items()}
    cross = {when: percent[1] + percent[2] for when, percent in share.items()}
    chance: dict[str, Any] = {"unit": "%", "match": "statistical"}
    lab.row("cross_terms_before", 50, cross["before"], "two of four terms", **chance, tolerance=10)
    lab.row("cross_terms_after", 1, int(cross["after"] > 1), "measured", unit="")
    cosine_after = by_moment["after"]["cosine"]
    lab.row("tables_apart", 0, int(cosine_after < cosine), "measured", unit="")
    lab.ask("cross_terms", cross["after"], cross_before=cross["before"], steps=steps)

    def four_bars(lang: str) -> Any:
        series = {
            lab.word("before", lang): share["before"],
            lab.word("after", lang, steps=steps): share["after"],
        }
        return bars([lab.word(term, lang) for term in TERMS], series, lab.word("share_variance", lang))

    lab.figure("four_terms", four_bars)
    lab.tell("add_up", view="tab=ledger", worst=max(f["sum"] for f in by_moment.values()))
    cosines: dict[str, Any] = {"cosine_before": cosine, "cosine_after": cosine_after}
    lab.tell("cosines", view="tab=ledger", hidden=hidden, expected=expected, **cosines)
    crosses: dict[str, Any] = {f"cross_{when}": percent for when, percent in cross.items()}
    lab.tell("cross_terms", view="tab=story", **crosses, steps=steps)
    lab.tell("loss_fell", view="tab=story", first_loss=learnt.losses[0], last_loss=learnt.losses[-1])
    lab.conclude(cross_after=cross["after"])
    lab.explain()
    lab.own_number(cross_after=cross["after"])
    lab.card(cross_after=cross["after"] / 100, **cosines)
