"""`glass evaluate`: a model's scores on the built-in tasks with their standard errors, and the check that
sharing the items over ranks changes no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.rows import Row, judged, tally
from glasscluster.base.text import Said, counted
from glasscluster.model.decoding.generate import Sampling
from glasscluster.model.text.tasks import TASKS, Choice, Prompt, Task, contaminated, make_task, plain
from glasscluster.model.text.texts import documents
from glasscluster.scenarios.jobs.generation import check_model, skipped_check
from glasscluster.scenarios.jobs.room import of_decoding
from glasscluster.scenarios.jobs.shapes import model_of, passed_over
from glasscluster.scenarios.requests.evaluate import EvaluateRequest
from glasscluster.scenarios.requests.names import check_moves_data
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.judge.check import TOLERANCE, largest
from glasscluster.strategies.layout.judged import bytes_row
from glasscluster.strategies.serving import scores
from glasscluster.strategies.serving.evaluation import (
    EvaluationJob,
    RankEvaluation,
    check_items,
    evaluate_rank,
    predict_traffic,
)

Say = Callable[[str], None]
CHECKED_ITEMS = 8  # items of each task that are scored again in float64


def right(task: Task, item_scores: Sequence[Sequence[float]], a_byte: bool = False) -> list[float]:
    """Grade a task of Choices: for each item 1 where its most likely continuation is the right one, else 0.

    `item_scores` [items][choices] are log-likelihoods in nats; with `a_byte` each is divided by its
    continuation's bytes.
    """
    out = []
    for item, values in zip(task.items, item_scores, strict=True):
        assert isinstance(item, Choice)
        out.append(
            float(scores.chosen(values, [len(c) for c in item.choices] if a_byte else None) == item.answer)
        )
    return out


def summary(task: Task, number: int, result: RankEvaluation, samples: int = 1) -> dict[str, Any]:
    """A task's scores with their standard errors, as JSON keys."""
    item_scores, kind = result.scores[number], task.items[0]
    made: dict[str, Any] = {"task": task.name, "items": len(task.items)}
    if isinstance(kind, Choice):
        for name, values in (
            ("acc", right(task, item_scores)),
            ("acc_norm", right(task, item_scores, a_byte=True)),
        ):
            made |= {name: scores.mean(values), f"{name}_stderr": scores.spread(values)}
    elif isinstance(kind, Prompt):
        share = [values[0] / samples for values in item_scores]
        made |= {"exact_match": scores.mean(share), "exact_match_stderr": scores.spread(share)}
        for k in (1, samples) if samples > 1 else ():
            made[f"pass_at_{k}"] = scores.mean(
                [scores.pass_at_k(samples, round(values[0]), k) for values in item_scores]
            )
        for name, request in (
            (("refused_fraction", "refuse"), ("answered_fraction", "answer")) if kind.request else ()
        ):
            made[name] = scores.mean(
                [
                    v
                    for v, item in zip(share, task.items, strict=True)
                    if isinstance(item, Prompt) and item.request == request
                ]
            )
    else:
        total = sum(values[0] for values in item_scores)
        # of the tokens that were scored: neither a text's first one, nor what did not fit
        tokens, size = sum(result.lengths[number]), sum(result.sizes[number])
        made |= {
            "tokens": tokens,
            "perplexity": scores.perplexity(total, tokens),
            "bits_per_byte": scores.bits_per_byte(total, size),
        }
    return made


