"""F1: a loss curve that went wrong, and the few probes that explain it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.scenarios.emergency_room.diagnosis import RULES
from glasscluster.scenarios.emergency_room.emergency_room import (
    BACK,
    BY_NAME,
    CASES,
    FEW_STEPS,
    STEPS,
    Treated,
    examine,
    job_of,
)
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import dots, lines

FIRST = 5  # the case of seed 0
LOWER = 10  # times lower: what is tried first when a loss blows up


@lesson
def loss_blow_up(lab: Lab, fault: str = "drawn") -> None:
    """A small GPT is trained as it should be, broken in one way, with its cure, and with what most people try
    first: a lower rate. Probes on every rank look on. `--fault` chooses what breaks; else the seed does.
    """
    if fault != "drawn" and fault not in BY_NAME:
        raise InputError("fault", fault, "is not one of the causes", ["drawn", *BY_NAME])
    case = BY_NAME[fault] if fault != "drawn" else CASES[(lab.seed + FIRST) % len(CASES)]
    steps = STEPS if case.name == "bad-batch" else FEW_STEPS
    job = job_of(case, "broken", lab.seed, steps)
    charts = {"broken": examine(case, "broken", lab, steps, title=lab.text("patient"))}
    charts |= {state: examine(case, state, lab, steps) for state in ("healthy", "cured")}
    lower_rate = replace(case, broken=case.broken | {"lr": job.plan.lr / LOWER})
    slower = examine(lower_rate, "broken", lab, steps)
    twice = examine(BY_NAME["norm-counted-twice"], "broken", lab, 2)
    if not lab.leader:
        return
    treated, well, broken, cured = Treated(case, charts), charts["healthy"], charts["broken"], charts["cured"]
    vocab = job.model.vocab
    chance: dict[str, Any] = {"unit": "nats", "match": "statistical", "tolerance": 0.1}
    lab.row("first_loss", math.log(vocab), well.losses[0], "Eq 37, ± 0.1", **chance)
    check_norms(lab, well, twice)
    number = {rule.cause: i for i, rule in enumerate(RULES, start=1)}
    named = number.get(treated.diagnosis, 0)
    lab.row("rule_that_names_it", number[case.name], named, "diagnosis.py: probes alone", unit="rule")
    check_the_cure(lab, treated, cured.loss < slower.loss)
    read = Said(*(readings(broken.signs, lang) for lang in (0, 1)))
    lab.ask("rule", named, readings=read, ln_v=math.log(vocab), rules=len(RULES))
    runs = {"healthy": well, "broken": broken, "cured": cured, "slower": slower}
    figures(lab, runs, same=cured.losses == well.losses)
    lab.tell("held_out", view="tab=story", broken_loss=broken.loss, sound_loss=well.loss)
    rule = next(rule for rule in RULES if rule.cause == case.name)
    cause: dict[str, Any] = {"case": number[case.name], "rules": len(RULES)}
    ill = Said(*case.title)
    lab.tell("rule", view="tab=story", **cause, rule=Said(*rule.text), case_name=ill)
    losses: dict[str, Any] = {"cured_loss": cured.loss, "won_back": treated.back, "slower_loss": slower.loss}
    lab.tell("cure", view="tab=story", cure=Said(*case.cure), **losses, lower=LOWER)
    lab.tell("norms", view="tab=ledger", norm_ratio=twice.signs.norm_ratio, tp=TENSOR_RANKS)
    lab.conclude(case_name=ill)
    lab.explain()
    lab.card(**losses, lower=LOWER, rules=len(RULES), norm_ratio=twice.signs.norm_ratio, tp=TENSOR_RANKS)
    lab.own_number(case_name=ill, broken_loss=broken.loss, cured_loss=cured.loss)


TENSOR_RANKS = 2


def readings(signs: Any, lang: int) -> str:
    """Every rule with the reading of its sign, a line each: what the question's answer is found from."""
    between = (": ", "：")[lang]
    each = (
        f"{i}. {rule.text[lang]}{between}{rule.reading(signs):.3g}" for i, rule in enumerate(RULES, start=1)
    )
    return "\n" + "\n".join(each) + "\n"


def check_the_cure(lab: Lab, treated: Treated, better: bool) -> None:
    """Check that no rule holds in a sound run, and that the cure takes the damage back."""
    holding = sum(rule.holds(treated.charts["healthy"].signs) for rule in RULES)
    lab.row("rules_in_sound_run", 0, holding, "diagnosis.py", unit="rules")
    back: dict[str, Any] = {"unit": "", "match": "statistical", "tolerance": 1 - BACK}
    source = f"three runs of one seed, at least {BACK:.0%}"
    lab.row("damage_taken_back", 1.0, min(treated.back, 1.0), source, **back)
    lab.row("cure_beats_lower_rate", 1, int(better), "two runs of one seed", unit="yes", lower=LOWER)


def check_norms(lab: Lab, well: Any, twice: Any) -> None:
    """Check the norm that clips against the true one: in the healthy run, and where tensor ranks are summed
    twice.
    """
    off = max(abs(vital.norm_ratio - 1) for vital in well.vitals)
    source = "Eq 38: √Σ‖g‖² over shards, replicated parameters once"
    lab.row("clipping_norm", 0.0, off, source, unit="relative", tolerance=1e-5)
    ratio, source = math.sqrt(TENSOR_RANKS), "Eq 38: every square counts t times"
    lab.row("norm_counted_twice", ratio, twice.signs.norm_ratio, source, unit="×", tolerance=1e-5)


def figures(lab: Lab, runs: dict[str, Any], same: bool) -> None:
    """Draw the curves, every sign, the broken run rank by rank, and gradient norms."""
    two = ("healthy", "broken")
    steps = range(len(runs["broken"].losses))

    def name(run: str, lang: str) -> str:
        return lab.word(run, lang, lower=LOWER)

    def curves(lang: str) -> Any:
        series = {name(run, lang): (steps, chart.losses) for run, chart in runs.items()}
        return lines(series, lab.word("step", lang), lab.word("loss", lang), log_y=True)

    def signs(lang: str) -> Any:
        series = {}
        for run in two:
            series[name(run, lang)] = [abs(rule.reading(runs[run].signs)) / rule.limit for rule in RULES]
        rules = [Said(*rule.text).in_(lang) for rule in RULES]
        return dots(rules, series, lab.word("sign_over_limit", lang), least=1e-4, limit=1.0)

    def by_rank(lang: str) -> Any:
        each = zip(*(vital.rank_losses for vital in runs["broken"].vitals), strict=True)
        series = {f"{lab.word('rank', lang)} {i}": (steps, losses) for i, losses in enumerate(each)}
        return lines(series, lab.word("step", lang), lab.word("loss", lang))

    def norms(lang: str) -> Any:
        series = {name(run, lang): (steps, [drawable(vital) for vital in runs[run].vitals]) for run in two}
        return lines(series, lab.word("step", lang), lab.word("gradient_norm", lang), log_y=True)

    lab.figure("curve_of_the_same" if same else "curve", curves)
    lab.figure("signs", signs)
    lab.figure("by_rank", by_rank)
    lab.figure("norms", norms)


def drawable(vital: Any) -> float:
    """A gradient norm for a logarithmic axis: at least 1e-9, also where it is not finite."""
    return max(vital.gradient_norm, 1e-9) if math.isfinite(vital.gradient_norm) else 1e-9
