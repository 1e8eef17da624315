"""F3: what an accuracy is worth: its error, the same items for both models, two normalisations, the prompt, and text seen before."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import batch, corpus
from glasscluster.model.text.tasks import Choice, Task, Text, contaminated, make_task, plain, practice
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs import evaluation
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.exchange.replica import one_thread
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving import scores
from glasscluster.strategies.serving.evaluation import EvaluationJob, evaluate_rank
from glasscluster.visualize.figures.scores import Score, interval_figure, paired_figure


def learn(
    model: Any, text: bytes, stops: tuple[int, ...], folders: list[str], lr: float = 5e-3, tokens: int = 32
) -> None:
    """One process trains on a text, 16 pieces of so many tokens a step, and saves the weights at some steps."""

    stage, words, optimizer = GPTStage(model), np.frombuffer(text, dtype=np.uint8), Optimizer("adamw", lr=lr)
    state = [[torch.zeros_like(p) for _ in range(optimizer.moments)] for p in stage.parameters()]
    for step in range(max(stops) + 1):
        if step in stops:
            hugging_face.save(stage, folders[stops.index(step)])
        inputs, targets = batch(words, step, 16, tokens, model.vocab, 0)
        stage.zero_grad()
        (stage(inputs, targets) / targets.numel()).backward()
        with torch.no_grad():
            for p, moments in zip(stage.parameters(), state, strict=True):
                optimizer.update(p, p.grad if p.grad is not None else torch.zeros_like(p), moments, step + 1)


def margins(task: Any, found: Any) -> list[float]:
    """How far the right continuation is likelier than the best wrong one, in nats: above 0 the item is right."""
    return [
        v[i.answer] - max(x for n, x in enumerate(v) if n != i.answer)
        for i, v in zip(task.items, found, strict=True)
    ]


@lesson
def eval_harness(lab: Lab, items: int = 120, early: int = 120, late: int = 300) -> None:
    """A small GPT at two moments of its training answers the same items, shared out over four ranks; then other words, other sums, and planted items."""

    model = make_model("tiny", layers=2, hidden=48, heads=4, seq=64, activation="gelu-tanh")
    training = corpus(None).tobytes()
    brackets = make_task("brackets", items)
    asked = Task(
        "brackets in other words",
        tuple(
            Choice(b"Q: what closes " + i.context + b"?\nA: ", i.choices, i.answer)
            for i in brackets.items
            if isinstance(i, Choice)
        ),
    )
    tasks = (make_task("arithmetic", items), brackets, make_task("next-line", items), asked)
    kinds, found = ("early", "late"), {}
    with tempfile.TemporaryDirectory() as home:
        folders = [f"{home}/{kind}" for kind in kinds]
        lab.say("training the model that is asked")
        with one_thread():
            learn(model, practice(0, 6000) + training[:40_000], (early, late), folders)
        exact = EvaluationJob(
            model,
            tuple(replace(t, items=t.items[:6]) for t in tasks),
            dp=4,
            precision="fp64",
            weights=folders[1],
        )
        alone = lab.cluster(1).run(evaluate_rank, replace(exact, dp=1), record=False).results[0]
        lab.checks += evaluation.equality_rows(
            lab.cluster(4).run(evaluate_rank, exact, record=False).results, alone
        )
        job = replace(exact, tasks=tasks, precision="fp32")
        found["early"] = (
            lab.cluster(4).run(evaluate_rank, replace(job, weights=folders[0]), record=False).results[0]
        )
        run = lab.run(
            "scoring", lab.text("items_shared_out_over"), evaluate_rank, job, gpus=4, precision="fp32"
        )
        found["late"] = run.results[0]
    lab.checks += evaluation.counted_rows(job, run)

    right = {
        (k, n): [evaluation.right(t, found[k].scores[i], n == "acc_norm") for i, t in enumerate(tasks)]
        for k in kinds
        for n in ("acc", "acc_norm")
    }
    mean = {key: [scores.mean(v) for v in values] for key, values in right.items()}
    for i, task in enumerate(tasks):
        p = mean["late", "acc"][i]
        lab.row(
            "standard_error_accuracy",
            scores.predict_error(p, items),
            scores.spread(right["late", "acc"][i]),
            "F41",
            unit="",
            tolerance=1e-12,
            task=task.name,
        )
    told = scores.paired(right["early", "acc"][1], right["late", "acc"][1])
    lab.row(
        "late_minus_early_brackets_items_won",
        told.better - told.worse,
        round(told.difference * items),
        "the same items",
        unit="items",
    )
    apart = scores.predict_unpaired(mean["early", "acc"][1], mean["late", "acc"][1], items)
    planted = Task("planted", tuple(Text(training[a : a + 120]) for a in range(0, 3_000_000, 200_000)))
    seen = plain(training)
    lab.row(
        "items_copied_training_text_flagged",
        len(planted.items),
        sum(contaminated(i, seen) for i in planted.items),
        "GPT-4 report, 2303.08774, appendix C",
        unit="items",
    )
    flagged = sum(contaminated(i, seen) for i in tasks[2].items)
    errors = 0.008 / scores.predict_unpaired(0.712, 0.704, 1000)
    needed = round(2 * 0.708 * 0.292 * (1.96 / 0.008) ** 2)
    lab.ask("number", errors, "×")

    lab.figure(
        "same_items_two_moments",
        lambda lang: interval_figure(
            (
                lab.word("sums", lang),
                lab.word("brackets", lang),
                lab.word("next_line", lang),
                lab.word("brackets_other_words", lang),
            ),
            {
                n: [Score(scores.mean(v), scores.spread(v)) for v in right[k, "acc"]]
                for k, n in zip(
                    kinds,
                    (
                        lab.word("after_steps", lang, early=early),
                        lab.word("after_steps_2", lang, late=late),
                    ),
                    strict=True,
                )
            },
            lab.word("accuracy_interval_dotted_guessing", lang),
            [0.25] * 4,
        ),
    )
    lab.figure(
        "brackets_item_item_right",
        lambda lang: paired_figure(
            margins(brackets, found["early"].scores[1]),
            margins(brackets, found["late"].scores[1]),
            lab.word("nats_right_answer", lang) + lab.word("after_steps", lang, early=early),
            lab.word("nats_right_answer", lang) + lab.word("after_steps_2", lang, late=late),
            (
                lab.word("both_right", lang),
                lab.word("only_early", lang),
                lab.word("only_late", lang),
                lab.word("both_wrong", lang),
            ),
        ),
    )
    lab.figure(
        "two_ways_choose_late",
        lambda lang: interval_figure(
            (
                lab.word("sums", lang),
                lab.word("brackets", lang),
                lab.word("next_line", lang),
                lab.word("brackets_other_words", lang),
            ),
            {
                name: [Score(scores.mean(v), scores.spread(v)) for v in right["late", n]]
                for n, name in zip(
                    ("acc", "acc_norm"),
                    (
                        lab.word("acc_sum_log", lang),
                        lab.word("acc_norm_same_byte", lang),
                    ),
                    strict=True,
                )
            },
            lab.word("accuracy_interval_dotted_guessing", lang),
            [0.25] * 4,
        ),
    )
    a, b = mean["late", "acc"][1], mean["late", "acc"][3]
    lab.tell("points_items_standard_errors", view="tab=ledger", errors=errors, needed=needed)
    lab.tell(
        "brackets_items_won_lost", won=told.better, lost=told.worse, error=told.error, apart=apart, p=told.p
    )
    lab.tell("same_brackets_other_words", b=b, a=a)
    lab.tell(
        "next_lines_differ_length",
        acc=mean["late", "acc"][2],
        acc_norm=mean["late", "acc_norm"][2],
        flagged=flagged,
    )
    lab.tell("item_scored_rank_all", view="tab=timeline&run=scoring")
    lab.conclude(errors=errors)
    lab.explain()
    lab.own_number(errors=errors, p=told.p)
