"""The body of `glass serve`: requests drawn or from a file, a job that can run, a report of slots over
time.
"""

from __future__ import annotations

import random
from pathlib import Path

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json
from glasscluster.base.quantities import written_time
from glasscluster.base.requests import Options, build
from glasscluster.base.text import Said, counted
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding import cache as caches
from glasscluster.scenarios.jobs.folders import output_folder, rewriting, write_run_json
from glasscluster.scenarios.jobs.generation import check_model, one_of
from glasscluster.scenarios.jobs.processes import is_leader
from glasscluster.scenarios.jobs.room import Room, of_decoding
from glasscluster.scenarios.jobs.serving import Say, Serving, serve
from glasscluster.scenarios.jobs.shapes import model_of, passed_over
from glasscluster.scenarios.requests.serve import POLICIES, ServeRequest
from glasscluster.sim.run import Cluster
from glasscluster.strategies.numerics.widths import WIDTH
from glasscluster.strategies.serving import batching
from glasscluster.strategies.serving.batching import Request
from glasscluster.strategies.serving.serving import ServingJob
from glasscluster.visualize.figures.slots import cache_figure, slots_figure
from glasscluster.visualize.page.assemble import write_report
from glasscluster.visualize.page.report import Chapter, Report, StoryStep

WORDS = {"continuous": "连续", "static": "静态"}


def draw_requests(
    count: int, prompt_length: int, tokens: int, rate: float, model: ModelConfig, seed: int
) -> tuple[Request, ...]:
    """Draw requests: lengths and gaps between arrivals are exponential with these means, cut to the model's
    positions.

    `rate` is requests a second; with 0 all of them are there at the start.
    """
    draw, now, requests = random.Random(seed), 0.0, []
    for _ in range(count):
        new = min(model.seq - 1, 1 + int(draw.expovariate(1 / tokens)))
        prompt = min(model.seq - new, 1 + int(draw.expovariate(1 / prompt_length)))
        requests.append(Request(tuple(draw.randrange(model.vocab) for _ in range(prompt)), new, now))
        now += draw.expovariate(rate) if rate else 0.0
    return tuple(requests)


class Listed(Options):
    """An entry of a file of requests."""

    model_config = ConfigDict(strict=True)

    prompt: str | list[int]
    tokens: int = Field(ge=1)
    arrival_s: float = Field(0.0, ge=0)


def as_bytes(number: int, prompt: str) -> bytes:
    """The bytes of a prompt, which are its tokens."""
    try:
        return prompt.encode()
    except UnicodeEncodeError:  # JSON can say half of a surrogate pair
        raise InputError(f"requests[{number}].prompt", ascii(prompt), "is no text in Unicode") from None


def read_requests(path: str, model: ModelConfig) -> tuple[Request, ...]:
    """Read requests from a JSON list of {"prompt": a text or a list of tokens, "tokens": how many,
    "arrival_s": when}.

    Raises InputError for a file that is none, or for a token that the model does not have.
    """
    listed = read_json("requests", path)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise InputError("requests", path, 'must be a JSON list of {"prompt", "tokens", "arrival_s"}')
    requests = []
    for number, entry in enumerate(listed):
        try:
            valid = build(Listed, entry)
        except InputError as problem:
            field = f"requests[{number}].{problem.field}"
            raise InputError(field, problem.value, problem.rule, problem.choices) from None
        prompt = as_bytes(number, valid.prompt) if isinstance(valid.prompt, str) else valid.prompt
        requests.append(Request(tuple(prompt), valid.tokens, valid.arrival_s))
    for number, request in enumerate(requests):
        if not all(0 <= t < model.vocab for t in request.prompt):
            raise InputError("requests", number, f"has a token that is not one of the model's {model.vocab}")
    return tuple(requests)


def serve_command(request: ServeRequest, say: Say) -> tuple[Serving, Path | None]:
    """Run `glass serve`: the requests, a job, a cluster, and a report if one is requested."""
    job, cluster = request.prepared(prepare)
    for sentence in (passed_over(job.weights, job.model), room(job, request.check).said(cluster)):
        if sentence:
            say(sentence)
    with cluster:
        made = serve(cluster, job, checked=request.check, say=say)
    if not request.out or not is_leader():
        return made, None
    say(f"writing a report to {request.out}")
    return made, write(made, request.out)


def prepare(request: ServeRequest) -> tuple[ServingJob, Cluster]:
    """The job and its cluster, judged by every rule that needs no run; InputError naming what cannot be."""
    job = make_job(request)
    cluster = Cluster(request.hardware, job.tp, request.backend, seed=job.seed, device=request.device)
    cluster.hardware.gpu.peak(job.precision)
    room(job, request.check).check(cluster)
    return job, cluster


def room(job: ServingJob, checked: bool) -> Room:
    """What a job holds in memory at least."""
    tokens = job.blocks * job.block if job.policy == "continuous" else job.slots * job.capacity
    cache = caches.predict(job.model, tokens, WIDTH[job.precision], job.tp) * job.tp
    return of_decoding(job.model, job.precision, checked, cache=cache)


def make_job(request: ServeRequest) -> ServingJob:
    """Make the job of a request to `glass serve`: its requests are drawn, or read from a file."""
    model = model_of(request)
    if request.requests:
        requests = read_requests(request.requests, model)
    else:
        lengths = (request.count, request.prompt_length, request.tokens)
        requests = draw_requests(*lengths, request.rate, model, request.seed)
    blocks, longest = request.blocks, max((r.cached for r in requests), default=0)
    blocks = blocks or request.slots * -(-longest // request.block)  # room for the longest in every slot
    return check_job(
        ServingJob(
            model,
            requests,
            request.policy,  # type: ignore[arg-type]
            request.slots,
            request.block,
            blocks,
            request.tp,
            request.precision,
            request.seed,
            request.weights,
        )
    )


def check_job(job: ServingJob) -> ServingJob:
    """Return the job if it can run; raise InputError otherwise."""
    model = job.model
    one_of("policy", job.policy, POLICIES)
    check_model(model, "serve", job.tp, job.precision)
    block = job.block if job.policy == "continuous" else 0
    batching.check(job.requests, job.slots, block, job.blocks, model.seq)
    return job


def write(made: Serving, out: str) -> Path:
    """The report: the run, who had which slot when, and the cache over time."""
    folder = output_folder(out, "serve")
    with rewriting(folder) as beside:
        return _write(made, beside, folder)


def _write(made: Serving, folder: Path, shown: Path) -> Path:
    run, job = made.run, made.job
    run.graph.save(folder / "graph.npz")
    name = Said(
        f"{counted(len(job.requests), 'request')}, {job.policy} batching",
        f"{len(job.requests)} 个请求，{WORDS[job.policy]}批处理",
    )
    first, hw = written_time(sum(made.first_token_s) / len(job.requests)), run.hardware.name
    finding = Said(
        f"{made.tokens_per_s:,.0f} tokens a second on {hw} (virtual), {first} to the first token on average.",
        f"{hw} 上每秒 {made.tokens_per_s:,.0f} 个 token（虚拟），平均首 token 时间 {first}。",
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
        story.append(
            Said(
                f"{counted(times, 'preemption')}: {counted(again, 'token')} computed again.",
                f"{times} 次抢占：{again} 个 token 被重算。",
            )
        )
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
    write_report(page, folder / "report.html")
    write_run_json(folder, {**made.as_json(), "report": str(shown / "report.html")})
    return shown / "report.html"