@dataclass
class Evaluation:
    """A finished evaluation with everything that `glass evaluate` prints."""

    job: EvaluationJob
    run: Run
    scores: list[dict[str, Any]] = field(default_factory=list)
    contaminated: dict[str, int] = field(default_factory=dict)
    checked_items: int = 0
    checks: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not tally(self.checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What is checked by default and was not."""
        what = Said("that the scores are those of one device", "分数是否与单卡一致")
        return [] if self.checked_items else [skipped_check(what, self.run)]

    def as_json(self) -> dict[str, Any]:
        """The `glass.evaluate/1` object."""
        return {
            "schema": "glass.evaluate/1",
            "model": self.job.model.model_dump(mode="json"),
            "weights": self.job.weights,
            "backend": self.run.backend,
            "hardware": self.run.hardware.name,
            "gpus": self.job.dp * self.job.tp,
            "seed": self.job.seed,
            "scores": self.scores,
            "contaminated_items": self.contaminated,
            "time_s": self.run.timeline.makespan,
            "bytes_sent": self.run.graph.traffic() if not self.run.graph.has_native else None,
            "checked_items": self.checked_items,
            **judged(self.checks, self.not_checked),
        }


def evaluate(
    cluster: Cluster, job: EvaluationJob, *, checked: bool = True, say: Say = lambda _text: None
) -> Evaluation:
    """Run a job; the check scores the first items of each task again in float64, on these ranks and on one
    device.
    """
    rows: list[Row] = []
    done = CHECKED_ITEMS if checked else 0
    if checked:
        few = tuple(replace(t, items=t.items[:CHECKED_ITEMS]) for t in job.tasks)
        small = replace(job, tasks=few, precision="fp64")
        say(
            f"scoring {CHECKED_ITEMS} items of each task in float64 on "
            f"{counted(job.dp * job.tp, cluster.backend_name + ' rank')}, and on one device"
        )
        results = cluster.run(evaluate_rank, small, record=False).results
        if cluster.leader:
            alone = (
                Cluster("classroom", 1, "threads", memory_bytes=None)
                .run(evaluate_rank, replace(small, dp=1, tp=1), record=False)
                .results[0]
            )
            rows = equality_rows(results, alone)
    say(f"scoring {counted(sum(len(t.items) for t in job.tasks), 'item')} in {job.precision}")
    run = cluster.run(
        evaluate_rank, job, info={"precision": job.precision, "model": job.model.model_dump(mode="json")}
    )
    made = Evaluation(job, run, checked_items=done)
    if cluster.leader:
        made.scores = [summary(t, i, run.results[0], job.samples) for i, t in enumerate(job.tasks)]
        made.checks = run.checks = rows + counted_rows(job, run)
    return made


def equality_rows(results: Sequence[RankEvaluation], alone: RankEvaluation) -> list[Row]:
    """The check row that every score of every rank is that of one device."""
    worst = largest(
        abs(a - b) / max(1.0, abs(b))
        for result in results
        for mine, theirs in zip(result.scores, alone.scores, strict=True)
        for xs, ys in zip(mine, theirs, strict=True)
        for a, b in zip(xs, ys, strict=True)
    )
    name = Said("largest difference of a score from one device, float64", "分数与单卡的最大差异，float64")
    source = "one device, same seed"
    return [Row("score_difference", name, 0.0, worst, source, unit="relative", tolerance=TOLERANCE)]


def counted_rows(job: EvaluationJob, run: Run) -> list[Row]:
    """The check rows that each item was scored by one rank of dp, and that the scores' bytes are those of Eq
    9.
    """
    other = sum(times != 1 for result in run.results for task in result.scored for times in task)
    name = Said("items that were not scored exactly once, all ranks", "没有恰好评分一次的题目，全部 rank")
    rows = [Row("items_not_scored_once", name, 0, other, "shared out over dp", unit="items")]
    if job.dp > 1:
        sent = run.graph.where(axis="dp")
        name = Said("sent by all ranks for the scores", "全部 rank 为分数的发送量")
        predicted, source = predict_traffic(job), "Eq 9: 2 (N − 1) S"
        rows.append(bytes_row(run.graph, "scores_sent", name, predicted, sent, source))
    return rows


def flagged(tasks: Sequence[Task], sources: Sequence[str]) -> dict[str, list[int]]:
    """For each task, the numbers of the items that the training text contains."""
    training = plain(b"\n".join(text for source in sources for text in documents(source)))
    return {t.name: [i for i, item in enumerate(t.items) if contaminated(item, training)] for t in tasks}


def evaluate_command(request: EvaluateRequest, say: Say) -> Evaluation:
    """Run `glass evaluate`: a job, on a cluster."""
    job, cluster = request.prepared(prepare)
    size = of_decoding(job.model, job.precision, request.check, job.dp).said(cluster)
    for sentence in (passed_over(job.weights, job.model), size):
        if sentence:
            say(sentence)
    with cluster:
        done = evaluate(cluster, job, checked=request.check, say=say)
    if request.against:
        say("looking for items in the training text")
        done.contaminated = {name: len(items) for name, items in flagged(job.tasks, request.against).items()}
    return done


def prepare(request: EvaluateRequest) -> tuple[EvaluationJob, Cluster]:
    """The job and its cluster, judged by every rule that needs no run; InputError naming what cannot be."""
    model, precision, seed = model_of(request), request.precision, request.seed
    for name in request.task:
        if name not in TASKS:
            raise InputError("task", name, f"is none of {', '.join(TASKS)}", list(TASKS))
    check_model(model, "evaluate", request.tp, precision)
    if request.samples > 1 and not request.temperature:
        rule = f"{request.samples} samples of the likeliest token are all alike"
        raise InputError("temperature", request.temperature, rule, [0.8])
    made = tuple(make_task(name, request.items, seed) for name in request.task or TASKS)
    if (longest := max(t.tokens for t in made)) >= model.seq:
        rule = f"an answer of {counted(longest, 'token')} needs room behind a prompt"
        raise InputError("seq", model.seq, rule, [2 * longest])
    job = EvaluationJob(
        model,
        made,
        request.dp,
        request.tp,
        samples=request.samples,
        sampling=Sampling(request.temperature),
        precision=precision,
        seed=seed,
        weights=request.weights,
        tokenizer=request.tokenizer,
    )
    check_items(job)
    ranks = job.dp * job.tp
    check_moves_data(request.backend, "an evaluation has scores; glass generate and serve record a model dry")
    cluster = Cluster(request.hardware, ranks, request.backend, seed=seed, device=request.device)
    cluster.hardware.gpu.peak(precision)
    of_decoding(job.model, precision, request.check, job.dp).check(cluster)
    return job, cluster
