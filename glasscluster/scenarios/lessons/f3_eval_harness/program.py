"""F3: how much an accuracy says: its standard error, paired items, two normalisations, the prompt,
contamination; refusals on both sides of a threshold; and a judge that looks at place and length.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import batch, corpus
from glasscluster.model.text.tasks import (
    Choice,
    Task,
    Text,
    contaminated,
    facts,
    make_task,
    plain,
    practice,
    requests,
)
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs import evaluation
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving import safety, scores
from glasscluster.strategies.serving.evaluation import EvaluationJob, evaluate_rank
from glasscluster.visualize.figures.plots import bars, lines
from glasscluster.visualize.figures.scores import Score, interval_figure, paired_figure


def learn(
    model: Any, text: bytes, stops: tuple[int, ...], folders: list[str], lr: float = 5e-3, tokens: int = 32
) -> None:
    """Train one process on a text, 16 pieces of `tokens` tokens a step, and save the weights at some
    steps.
    """

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


def margins(task: Any, item_scores: Any) -> list[float]:
    """For each item: how much more likely the right continuation is than the best wrong one, in nats.

    Above 0 the item is answered right.
    """
    gaps = []
    for item, values in zip(task.items, item_scores, strict=True):
        wrong = [value for n, value in enumerate(values) if n != item.answer]
        gaps.append(values[item.answer] - max(wrong))
    return gaps


FIRST, SECOND, OF = 0.712, 0.704, 1000  # the question's accuracies, and the items of each
WANTED = 1.96  # standard errors: a difference that chance gives in 5 % of cases
DRAWS = 4000
KINDS = ("early", "late")  # moments of the training
RANKS = 4
BRACKETS, NEXT_LINE, OTHER_WORDS = 1, 2, 3  # places of the tasks after arithmetic
RIGHT_FIRST, RIGHT_SECOND = 4, 5  # and of those in which the model judges two answers
LABELLED, SKEW, TRIED = 300, 0.85, 200  # requests of a kind; how many of the labelled sound as they are meant
FEW = 0.05  # of look-alikes refused
WORDS = ("sums", "brackets", "next_line", "other_words")


@lesson
def eval_harness(lab: Lab, items: int = 120, early: int = 120, late: int = 300) -> None:
    """A small GPT at two moments of its training answers the same items, shared out over four ranks; then
    other words, other sums, and planted items.
    """
    training = corpus(None).tobytes()
    tasks = make_tasks(items)
    by_moment = train_and_score(lab, tasks, training, (early, late))
    right = {
        (kind, how): [
            evaluation.right(t, by_moment[kind].scores[i], how == "acc_norm") for i, t in enumerate(tasks)
        ]
        for kind in KINDS
        for how in ("acc", "acc_norm")
    }
    mean = {key: [scores.mean(values) for values in by_task] for key, by_task in right.items()}
    for task, share, values in zip(tasks, mean["late", "acc"], right["late", "acc"], strict=True):
        expected, counted = scores.predict_error(share, items), scores.spread(values)
        lab.row("standard_error", expected, counted, "Eq 41", unit="", tolerance=1e-12, task=task.name)
    comparison = scores.paired(right["early", "acc"][BRACKETS], right["late", "acc"][BRACKETS])
    won_less_lost = round(comparison.difference * items)
    lab.row(
        "won_less_lost", comparison.better - comparison.worse, won_less_lost, "the same items", unit="items"
    )
    read = check_planted(lab, training)
    reworded = scores.paired(right["late", "acc"][OTHER_WORDS], right["late", "acc"][BRACKETS])
    other_errors = abs(reworded.difference) / reworded.error if reworded.error else 0.0
    lab.row("other_words", 1, int(other_errors > 3), "the same items, paired", unit="yes")
    throw_coins(lab)

    errors = (FIRST - SECOND) / scores.predict_unpaired(FIRST, SECOND, OF)
    lab.ask("standard_errors", errors, first=f"{100 * FIRST:.1f}", second=f"{100 * SECOND:.1f}", of=OF)
    figures_of_scores(lab, tasks, right, by_moment, {"early": early, "late": late})
    late_scores = by_moment["late"].scores
    refusals, leak = check_refusals(lab), check_leak(lab, items)
    verdicts, lengths = (
        check_judge(lab, late_scores),
        check_length(lab, tasks[NEXT_LINE], late_scores[NEXT_LINE]),
    )
    share = (FIRST + SECOND) / 2
    enough: dict[str, Any] = {
        "of": OF,
        "wanted": WANTED,
        "needed": round(2 * share * (1 - share) * (WANTED / (FIRST - SECOND)) ** 2),
    }
    lab.tell("points", view="tab=ledger", errors=errors, **enough)
    unpaired = scores.predict_unpaired(mean["early", "acc"][BRACKETS], mean["late", "acc"][BRACKETS], items)
    lab.tell(
        "same_items",
        won=comparison.better,
        lost=comparison.worse,
        error=comparison.error,
        unpaired=unpaired,
        p=comparison.p,
    )
    prompt: dict[str, Any] = {how: mean["late", how][NEXT_LINE] for how in ("acc", "acc_norm")}
    prompt |= {"a": mean["late", "acc"][BRACKETS], "b": mean["late", "acc"][OTHER_WORDS]}
    flagged = sum(contaminated(item, read) for item in tasks[NEXT_LINE].items)
    lab.tell("prompt_and_length", **prompt, flagged=flagged)
    lab.tell("refusals", view="tab=story", **refusals)
    lab.tell("leak", view="tab=ledger", **leak)
    lab.tell("judge", view="tab=story", **verdicts, **lengths)
    lab.tell("shared_out", view="tab=timeline&run=scoring")
    lab.conclude(errors=errors)
    lab.explain()
    one_error = 100 * scores.predict_error(FIRST, OF)
    lab.card(
        one_error=one_error, other_errors=other_errors, **enough, **refusals, **leak, **verdicts, **lengths
    )
    lab.own_number(errors=errors, p=comparison.p)


def check_planted(lab: Lab, training: bytes) -> Any:
    """Check that pieces of the training text, planted among the items, are all flagged; returns that text as
    it is compared.
    """
    read, planted = plain(training), [Text(training[a : a + 120]) for a in range(0, 3_000_000, 200_000)]
    caught, source = sum(contaminated(item, read) for item in planted), "GPT-4 report, 2303.08774, appendix C"
    lab.row("flagged", len(planted), caught, source, unit="items")
    return read


def throw_coins(lab: Lab) -> None:
    """Check that four times the items halve the error of an accuracy, on many accuracies drawn at random."""
    draw, many = np.random.default_rng(lab.seed), 4 * OF
    spread = {n: float((draw.binomial(n, FIRST, DRAWS) / n).std()) for n in (OF, many)}
    # a standard deviation of D draws has the relative error 1/√(2D), a ratio of two of them 1/√D
    options: dict[str, Any] = {"unit": "×", "match": "statistical", "tolerance": 4 * 2 / DRAWS**0.5}
    source = "Eq 41: √n; four standard errors"
    counted = spread[OF] / spread[many]
    lab.row("error_of_four_times", 2.0, counted, source, **options, few=OF, many=many, draws=DRAWS)


def make_tasks(items: int) -> tuple[Task, ...]:
    """The tasks: sums, brackets, next lines, and the same brackets with the question in other words."""
    brackets = make_task("brackets", items)
    reworded = [
        Choice(b"Q: what closes " + item.context + b"?\nA: ", item.choices, item.answer)
        for item in brackets.items
        if isinstance(item, Choice)
    ]
    other_words = Task("brackets in other words", tuple(reworded))
    plain_tasks = make_task("arithmetic", items), brackets, make_task("next-line", items), other_words
    return (*plain_tasks, *judged(brackets))


def judged(task: Task) -> tuple[Task, Task]:
    """Two tasks in which a model reads a question and two answers, and says which is better: the right one in
    the first place, then in the second.
    """
    both: tuple[list[Choice], list[Choice]] = ([], [])
    for item in task.items:
        assert isinstance(item, Choice)
        right, wrong = item.choices[item.answer].strip(), item.choices[item.answer - 1].strip()
        for place, answers in enumerate(((right, wrong), (wrong, right))):
            context = item.context + b"\nA " + answers[0] + b"\nB " + answers[1] + b"\nbest "
            both[place].append(Choice(context, (b"A\n", b"B\n"), place))
    return Task("judge, right one first", tuple(both[0])), Task("judge, right one second", tuple(both[1]))


def train_and_score(
    lab: Lab, tasks: tuple[Task, ...], training: bytes, stops: tuple[int, int]
) -> dict[str, Any]:
    """Score the model at both moments; the ranks' scores are checked against one device, and counted."""
    model = make_model("tiny", layers=2, hidden=48, heads=4, seq=64, activation="gelu-tanh")
    four = lab.cluster(RANKS)
    with tempfile.TemporaryDirectory() as home:
        folders = [f"{home}/{kind}" for kind in KINDS]
        lab.say("training the model that is asked")
        with one_thread():
            learn(model, practice(0, 6000) + training[:40_000], stops, folders)
        few = tuple(replace(task, items=task.items[:6]) for task in tasks)
        exact = EvaluationJob(model, few, dp=RANKS, precision="fp64", weights=folders[1])
        alone = lab.cluster(1).run(evaluate_rank, replace(exact, dp=1), record=False).results[0]
        lab.checks += evaluation.equality_rows(four.run(evaluate_rank, exact, record=False).results, alone)
        late = replace(exact, tasks=tasks, precision="fp32")
        early = replace(late, weights=folders[0])
        by_moment = {"early": four.run(evaluate_rank, early, record=False).results[0]}
        run = lab.run("scoring", lab.text("scoring"), evaluate_rank, late, gpus=RANKS, precision="fp32")
        by_moment["late"] = run.results[0]
    lab.checks += evaluation.counted_rows(late, run)
    return by_moment


