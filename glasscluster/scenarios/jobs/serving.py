"""`glass serve`: requests in, their tokens out, checked against each request alone, counted and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from glasscluster.base.rows import Row, judged, tally
from glasscluster.base.text import Said, counted
from glasscluster.model.decoding.generate import generate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs.generation import skipped_check, text
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.judge.check import TOLERANCE, difference
from glasscluster.strategies.numerics.widths import WIDTH
from glasscluster.strategies.serving import batching, generation, serving
from glasscluster.strategies.serving.batching import Schedule
from glasscluster.strategies.serving.serving import RankServing, ServingJob, make_schedule, serve_rank
from glasscluster.visualize.figures.slots import Held, Span

Say = Callable[[str], None]
SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass
class Serving:
    """A finished run with everything that `glass serve` prints."""

    job: ServingJob
    schedule: Schedule
    run: Run
    checks: list[Row] = field(default_factory=list)
    checked: bool = False  # each request was generated alone, too, and compared

    def __post_init__(self) -> None:
        self.times = serving.step_times(self.run.timeline, self.job, self.schedule)
        self.token_times = serving.token_times(self.job, self.schedule, self.times)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not tally(self.checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What is checked by default and was not."""
        what = Said(
            "that each request gets the tokens and logits that it gets alone",
            "每个请求的 token 与 logits 是否与单独生成时一致",
        )
        return [] if self.checked else [skipped_check(what, self.run)]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all requests over the seconds from moment 0 to the end of the last step."""
        return sum(map(len, self.token_times)) / self.times[-1][1]

    @property
    def first_token_s(self) -> list[float]:
        """Seconds from each request's arrival to its first token."""
        return [times[0] - r.arrival_s for times, r in zip(self.token_times, self.job.requests, strict=True)]

    @property
    def latency_s(self) -> list[float]:
        """Seconds from each request's arrival to its last token."""
        return [times[-1] - r.arrival_s for times, r in zip(self.token_times, self.job.requests, strict=True)]

    @property
    def idle_slots(self) -> float:
        """The share of slots, over all steps, in which no request got a token."""
        return 1 - sum(self.run.results[0].used) / (self.job.slots * len(self.schedule.steps))

    @property
    def empty_cache(self) -> float:
        """The share of the cache's reserved bytes that held no token, weighted by time."""
        result, spans = self.run.results[0], [b - a for a, b in self.times]
        held, filled = (
            sum(s * n for s, n in zip(spans, which, strict=True))
            for which in (result.reserved_bytes, result.filled_bytes)
        )
        return 1 - filled / held

    @property
    def recomputed(self) -> int:
        """How many tokens had their keys and values computed again after a preemption."""
        taken_in = sum(w.count for step in self.schedule.steps for w in step.work)
        return taken_in - sum(r.cached for r in self.job.requests)

    def spans(self) -> list[Span]:
        """Which request has which slot at which time; consecutive steps of one kind make one span."""
        spans, prefilled = list[Span](), set[int]()
        for step, (start, end) in zip(self.schedule.steps, self.times, strict=True):
            for w in step.work:
                kind = (
                    "held"
                    if not w.count
                    else "decode"
                    if w.start
                    else "again"
                    if w.request in prefilled
                    else "prefill"
                )
                prefilled.add(w.request)
                last = next((i for i in range(len(spans) - 1, -1, -1) if spans[i].slot == w.slot), None)
                if last is not None and spans[last][1:3] == (w.request, kind) and spans[last].end == start:
                    spans[last] = spans[last]._replace(end=end)
                else:
                    spans.append(Span(w.slot, w.request, kind, start, end))
        return spans

    def held(self) -> list[Held]:
        """The cache's reserved and filled bytes at the end of each step."""
        result = self.run.results[0]
        return [
            Held(t, *b)
            for (_, t), *b in zip(self.times, result.reserved_bytes, result.filled_bytes, strict=True)
        ]

    def grid(self, most: int = 120) -> str:
        """Slots by steps as text, at most `most` steps wide.

        P is a prefill, R a prefill again after a preemption, 0-9a-z a request that gets a token, - a request
        that has ended and still holds its slot.
        """
        rows = [[" "] * len(self.schedule.steps) for _ in range(self.job.slots)]
        prefilled: set[int] = set()
        for n, step in enumerate(self.schedule.steps):
            for w in step.work:
                taken_in = "R" if w.request in prefilled else "P"
                rows[w.slot][n] = (
                    "-" if not w.count else SIGNS[w.request % len(SIGNS)] if w.start else taken_in
                )
                prefilled.add(w.request)
        cut = "…" if len(self.schedule.steps) > most else ""
        return "\n".join(f"slot {slot:<3}|{''.join(row[:most])}{cut}" for slot, row in enumerate(rows))

    def as_json(self) -> dict[str, Any]:
        """The `glass.serve/1` object. Times are virtual, bytes are those of rank 0."""
        job, result = self.job, self.run.results[0]
        requests = [
            {
                "arrival_s": r.arrival_s,
                "prompt_tokens": len(r.prompt),
                "tokens": result.tokens[i] if result.tokens else None,
                "text": text(job.model, result.tokens[i]) if result.tokens else None,
                "time_to_first_token_s": self.first_token_s[i],
                "latency_s": self.latency_s[i],
                "preemptions": self.schedule.preemptions.count(i),
            }
            for i, r in enumerate(job.requests)
        ]
        steps = [
            {
                "start_s": a,
                "end_s": b,
                "work": [
                    {"slot": w.slot, "request": w.request, "start": w.start, "tokens": w.count}
                    for w in step.work
                ],
                "preempted": [r for _, r in step.preempted],
                "cache_reserved_bytes": result.reserved_bytes[n],
                "cache_filled_bytes": result.filled_bytes[n],
            }
            for n, (step, (a, b)) in enumerate(zip(self.schedule.steps, self.times, strict=True))
        ]
        return {
            "schema": "glass.serve/1",
            "model": job.model.model_dump(mode="json"),
            "weights": job.weights,
            "backend": self.run.backend,
            "hardware": self.run.hardware.name,
            "gpus": job.tp,
            "precision": job.precision,
            "policy": job.policy,
            "slots": job.slots,
            "block_tokens": job.block if job.policy == "continuous" else None,
            "blocks": job.blocks if job.policy == "continuous" else None,
            "time_s": self.times[-1][1],
            "tokens_per_s": self.tokens_per_s,
            "mean_time_to_first_token_s": sum(self.first_token_s) / len(requests),
            "mean_latency_s": sum(self.latency_s) / len(requests),
            "idle_slots_fraction": self.idle_slots,
            "empty_cache_fraction": self.empty_cache,
            "recomputed_tokens": self.recomputed,
            "cache_bytes": result.cache_bytes,
            "parameter_bytes": result.parameter_bytes,
            "requests": requests,
            "steps": steps,
            **judged(self.checks, self.not_checked),
        }


