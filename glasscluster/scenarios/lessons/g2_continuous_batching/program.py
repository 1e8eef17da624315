"""G2: the same requests in static batches, and with slots and blocks that are reassigned at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from glasscluster.model.decoding import cache as caches
from glasscluster.scenarios.jobs import serving as checks
from glasscluster.scenarios.jobs.serving import Serving
from glasscluster.scenarios.jobs.serving_command import draw_requests
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving import batching
from glasscluster.strategies.serving.batching import Continuous, Static, plan
from glasscluster.strategies.serving.serving import ServingJob, make_schedule, serve_rank
from glasscluster.visualize.figures.plots import lines
from glasscluster.visualize.figures.slots import cache_figure, slots_figure

BLOCK = 8  # slots of a block of the cache
SIZES = (1, 2, 4, 8, 16, 32)  # slots of the sweep
FRACTION: dict[str, Any] = {"unit": "fraction", "tolerance": 1e-12}


@lesson(hardware="dgx-h100")
def continuous_batching(lab: Lab, requests: int = 12, slots: int = 4) -> None:
    """A small GPT serves the same requests four times: static, continuous, with more slots in the same
    memory, with too few blocks.
    """
    model = make_model("tiny", layers=1, seq=40)
    load = draw_requests(requests, 8, 12, 0.0, model, lab.seed)
    longest = max(request.cached for request in load)
    most = -(-longest // BLOCK)  # blocks of the longest
    static = ServingJob(model, load, "static", slots)
    paged = replace(static, policy="continuous", block=BLOCK, blocks=slots * most)
    wide, bound = 2 * slots, most + slots
    made = {
        "static": serve(lab, "static", static, slots=slots),
        "continuous": serve(lab, "continuous", paged),
        "wide": serve(lab, "wide", replace(paged, slots=wide), slots_wide=wide),
        "tight": serve(lab, "tight", replace(paged, blocks=bound), bound=bound),
    }
    check_static(lab, made["static"], longest)
    pool = caches.predict(model, slots * most * BLOCK, 4)
    lab.row("same_memory", pool, made["continuous"].run.results[0].cache_bytes, "Eq 3")
    check_blocks(lab, made["continuous"])
    idle = check_many_requests(lab, model)

    percent = 100 * made["static"].idle_slots
    lengths = listed(request.tokens for request in load)
    lab.ask("idle_percent", percent, "%", requests=requests, lengths=lengths, slots=slots)
    figures(
        lab, made, idle, {"static": {"slots": slots}, "wide": {"slots_wide": wide}, "tight": {"bound": bound}}
    )
    rate = {name: each.tokens_per_s / made["static"].tokens_per_s for name, each in made.items()}
    first: dict[str, Any] = {
        f"{name}_first": 1e3 * sum(made[name].first_token_s) / requests for name in ("static", "continuous")
    }
    steps: dict[str, Any] = {f"{name}_steps": len(made[name].times) for name in ("static", "continuous")}
    lab.tell("steps", view="tab=timeline&run=static", percent=percent, **steps)
    faster: dict[str, Any] = {"times_faster": rate["continuous"]}
    lab.tell("speed", view="tab=timeline&run=continuous", hw=lab.hardware, **faster, **first)
    empty: dict[str, Any] = {
        f"{name}_empty": 100 * made[name].empty_cache for name in ("static", "continuous")
    }
    lab.tell("cache", **empty)
    lab.tell("wide", view="tab=memory&run=wide", slots_wide=wide, wide_faster=rate["wide"])
    tight = made["tight"]
    preempted = len(tight.schedule.preemptions)
    again: dict[str, Any] = {"preempted": preempted, "recomputed": tight.recomputed}
    lab.tell("tight", view="tab=timeline&run=tight", bound=bound, **again)
    lab.conclude(percent=percent, wide_faster=rate["wide"])
    lab.explain()
    lab.own_number(percent=percent, **faster, wide_faster=rate["wide"])


def serve(lab: Lab, name: str, job: ServingJob, **blanks: int) -> Serving:
    """Serve the requests, and check the answers against each request alone."""
    cluster = lab.cluster(1)
    schedule = make_schedule(job, cluster.hardware)
    run = lab.run(name, lab.text(name, **blanks), serve_rank, job, schedule, gpus=1, precision="fp32")
    made = Serving(job, schedule, run)
    exact = cluster.run(serve_rank, replace(job, precision="fp64", capture=True), schedule, record=False)
    run.checks += checks.equality_rows(job, exact.results) + checks.counted_rows(made)
    return made


def check_static(lab: Lab, made: Serving, longest: int) -> None:
    """Check the static batches: slots and cache without a token, and steps."""
    load, slots = made.job.requests, made.job.slots
    together = checks.batches(made.job, made.schedule)
    computed, empty = batching.predict_static(load, together, slots)
    source = "Eq 33: 1 − mean/max of each batch"
    lab.row("idle_slots", empty / computed, made.idle_slots, source, **FRACTION)
    steps = made.schedule.steps
    ends = [*(n - 1 for n, step in enumerate(steps) if step.cleared), len(steps) - 1]
    result = made.run.results[0]
    counted = sum(result.reserved_bytes[n] - result.filled_bytes[n] for n in ends) // result.token_bytes
    expected = sum(slots * longest - sum(load[r].cached for r in batch) for batch in together)
    source = "Eq 33: each slot is as long as the longest request"
    lab.row("empty_cache", expected, counted, source, unit="slots")
    expected = sum(max(load[r].tokens for r in batch) for batch in together)
    lab.row("static_steps", expected, len(result.used), "each batch waits for its slowest", unit="steps")


def check_blocks(lab: Lab, made: Serving) -> None:
    """Check that in no step a running sequence wastes a whole block, on average."""
    result = made.run.results[0]
    pairs = zip(result.reserved_bytes, result.filled_bytes, made.schedule.steps, strict=True)
    wasted = sum(
        reserved - filled > (BLOCK - 1) * len(step.work) * result.token_bytes
        for reserved, filled, step in pairs
    )
    lab.row("block_waste", 0, wasted, "Eq 33: block − 1 a sequence", unit="steps", most=BLOCK - 1)


def check_many_requests(lab: Lab, model: Any) -> dict[str, list[float]]:
    """Check the share of slots × steps without a token, by number of slots: as planned for 192 requests, and
    by Eq 33.

    Returns the shares by policy, one for each number of slots.
    """
    many = draw_requests(192, 8, 12, 0.0, model, lab.seed + 1)
    each = -(-max(request.cached for request in many) // BLOCK)
    idle: dict[str, list[float]] = {"static": [], "formula": [], "continuous": [], "waiting": []}
    for n in SIZES:
        static = steps_of(many, Static(many, n))
        idle["static"].append(idle_share(static, n))
        continuous = steps_of(many, Continuous(many, n, BLOCK, n * each))
        idle["continuous"].append(idle_share(continuous, n))
        # the last request is admitted at this step: until then somebody waits
        last = max(i for i, step in enumerate(continuous) if not all(work.start for work in step.work))
        idle["waiting"].append(idle_share(continuous[:last], n))
        order = [list(range(a, min(a + n, len(many)))) for a in range(0, len(many), n)]
        whole, bare = batching.predict_static(many, order, n)
        idle["formula"].append(bare / whole)
        lab.row("idle_of_many", bare / whole, idle["static"][-1], "Eq 33", **FRACTION, n=n)
    source = "a slot is refilled in the next step"
    falls = sum(more < less - 1e-12 for less, more in pairwise(idle["static"]))
    lab.row("padding_falls", 0, falls, "Eq 33: the longest of more is no shorter", unit="sizes")
    lab.row("idle_while_waiting", 0, max(idle["waiting"]), source, unit="fraction")
    return idle


def steps_of(requests: Any, policy: Any) -> Sequence[Any]:
    """The steps that a policy plans when every step takes the same time."""
    return plan(requests, policy, lambda _step: 1.0).steps


def idle_share(steps: Sequence[Any], slots: int) -> float:
    """The share of slots × steps that give no token."""
    tokens = sum(work.count > 0 for step in steps for work in step.work)
    return 1 - tokens / (slots * len(steps))


def figures(lab: Lab, made: dict[str, Serving], idle: dict[str, list[float]], blanks: dict[str, Any]) -> None:
    """Draw which request has which slot, what the cache holds, and padding against the size of the batch."""

    def title(name: str, lang: str) -> str:
        return lab.word(name, lang, **blanks.get(name, {}))

    def slots_over_time(lang: str) -> Any:
        spans = {title(name, lang): made[name].spans() for name in ("static", "continuous", "tight")}
        return slots_figure(spans, lab.hardware, lang)

    def cache_over_time(lang: str) -> Any:
        held = {title(name, lang): made[name].held() for name in ("static", "continuous", "wide")}
        return cache_figure(held, lab.hardware, lang)

    def padding_by_batch(lang: str) -> Any:
        names = {"static_f33": "formula", "short_continuous": "continuous", "waiting": "waiting"}
        series = {lab.word(word, lang): (SIZES, [100 * x for x in idle[key]]) for word, key in names.items()}
        return lines(series, lab.word("slots", lang), lab.word("percent_idle", lang), log_x=True)

    lab.figure("slots_over_time", slots_over_time)
    lab.figure("cache_over_time", cache_over_time)
    lab.figure("padding_by_batch", padding_by_batch)
