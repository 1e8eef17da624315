"""G2: the same requests in static batches, and with slots and blocks handed out anew at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.model.decoding import cache as caches
from glasscluster.scenarios.jobs import serving as checks
from glasscluster.scenarios.jobs.serving import Serving
from glasscluster.scenarios.jobs.serving_command import draw_requests
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving import batching
from glasscluster.strategies.serving.batching import Continuous, Static, plan
from glasscluster.strategies.serving.serving import ServingJob, make_schedule, serve_rank
from glasscluster.visualize.figures.plots import lines
from glasscluster.visualize.figures.slots import cache_figure, slots_figure


@lesson(hardware="dgx-h100")
def continuous_batching(lab: Lab, requests: int = 12, slots: int = 4) -> None:
    """A small GPT serves the same requests four times: static, continuous, with more slots in the same memory, with too few blocks."""

    model = make_model("tiny", layers=1, seq=40)
    load = draw_requests(requests, 8, 12, 0.0, model, lab.seed)
    block, capacity = 8, max(r.cached for r in load)
    most = -(-capacity // block)  # blocks of the longest
    static = ServingJob(model, load, "static", slots)
    paged = replace(static, policy="continuous", block=block, blocks=slots * most)
    jobs = {
        "static": static,
        "continuous": paged,
        "wide": replace(paged, slots=2 * slots),
        "tight": replace(paged, blocks=most + slots),
    }
    titles = {
        "static": lab.text("static_batches", slots=slots),
        "continuous": lab.text("continuous_batching"),
        "wide": lab.text("continuous_slots_same_memory", slots_wide=2 * slots),
        "tight": lab.text("continuous_blocks_preemption", bound=most + slots),
    }
    made: dict[str, Serving] = {}
    for name, job in jobs.items():
        cluster = lab.cluster(1)
        schedule = make_schedule(job, cluster.hardware)
        run = lab.run(name, titles[name], serve_rank, job, schedule, gpus=1, precision="fp32")
        made[name] = Serving(job, schedule, run)
        exact = cluster.run(
            serve_rank, replace(job, precision="fp64", capture=True), schedule, record=False
        ).results
        run.checks += checks.equality_rows(job, exact) + checks.counted_rows(made[name])

    together = checks.batches(static, made["static"].schedule)
    computed, empty = batching.predict_static(load, together, slots)
    lab.row(
        "static_batches_share_slots_without_token",
        empty / computed,
        made["static"].idle_slots,
        "F33: 1 − mean/max of each batch",
        unit="fraction",
        tolerance=1e-12,
    )
    ends = [n - 1 for n, step in enumerate(made["static"].schedule.steps) if step.cleared] + [
        len(made["static"].schedule.steps) - 1
    ]
    result = made["static"].run.results[0]
    counted = sum(result.reserved_bytes[n] - result.filled_bytes[n] for n in ends) // result.token_bytes
    lab.row(
        "static_cache_slots_without_token_when",
        sum(slots * capacity - sum(load[r].cached for r in b) for b in together),
        counted,
        "F33: each slot is as long as the longest request",
        unit="slots",
    )
    lab.row(
        "static_steps",
        sum(max(load[r].tokens for r in b) for b in together),
        len(result.used),
        "each batch waits for its slowest",
        unit="steps",
    )
    lab.row(
        "same_memory_both_static_cache_blocks",
        caches.predict(static.model, slots * most * block, 4),
        made["continuous"].run.results[0].cache_bytes,
        "F3",
    )

    many, sizes = draw_requests(192, 8, 12, 0.0, model, lab.seed + 1), (1, 2, 4, 8, 16, 32)
    idle: dict[str, list[float]] = {"static": [], "continuous": [], "waiting": []}
    said, each = [], -(-max(r.cached for r in many) // block)
    for n in sizes:
        for name, policy in (
            ("static", Static(many, n)),
            ("continuous", Continuous(many, n, block, n * each)),
        ):
            steps = plan(many, policy, lambda _step: 1.0).steps  # type: ignore[arg-type]
            last = max(
                i for i, step in enumerate(steps) if not all(w.start for w in step.work)
            )  # the last one is admitted: until then somebody waits
            for key, part in ((name, steps), ("waiting", steps[:last])):
                if key != "waiting" or name == "continuous":
                    idle[key].append(
                        1 - sum(w.count > 0 for step in part for w in step.work) / (n * len(part))
                    )
        order = [list(range(a, min(a + n, len(many)))) for a in range(0, len(many), n)]
        whole, bare = batching.predict_static(many, order, n)
        said.append(bare / whole)
        lab.row(
            "requests_slots_static_share_without_token",
            said[-1],
            idle["static"][-1],
            "F33",
            unit="fraction",
            tolerance=1e-12,
            n=n,
        )

    lab.row(
        "requests_continuous_share_without_token_while",
        0,
        max(idle["waiting"]),
        "a slot is refilled in the next step",
        unit="fraction",
    )
    percent, hw = 100 * made["static"].idle_slots, lab.hardware
    lab.ask(
        "number",
        percent,
        "%",
        requests=requests,
        lengths="、".join((str(r.tokens) for r in load)),
        slots=slots,
    )

    def named(lang: str, which: tuple[str, ...]) -> Any:
        return {titles[k][lang == "zh"]: made[k] for k in which}

    lab.figure(
        "who_has_slot_when",
        lambda lang: slots_figure(
            {k: v.spans() for k, v in named(lang, ("static", "continuous", "tight")).items()}, hw, lang
        ),
    )
    lab.figure(
        "cache_over_time_reserved",
        lambda lang: cache_figure(
            {k: v.held() for k, v in named(lang, ("static", "continuous", "wide")).items()}, hw, lang
        ),
    )
    lab.figure(
        "requests_padding_wastes_more",
        lambda lang: lines(
            {
                lab.word("static_f33", lang): (sizes, [100 * v for v in said]),
                lab.word("continuous", lang): (sizes, [100 * v for v in idle["continuous"]]),
                lab.word("continuous_while_requests_wait", lang): (sizes, [100 * v for v in idle["waiting"]]),
            },
            lab.word("slots", lang),
            lab.word("slots_steps_without_token", lang),
            log_x=True,
        ),
    )
    rate = {k: v.tokens_per_s for k, v in made.items()}
    first = {k: 1e3 * sum(v.first_token_s) / requests for k, v in made.items()}
    lab.tell(
        "static_batches_take_steps",
        view="tab=timeline&run=static",
        static_steps=len(made["static"].times),
        percent=percent,
        continuous_steps=len(made["continuous"].times),
    )
    lab.tell(
        "times_tokens_second_instead",
        view="tab=timeline&run=continuous",
        hw=hw,
        times_faster=rate["continuous"] / rate["static"],
        continuous_first=first["continuous"],
        static_first=first["static"],
    )
    lab.tell(
        "static_cache_hold_no",
        static_empty=100 * made["static"].empty_cache,
        continuous_empty=100 * made["continuous"].empty_cache,
    )
    lab.tell(
        "so_same_memory_has",
        view="tab=memory&run=wide",
        slots_wide=2 * slots,
        wide_faster=rate["wide"] / rate["static"],
    )
    lab.tell(
        "blocks_times_sequence_had",
        view="tab=timeline&run=tight",
        bound=most + slots,
        preempted=len(made["tight"].schedule.preemptions),
        recomputed=made["tight"].recomputed,
    )
    lab.conclude(percent=percent, wide_faster=rate["wide"] / rate["static"])
    lab.explain()
    lab.own_number(
        percent=percent,
        times_faster=rate["continuous"] / rate["static"],
        wide_faster=rate["wide"] / rate["static"],
    )