def serve(
    cluster: Cluster, job: ServingJob, *, checked: bool = True, say: Say = lambda _text: None
) -> Serving:
    """Plan and run a job; the check runs its steps once more in float64 and generates each request alone,
    without a cache.
    """
    say(
        f"planning {job.policy} batching of {counted(len(job.requests), 'request')} on {cluster.hardware.name}"
    )
    schedule = make_schedule(job, cluster.hardware)
    rows: list[Row] = []
    checked = checked and cluster.backend_name != "dry"
    if checked:
        say(
            f"checking {counted(len(schedule.steps), 'step')} in float64 on {counted(job.tp, cluster.backend_name + ' rank')}, "
            f"and each request alone"
        )
        results = cluster.run(
            serve_rank, replace(job, precision="fp64", capture=True), schedule, record=False
        ).results
        rows = equality_rows(job, results) if cluster.leader else []
    say(f"serving in {job.precision}, recording each step")
    run = cluster.run(
        serve_rank,
        job,
        schedule,
        info={"precision": job.precision, "model": job.model.model_dump(mode="json")},
    )
    made = Serving(job, schedule, run, checked=checked)
    if cluster.leader:
        made.checks = run.checks = rows + counted_rows(made)
    return made


@one_thread()
def equality_rows(job: ServingJob, served: Sequence[RankServing]) -> list[Row]:
    """The check rows that every rank's logits of every request are within 1e-10 of generating it alone on one
    device, and the tokens equal.
    """
    stage = GPTStage(job.model, seed=job.seed, dtype=torch.float64)
    if job.weights is not None:
        hugging_face.fill(stage, job.weights)
    worst, other = 0.0, 0
    for i, request in enumerate(job.requests):
        alone = generate(stage, [request.prompt], request.tokens)
        for rank in served:
            other += sum(a != b for a, b in zip(rank.tokens[i], alone.tokens[0], strict=True))
            for mine, right in zip(rank.logits[i], alone.logits, strict=True):
                worst = max(worst, difference(mine.cpu(), right[0], 0.0))
    source = "each request alone on one device, no cache"
    logits = Said(
        "largest logits difference from a request alone, float64",
        "与单独生成该请求的最大 logits 差异，float64",
    )
    tokens = Said(
        "tokens that a request alone would get otherwise, float64", "请求单独生成时会另选的 token 数，float64"
    )
    return [
        Row("logits_difference", logits, 0.0, worst, source, unit="relative", tolerance=TOLERANCE),
        Row("tokens_chosen_otherwise", tokens, 0, other, source, unit="tokens"),
    ]