def check_refusals(lab: Lab) -> dict[str, float]:
    """Train a classifier on words, let its threshold sweep over harmful requests and look-alikes, and count
    both rates; returns what is told.
    """
    draw = random.Random(f"requests {lab.seed}")
    labelled = [requests(draw, kind, LABELLED, sharp, met=True) for kind, sharp in LABELS]
    classifier = safety.WordClassifier(*labelled)
    tried = {
        "harmful": requests(draw, "refuse", TRIED, 0.5),
        "look_alike": requests(draw, "answer", TRIED, 1.0),
        "harmless": requests(draw, "answer", TRIED, 0.0),
    }
    scored = {name: [classifier.score(text) for text in texts] for name, texts in tried.items()}
    harmful, look_alike = scored["harmful"], scored["look_alike"]
    curve = safety.sweep(harmful, look_alike)
    order = safety.pairs_in_order(harmful, look_alike)
    source = "pairs in order (Mann-Whitney)"
    lab.row("area", order, safety.area(curve), source, unit="", tolerance=1e-12)
    falls = sum(b < a for steps in pairwise(curve) for a, b in zip(*steps, strict=True))
    lab.row("falls", 0, falls, "a lower threshold refuses no fewer", unit="steps")
    refused, over = safety.rates(harmful, look_alike, 0.0)
    _, harmless = safety.rates(harmful, scored["harmless"], 0.0)
    yes: dict[str, Any] = {"unit": "yes", "match": "statistical"}
    lab.row("over_refusal", 1, int(over > harmless), "the same owners, other verbs", **yes)
    at_few = max(y for y, x in curve if x <= FEW)
    lab.row("threshold_trades", 1, int(at_few < refused), "both rates at two thresholds", **yes)
    lab.figure("sweep", lambda lang: sweep_figure(lab, curve, lang))
    rates = {"refused": refused, "over": over, "harmless": harmless, "at_few": at_few}
    return {**rates, "few": FEW, "area": order}


