"""F1: a loss curve that went wrong, and the few probes that say why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from glasscluster.base.errors import InputError
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
    """A small GPT is trained as it should be, broken in one way, with its cure, and with what most people try first: a lower rate. Probes on every rank look on. `--fault` chooses what breaks; else the seed does."""

    if fault != "drawn" and fault not in BY_NAME:
        raise InputError("fault", fault, "is not one of the causes", ["drawn", *BY_NAME])
    case = BY_NAME[fault] if fault != "drawn" else CASES[(lab.seed + FIRST) % len(CASES)]
    steps = STEPS if case.name == "bad-batch" else FEW_STEPS
    job = job_of(case, "broken", lab.seed, steps)
    broken = examine(case, "broken", lab, steps, title=lab.text("patient_something_broken"))
    charts = {"broken": broken} | {state: examine(case, state, lab, steps) for state in ("healthy", "cured")}
    slower = examine(replace(case, broken=case.broken | {"lr": job.plan.lr / LOWER}), "broken", lab, steps)
    twice = examine(BY_NAME["norm-counted-twice"], "broken", lab, 2)
    if not lab.leader:
        return
    treated, well = Treated(case, charts), charts["healthy"]
    number, tp = {rule.cause: i + 1 for i, rule in enumerate(RULES)}, 2
    lab.row(
        "first_loss_sound_model_against_ln",
        math.log(job.model.vocab),
        well.losses[0],
        "F37, ± 0.1",
        unit="nats",
        match="statistical",
        tolerance=0.1,
    )
    lab.row(
        "largest_distance_clipping_norm_true_norm",
        0.0,
        max(abs(v.norm_ratio - 1) for v in well.vitals),
        "F38: √Σ‖g‖² over shards, replicated parameters once",
        unit="relative",
        tolerance=1e-5,
    )
    lab.row(
        "clipping_norm_over_true_norm_where",
        math.sqrt(tp),
        twice.signs.norm_ratio,
        "F38: every square counts t times",
        unit="×",
        tolerance=1e-5,
    )
    lab.row(
        "number_rule_names_cause",
        number[case.name],
        number.get(treated.found, 0),
        "diagnosis.py: probes alone",
        unit="rule",
    )
    lab.row(
        "rules_hold_sound_run", 0, sum(rule.holds(well.signs) for rule in RULES), "diagnosis.py", unit="rules"
    )
    lab.row(
        "share_damage_cure_takes_back",
        1.0,
        min(treated.back, 1.0),
        f"three runs of one seed, at least {BACK:.0%}",
        unit="",
        match="statistical",
        tolerance=1 - BACK,
    )
    lab.ask("number", well.losses[0], "nats", vocab=job.model.vocab)
    rule = next(r for r in RULES if r.cause == case.name)
    ill, cure = treated.case.title, treated.case.cure
    runs = (well, broken, charts["cured"], slower)

    def curves(lang: str) -> Any:
        return lines(
            {
                n: (range(steps), c.losses)
                for n, c in zip(
                    (
                        lab.word("should", lang),
                        lab.word("broken", lang),
                        lab.word("cured", lang),
                        lab.word("broken_rate", lang, LOWER=LOWER),
                        lab.word("step", lang),
                        lab.word("loss_nats_token", lang),
                        lab.word("gradient_norm", lang),
                        lab.word("sign_over_limit", lang),
                        lab.word("rank", lang),
                    ),
                    runs,
                    strict=False,
                )
            },
            lab.word("step", lang),
            lab.word("loss_nats_token", lang),
            log_y=True,
        )

    def rules(lang: str) -> Any:
        sign = [[abs(r.reading(c.signs)) / r.limit for r in RULES] for c in runs[:2]]
        return dots(
            [r.text[lang == "zh"] for r in RULES],
            dict(
                zip(
                    (
                        lab.word("should", lang),
                        lab.word("broken", lang),
                        lab.word("cured", lang),
                        lab.word("broken_rate", lang, LOWER=LOWER),
                        lab.word("step", lang),
                        lab.word("loss_nats_token", lang),
                        lab.word("gradient_norm", lang),
                        lab.word("sign_over_limit", lang),
                        lab.word("rank", lang),
                    ),
                    sign,
                    strict=False,
                )
            ),
            lab.word("sign_over_limit", lang),
            least=1e-4,
            limit=1.0,
        )

    def by_rank(lang: str) -> Any:
        each = zip(*(v.rank_losses for v in broken.vitals), strict=True)
        return lines(
            {f"{lab.word('rank', lang)} {i}": (range(steps), losses) for i, losses in enumerate(each)},
            lab.word("step", lang),
            lab.word("loss_nats_token", lang),
        )

    def norms(lang: str) -> Any:
        sound = [
            [max(v.gradient_norm, 1e-9) if math.isfinite(v.gradient_norm) else 1e-9 for v in c.vitals]
            for c in runs[:2]
        ]
        return lines(
            {
                n: (range(steps), x)
                for n, x in zip(
                    (
                        lab.word("should", lang),
                        lab.word("broken", lang),
                        lab.word("cured", lang),
                        lab.word("broken_rate", lang, LOWER=LOWER),
                        lab.word("step", lang),
                        lab.word("loss_nats_token", lang),
                        lab.word("gradient_norm", lang),
                        lab.word("sign_over_limit", lang),
                        lab.word("rank", lang),
                    ),
                    sound,
                    strict=False,
                )
            },
            lab.word("step", lang),
            lab.word("gradient_norm", lang),
            log_y=True,
        )

    same = charts["cured"].losses == well.losses
    lab.figure(lab.text("curve_broke_cured_run", same=same), curves)
    lab.figure("every_sign_over_limit", rules)
    lab.figure("patient_loss_rank_rank", by_rank)
    lab.figure("gradient_norm_before_clipping", norms)
    lab.tell("held_out_broken_run", view="tab=story", broken_loss=broken.loss, sound_loss=well.loss)
    lab.tell(
        "rule_first_holds_cause",
        view="tab=story",
        case=number[case.name],
        rules=len(RULES),
        rule=rule.text[1],
        case_name=ill[1],
    )
    lab.tell(
        "cure_ends_takes_back",
        view="tab=story",
        cure=cure[1],
        cured_loss=charts["cured"].loss,
        won_back=treated.back,
        LOWER=LOWER,
        slower_loss=slower.loss,
    )
    lab.tell("where_tensor_ranks_norms", view="tab=ledger", norm_ratio=twice.signs.norm_ratio, tp=tp)
    lab.conclude(case_name=ill[1])
    lab.explain()
    lab.own_number(case_name=ill[1], broken_loss=broken.loss, cured_loss=charts["cured"].loss)
