"""What `glass serve` is asked for: requests drawn or from a file, a job that can run, a report with who had which slot when."""

from __future__ import annotations

import json
import random
from pathlib import Path

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.generation import check_model, one_of
from glasscluster.scenarios.jobs.serving import Say, Serving, serve
from glasscluster.sim.run import Cluster
from glasscluster.strategies.serving import batching
from glasscluster.strategies.serving.batching import Request
from glasscluster.strategies.serving.serving import POLICIES, ServingJob

WORDS = {"continuous": "连续", "static": "静态"}


def draw_requests(count: int, prompt_length: int, tokens: int, rate: float, model: ModelConfig, seed: int) -> tuple[Request, ...]:
    """Lengths and gaps between arrivals are exponential with these means, as far as the model's positions allow.

    rate: requests a second; 0: all are there at the start.
    """
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        new = min(model.seq - 1, 1 + int(draw.expovariate(1 / tokens)))
        prompt = min(model.seq - new, 1 + int(draw.expovariate(1 / prompt_length)))
        found.append(Request(tuple(draw.randrange(model.vocab) for _ in range(prompt)), new, now))
        now += draw.expovariate(rate) if rate else 0.0
    return tuple(found)


def read_requests(path: str, model: ModelConfig) -> tuple[Request, ...]:
    """A JSON list of {"prompt": a text or a list of tokens, "tokens": how many, "arrival_s": when}."""
    try:
        listed = json.loads(Path(path).read_text())
        found = []
        for entry in listed:
            prompt = entry["prompt"].encode() if isinstance(entry["prompt"], str) else entry["prompt"]
            found.append(Request(tuple(int(t) for t in prompt), int(entry["tokens"]), float(entry.get("arrival_s", 0))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        rule = f'must be a JSON list of {{"prompt", "tokens", "arrival_s"}}: {type(problem).__name__}: {problem}'
        raise InputError("requests", path, rule) from None
    for number, request in enumerate(found):
        if not all(0 <= t < model.vocab for t in request.prompt):
            raise InputError("requests", number, f"has a token that is not one of the model's {model.vocab}")
    return tuple(found)


def serve_command(
    model: ModelConfig,
    requests: tuple[Request, ...],
    *,
    policy: str,
    slots: int,
    block: int,
    blocks: int,
    tp: int,
    precision: str,
    weights: str | None,
    checked: bool,
    backend: str,
    device: str,
    seed: int,
    hardware: str,
    say: Say,
) -> Serving:
    """`glass serve`: a job, validated, on a cluster. blocks 0: room for the longest request in every slot."""
    one_of("policy", policy, POLICIES)
    blocks = blocks or slots * -(-max((r.cached for r in requests), default=0) // block)
    job = ServingJob(model, requests, policy, slots, block, blocks, tp, precision, seed, weights)  # type: ignore[arg-type]
    check_model(model, tp, precision)
    for name, value, rule in (
        ("prefix", model.prefix, "is seen at once, a step with tokens of many sequences is causal"),
        ("capacity_factor", model.capacity_factor, "drops tokens according to who else is in the step: requests would change each other"),
    ):
        if value:
            raise InputError(name, value, rule, [0])
    paged = job.policy == "continuous"
    batching.check(job.requests, job.slots, job.block if paged else 0, job.blocks, model.seq)
    cluster = Cluster(hardware, job.tp, backend, seed=job.seed, device=device)
    cluster.hardware.gpu.peak(job.precision)
    with cluster:
        return serve(cluster, job, checked=checked, say=say)


def write(made: Serving, out: str) -> Path:
    """The report: the run, who had which slot when, and the cache over time."""
    from glasscluster.base.text import Said
    from glasscluster.scenarios.jobs.training import output_folder, write_run_json
    from glasscluster.visualize.figures.slots import cache_figure, slots_figure
    from glasscluster.visualize.page.assemble import write_report
    from glasscluster.visualize.page.report import Chapter, Report, StoryStep

    folder, run, job = output_folder(out, "serve"), made.run, made.job
    run.graph.save(folder / "graph.npz")
    name = Said(f"{len(job.requests)} requests, {job.policy} batching", f"{len(job.requests)} 个请求，{WORDS[job.policy]}批处理")
    first, hw = 1e3 * sum(made.first_token_s) / len(job.requests), run.hardware.name
    finding = Said(
        f"{made.tokens_per_s:,.0f} tokens a second on {hw} (virtual), {first:.4g} ms to the first token on average.",
        f"{hw} 上每秒 {made.tokens_per_s:,.0f} 个 token（虚拟），平均首 token 时间 {first:.4g} ms。",
    )
    story = [
        Said(
            f"{made.idle_slots:.1%} of the slots of {len(made.times)} steps gave no token.",
            f"{len(made.times)} 步的槽位中有 {made.idle_slots:.1%} 没有产出 token。",
        ),
        Said(
            f"{made.empty_cache:.1%} of the reserved cache held no token, over time.",
            f"按时间平均，预留的缓存有 {made.empty_cache:.1%} 没有 token。",
        ),
    ]
    if made.schedule.preemptions:
        times, again = len(made.schedule.preemptions), made.recomputed
        story.append(Said(f"{times} preemptions: {again} tokens were computed again.", f"{times} 次抢占：{again} 个 token 被重算。"))
    page = Report(
        "serve",
        name,
        finding,
        [Chapter("run", name, run, {hw: run.timeline}, made.checks)],
        [StoryStep(text, "tab=timeline") for text in story],
        job.seed,
        not_checked=made.not_checked,
        figures=[
            (
                Said("Who has which slot when", "哪个请求在何时占用哪个槽位"),
                lambda lang: slots_figure({name.in_(lang): made.spans()}, hw, lang),
            ),
            (
                Said("The cache over time", "缓存随时间的变化"),
                lambda lang: cache_figure({name.in_(lang): made.held()}, hw, lang),
            ),
        ],
    )
    report = write_report(page, folder / "report.html")
    write_run_json(folder, {**made.as_json(), "report": str(report)})
    return report