LABELS = (("refuse", SKEW), ("answer", 1 - SKEW))


def check_leak(lab: Lab, items: int) -> dict[str, float]:
    """Plant half of a set of facts in the text of a byte model, flag them, and score with and without what is
    flagged; returns what is told.
    """
    draw = random.Random(f"facts {lab.seed}")
    questions = facts(draw, items)
    planted = questions[: items // 2]
    text = b"".join(item.context + item.choices[item.answer] for item in planted) + practice(lab.seed, 300)
    model, read = safety.ByteModel(text), plain(text)
    flagged = [contaminated(item, read) for item in questions]
    source = "every piece compared"
    lab.row("planted_flagged", len(planted), sum(flagged[: len(planted)]), source, unit="items")
    lab.row("others_flagged", 0, sum(flagged[len(planted) :]), source, unit="items")
    values = [[model.loglikelihood(item.context, choice) for choice in item.choices] for item in questions]
    right = [float(scores.chosen(v) == item.answer) for v, item in zip(values, questions, strict=True)]
    clean = [r for r, flag in zip(right, flagged, strict=True) if not flag]
    leaky = [r for r, flag in zip(right, flagged, strict=True) if flag]
    better = int(scores.mean(leaky) > scores.mean(clean)) if leaky and clean else 0
    lab.row("leak_helps", 1, better, "the same model", unit="yes", match="statistical")
    error = scores.spread(clean)
    return {"with_all": scores.mean(right), "without": scores.mean(clean), "without_error": error}


def check_judge(lab: Lab, late: Sequence[Any]) -> dict[str, float]:
    """Count how often the model's verdict on two answers changes when they are exchanged, and check that
    against its margins; returns what is told.
    """
    margins_of = [[a - b for a, b in late[task]] for task in (RIGHT_FIRST, RIGHT_SECOND)]
    pairs = list(zip(*margins_of, strict=True))
    flips = sum(safety.flipped(first, second) for first, second in pairs)
    parts = [safety.content_and_position(first, second) for first, second in pairs]
    stronger = sum(abs(position) > abs(content) for content, position in parts)
    lab.row("flips", stronger, flips, "|position| > |content|", unit="items")
    first = scores.mean([float(m > 0) for m, _ in pairs])
    second = scores.mean([float(m < 0) for _, m in pairs])
    both = scores.mean([float(content > 0) for content, _ in parts])
    figure = {"right_first": first, "right_second": second, "both_orders": both}
    lab.figure("orders", lambda lang: orders_figure(lab, figure, lang))
    return {"flips": flips / len(pairs), **figure}


def check_length(lab: Lab, task: Task, late: Any) -> dict[str, float]:
    """Count how often the shortest choice is taken: by the sum, and by what is left of it when its slope over
    length is taken off; returns what is told.
    """
    lengths = [[len(choice) for choice in item.choices] for item in task.items if isinstance(item, Choice)]
    flat = [[x for row in rows for x in row] for rows in (lengths, late)]
    slope = safety.slope(*flat)
    even = [[s - slope * n for s, n in zip(*both, strict=True)] for both in zip(late, lengths, strict=True)]
    left = safety.slope(flat[0], [x for row in even for x in row])
    lab.row("no_slope_left", 0, left, "least squares", unit="nats a byte", tolerance=1e-9)
    taken = [sum(shortest(s, n) for s, n in zip(v, lengths, strict=True)) for v in (late, even)]
    yes: dict[str, Any] = {"unit": "yes", "match": "statistical"}
    lab.row("sum_takes_short", 1, int(taken[0] > taken[1]), "the same items", **yes)
    guess = scores.mean([n.count(min(n)) / len(n) for n in lengths])
    by_sum, by_even = (many / len(lengths) for many in taken)
    return {"slope": slope, "short_sum": by_sum, "short_even": by_even, "short_guess": guess}


def shortest(values: Sequence[float], lengths: Sequence[int]) -> bool:
    """Whether the best of the values is of a shortest choice."""
    return lengths[scores.chosen(values)] == min(lengths)


# ---- draw --------------------------------------------------------------------------------------------------
def figures_of_scores(lab: Lab, tasks: Any, right: Any, by_moment: Any, steps: dict[str, int]) -> None:
    """Draw the accuracies of both moments, the items one by one, and two ways to choose."""
    two_moments = {kind: right[kind, "acc"] for kind in KINDS}
    lab.figure("two_moments", lambda lang: intervals(lab, two_moments, steps, lang))
    margin = {kind: margins(tasks[BRACKETS], by_moment[kind].scores[BRACKETS]) for kind in KINDS}
    lab.figure("item_by_item", lambda lang: item_by_item(lab, margin, steps, lang))
    two_ways = {how: right["late", how] for how in ("acc", "acc_norm")}
    lab.figure("two_ways", lambda lang: intervals(lab, two_ways, {}, lang))


def sweep_figure(lab: Lab, curve: Sequence[tuple[float, float]], lang: str) -> Any:
    """Draw refusals of harmful requests over those of look-alikes, as the threshold falls."""
    over, refused = [100 * x for _, x in curve], [100 * y for y, _ in curve]
    series: dict[str, Any] = {
        lab.word("thresholds", lang): (over, refused),
        lab.word("no_skill", lang): ([0, 100], [0, 100]),
    }
    return lines(series, lab.word("refused_look_alikes", lang), lab.word("refused_harmful", lang))


def orders_figure(lab: Lab, shares: dict[str, float], lang: str) -> Any:
    """Draw how often the judge prefers the right answer: in the first place, in the second, over both."""
    groups = [lab.word(name, lang) for name in shares]
    series = {lab.word("prefers_right", lang): [100 * share for share in shares.values()]}
    return bars(groups, series, lab.word("prefers_right", lang))


def intervals(lab: Lab, right: dict[str, Any], steps: dict[str, int], lang: str) -> Any:
    """Draw accuracies with their confidence intervals, task by task."""
    series = {}
    for key, by_task in right.items():
        name = lab.word(key, lang, steps=steps.get(key))
        known = by_task[: len(WORDS)]  # without those in which the model judges
        series[name] = [Score(scores.mean(values), scores.spread(values)) for values in known]
    return interval_figure([lab.word(w, lang) for w in WORDS], series, lab.word("accuracy", lang), [0.25] * 4)


def item_by_item(lab: Lab, margin: dict[str, list[float]], steps: dict[str, int], lang: str) -> Any:
    """Draw every item as a point: the margin of the early model against that of the late one."""
    early, late = [lab.word("nats", lang) + lab.word(kind, lang, steps=steps[kind]) for kind in KINDS]
    verdicts = (
        lab.word("both_right", lang),
        lab.word("only_early", lang),
        lab.word("only_late", lang),
        lab.word("both_wrong", lang),
    )
    return paired_figure(margin["early"], margin["late"], early, late, verdicts)