def counted_rows(made: Serving) -> list[Row]:
    """The check rows of empty slots (Eq 33), lost blocks, the plan's clock and tensor-parallel traffic."""
    job, schedule, first = made.job, made.schedule, made.run.results[0]
    rows = []
    starts = [(step, begun) for step, (begun, _) in zip(schedule.steps, schedule.times, strict=True)]
    early = sum(job.requests[w.request].arrival_s > begun for step, begun in starts for w in step.work)
    name = Said("requests served before they arrive", "到达之前就被服务的请求")
    rows.append(Row("served_too_early", name, 0, early, "the plan's times", unit="requests"))
    end, replayed = schedule.times[-1][1], made.times[-1][1]
    name = Said("end of the last step, as planned", "最后一步的结束时间（按计划）")
    clock: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    rows.append(Row("end", name, end, None, "each step alone, recorded dry", simulated=replayed, **clock))
    written = written_tokens(made.run.graph, first.token_bytes)
    taken_in = sum(w.count for step in schedule.steps for w in step.work)
    name = Said("tokens written into the cache, all steps", "写入缓存的 token，所有步")
    source = "the plan: preempted ones twice"
    rows.append(Row("tokens_written", name, taken_in, written, source, unit="tokens"))
    if job.policy == "static":
        predicted = batching.predict_static(job.requests, batches(job, schedule), job.slots)[1]
        counted = sum(first.computed) - sum(first.used)
        name = Said("slots computed without a token, all steps", "计算了却没有得到 token 的槽位，所有步")
        rows.append(
            Row("slots_idle", name, predicted, counted, "Eq 33: 1 − mean/max of a batch", unit="slots")
        )
    else:
        rows += _paged_rows(made)
    if job.tp > 1:
        predicted = serving.predict_sent(job, schedule, WIDTH[job.precision])
        name = Said("sent by all ranks, all steps", "全部 rank 的发送量，所有步")
        rows.append(
            Row("sent", name, predicted, generation.traffic(made.run.graph), "Eq 18, forward; logits")
        )
    return rows


def _paged_rows(made: Serving) -> list[Row]:
    """The check rows of slots that blocks leave empty (Eq 33), and of blocks that are not given back."""
    job, schedule, first = made.job, made.schedule, made.run.results[0]
    pairs = zip(first.reserved_bytes, first.filled_bytes, strict=True)
    empty = [(reserved - filled) // first.token_bytes for reserved, filled in pairs]
    most = [(job.block - 1) * len(step.work) for step in schedule.steps]
    over = sum(n > m for n, m in zip(empty, most, strict=True))
    left = sum(r.left_bytes for r in made.run.results)
    slots = Said("cache, slots without a token, all steps", "缓存中没有 token 的槽位，所有步")
    steps = Said("steps with more than block − 1 of them a sequence", "每条序列超过 块长 − 1 个空槽的步数")
    held = Said("blocks that are still held in the end", "最后仍被占用的块")
    predicted = sum(serving.predict_paged(schedule, job.block))
    return [
        Row("cache_empty", slots, predicted, sum(empty), "Eq 33: blocks of each sequence", unit="slots"),
        Row("steps_with_too_many_empty", steps, 0, over, "Eq 33", unit="steps"),
        Row("blocks_left", held, 0, left, "no leak"),
    ]


def written_tokens(graph: ExecutionGraph, token_bytes: int) -> int:
    """How many tokens were written into rank 0's cache, from the bytes of its writes: each is read and
    written.
    """
    writes = [i for i, name in enumerate(graph.names) if name == "glasscluster.cache_write"]
    return int(graph.bytes[(graph.rank == 0) & np.isin(graph.op, writes)].sum()) // (2 * token_bytes)


def batches(job: ServingJob, schedule: Schedule) -> list[list[int]]:
    """The requests of each static batch: those whose prompts one step prefilled together."""
    return [[w.request for w in step.work] for step in schedule.steps if not any(w.start for w in step.work)]
