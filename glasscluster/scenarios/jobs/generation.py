"""`glass generate`: prompts in, tokens out, checked against one device without a cache, counted and timed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.base.rows import Row, judged, tally
from glasscluster.base.text import Said, counted
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding import cache as caches
from glasscluster.model.decoding.generate import Generated, Generator, Sampling, check_prefix, listed
from glasscluster.model.gpt import GPTStage
from glasscluster.model.uses import Use, check_use
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs.room import Room, of_decoding
from glasscluster.scenarios.jobs.shapes import model_of, passed_over
from glasscluster.scenarios.requests.generate import CACHES, GenerateRequest
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.judge.check import TOLERANCE, difference
from glasscluster.strategies.numerics.widths import WIDTH
from glasscluster.strategies.serving import generation
from glasscluster.strategies.serving.generation import GenerationJob, generate_rank
from glasscluster.strategies.tensor.options import check_tensor_ranks

Say = Callable[[str], None]
CHECKED_TOKENS = 8  # tokens of each sequence that are generated again in float64
WORK = "the model's own forward; roofline, Williams et al. 2009"


@dataclass
class Generation:
    """A finished generation with everything that `glass generate` prints."""

    job: GenerationJob
    run: Run
    checked_tokens: int = 0
    checks: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not tally(self.checks).failed

    @property
    def not_checked(self) -> list[Said]:
        """What is checked by default and was not."""
        if self.checked_tokens:
            return []
        what = Said("that tokens and logits are those of one device", "token 与 logits 是否与单卡一致")
        return [skipped_check(what, self.run)]

    def as_json(self) -> dict[str, Any]:
        """The `glass.generate/1` object. Prefill and decode are those of rank 0; decode is the mean over its
        steps.
        """
        job, run, results = self.job, self.run, self.run.results
        first, *rest = generation.phases(run.timeline, run.hardware, job.precision)
        decode = generation.mean(rest)
        new = len(job.prompts) * (job.tokens - 1)
        return {
            "schema": "glass.generate/1",
            "model": job.model.model_dump(mode="json"),
            "weights": job.weights,
            "backend": run.backend,
            "hardware": run.hardware.name,
            "gpus": job.tp,
            "precision": job.precision,
            "prompt_tokens": [len(p) for p in job.prompts],
            "tokens": results[0].tokens,
            "text": [text(job.model, t) for t in results[0].tokens],
            "cache": job.cache,
            "cache_bytes": [r.cache_bytes for r in results],
            "cache_used_bytes": [r.used_bytes for r in results],
            "cache_filled_bytes": [r.filled_bytes for r in results],
            "parameter_bytes": [r.parameter_bytes for r in results],
            "prefill": first.as_dict(),
            "decode": decode.as_dict() if decode else None,
            "time_to_first_token_s": first.time_s,
            "time_per_token_s": decode.time_s if decode else None,
            "tokens_per_s": new / sum(p.time_s for p in rest) if rest else None,
            "checked_tokens": self.checked_tokens,
            **judged(self.checks, self.not_checked),
        }


def skipped_check(what: Said, run: Run) -> Said:
    """A check that was not made, and why: `--no-check`, or a dry run, which has no numbers."""
    dry = run.backend == "dry"
    why = Said("a dry run has no numbers", "空跑没有数值") if dry else Said("--no-check", "--no-check")
    return Said(f"{what.en} ({why.en})", f"{what.zh}（{why.zh}）")


def text(model: ModelConfig, tokens: Sequence[int]) -> str | None:
    """Decode tokens as text where each is a byte; None for a larger vocabulary."""
    return bytes(tokens).decode("utf-8", "replace") if model.vocab <= 256 else None


def generate(
    cluster: Cluster, job: GenerationJob, *, checked: bool = True, say: Say = lambda _text: None
) -> Generation:
    """Run a job; the check reruns its first tokens in float64, on these ranks with the cache and on one
    device without.
    """
    done = 0
    rows: list[Row] = []
    if checked and cluster.backend_name != "dry":
        done = min(job.tokens, CHECKED_TOKENS)
        small = replace(job, tokens=done, precision="fp64", capture=True)
        say(
            f"checking {counted(done, 'token')} in float64 on {counted(job.tp, cluster.backend_name + ' rank')}, and on one "
            f"device without a cache"
        )
        results = cluster.run(generate_rank, small, record=False).results
        if cluster.leader:
            rows = equality_rows(results, without_cache(small))
    say(f"generating {counted(job.tokens, 'token')} in {job.precision}, recording each step")
    run = cluster.run(
        generate_rank, job, info={"precision": job.precision, "model": job.model.model_dump(mode="json")}
    )
    made = Generation(job, run, done)
    if cluster.leader:
        made.checks = run.checks = rows + counted_rows(job, run)
    return made


def without_cache(job: GenerationJob) -> Generated:
    """Generate on one device without a cache: every token is computed again at every step."""
    stage = GPTStage(job.model, seed=job.seed, dtype=torch.float64)
    if job.weights is not None:
        hugging_face.fill(stage, job.weights)
    steps = list(Generator(stage, job.prompts, job.tokens, sampling=job.sampling, window=job.window or None))
    tokens = [list(t) for t in zip(*(listed(chosen) for _, chosen in steps), strict=True)]
    return Generated(tokens, [logits for logits, _ in steps])


def equality_rows(results: Sequence[Any], right: Generated) -> list[Row]:
    """The check rows that every step's logits are within 1e-10 of one device's on every rank, and the tokens
    equal.
    """
    worst, other = 0.0, 0
    for result in results:
        other += sum(
            a != b
            for mine, theirs in zip(result.tokens, right.tokens, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )
        for mine, theirs in zip(result.logits, right.logits, strict=True):
            worst = max(worst, difference(mine, theirs, 0.0))
    source = "one device without a cache, same seed"
    name = Said(
        f"largest logits difference from one device, float64, {counted(len(right.logits), 'token')}",
        f"与单卡（float64，{len(right.logits)} 个 token）的最大 logits 差异",
    )
    others = Said("tokens that one device chooses otherwise", "单卡会另选的 token 数")
    return [
        Row("logits_difference", name, 0.0, worst, source, unit="relative", tolerance=TOLERANCE),
        Row("tokens_chosen_otherwise", others, 0, other, source, unit="tokens"),
    ]


def counted_rows(job: GenerationJob, run: Run) -> list[Row]:
    """The check rows of cache bytes (Eq 3), empty cache slots (Eq 33) and tensor-parallel traffic."""
    width, results = WIDTH[job.precision], run.results
    rows = []
    if job.cache != "none":
        each = generation.predict_cache(job, width)
        for rank, result in enumerate(results):
            name = Said(f"cache, rank {rank}", f"缓存，rank {rank}")
            rows.append(Row(f"cache_{rank}", name, each, result.cache_bytes, "Eq 3"))
        sliding = job.cache == "sliding"
        cached = [min(n, job.window) if job.window and sliding else n for n in job.lengths]
        held = caches.predict(job.model, sum(cached), width, job.tp)
        name = Said("cache, tokens that are there, rank 0", "缓存中已有 token 所占，rank 0")
        rows.append(Row("cache_filled", name, held, results[0].filled_bytes, "Eq 3"))
    if job.cache in ("static", "paged"):
        block = job.block if job.cache == "paged" else None
        waste = caches.predict_waste(job.lengths, block)[0] * caches.predict(job.model, 1, width, job.tp)
        name = Said("cache, slots without a token, rank 0", "缓存中没有 token 的槽位，rank 0")
        rows.append(Row("cache_empty", name, waste, results[0].used_bytes - results[0].filled_bytes, "Eq 33"))
    if job.tp > 1:
        batch = len(job.prompts)
        parts = [generation.predict_traffic(job.model, job.tp, batch, n, width) for n in job.columns]
        predicted, sent = sum(sum(part.values()) for part in parts), generation.traffic(run.graph)
        name = Said("sent by all ranks, prefill and decode", "全部 rank 的发送量，预填充与解码")
        rows.append(Row("sent", name, predicted, sent, "Eq 18, forward; all-gather of the logits"))
    return rows


def make_prompts(
    given: Sequence[str], length: int, batch: int, model: ModelConfig, seed: int
) -> tuple[tuple[int, ...], ...]:
    """The prompts as tokens: texts as bytes, or one prompt of `length` random tokens; each `batch` times."""
    if given and model.vocab < 256:
        raise InputError(
            "prompt",
            given[0],
            f"a text is taken as bytes, the vocabulary has {model.vocab} tokens; give prompt-length",
        )
    draw = random.Random(seed)
    prompts = [tuple(p.encode()) for p in given] if not length else []
    if length:
        prompts = [tuple(draw.randrange(model.vocab) for _ in range(length))]
    return tuple(prompts * batch)


def generate_command(request: GenerateRequest, say: Say) -> Generation:
    """Run `glass generate`: a job, on a cluster."""
    job, cluster = request.prepared(prepare)
    for sentence in (passed_over(job.weights, job.model), room(job, request.check).said(cluster)):
        if sentence:
            say(sentence)
    with cluster:
        return generate(cluster, job, checked=request.check, say=say)


def prepare(request: GenerateRequest) -> tuple[GenerationJob, Cluster]:
    """The job and its cluster, judged by every rule that needs no run; InputError naming what cannot be."""
    model, cache = model_of(request), request.cache
    one_of("cache", cache, CACHES)
    check_model(model, "generate", request.tp, request.precision)
    if cache == "sliding" and not model.window:
        rule = "a sliding cache needs a window of at least one token"
        raise InputError("window", model.window, rule, [model.seq])
    if cache == "sliding" and model.window_layers != "all":
        rule = "a sliding cache drops tokens that layers without a window see"
        raise InputError("window_layers", model.window_layers, rule, ["all"])
    prompts = make_prompts(request.prompts, request.prompt_length, request.batch, model, request.seed)
    if not all(prompts):
        raise InputError("prompt", "", "needs at least one byte")
    check_prefix(model, prompts, request.chunk, bool(model.window))
    sampling = Sampling(request.temperature, request.sample_top_k, request.sample_top_p, request.seed)
    job = GenerationJob(
        model,
        prompts,
        request.tokens,
        cache,  # type: ignore[arg-type]
        request.tp,
        request.block,
        model.window if cache == "sliding" else 0,
        request.chunk,
        request.precision,
        sampling,
        request.seed,
        request.weights,
    )
    if job.capacity > model.seq:
        rule = f"prompt and new tokens take {job.capacity} positions, the model has seq = {model.seq}"
        fits = request.tokens - job.capacity + model.seq
        if fits < 1:  # the prompt alone is too long
            raise InputError("seq", model.seq, rule, [job.capacity])
        raise InputError("tokens", request.tokens, rule, [fits])
    cluster = Cluster(request.hardware, request.tp, request.backend, seed=request.seed, device=request.device)
    cluster.hardware.gpu.peak(request.precision)
    room(job, request.check).check(cluster)
    return job, cluster


def room(job: GenerationJob, checked: bool) -> Room:
    """What a job holds in memory at least."""
    cache = generation.predict_cache(job, WIDTH[job.precision]) * job.tp
    return of_decoding(job.model, job.precision, checked, cache=cache)


def check_model(model: ModelConfig, use: Use, tp: int, precision: str) -> None:
    """Check a model for a use that continues a text, on tp ranks.

    It is judged by the table of uses, and by the rules that a plan for training has.

    Raises:
        InputError: naming the field, its value, the rule that it breaks and the nearest valid choice.
    """
    one_of("precision", precision, tuple(WIDTH))
    check_use(model, use)
    check_tensor_ranks(model, tp)


def one_of(field_: str, value: str, words: tuple[str, ...]) -> None:
    """Raise InputError, naming the nearest word, unless the value is one of the words."""
    if value not in words:
        raise InputError(field_, value, "is unknown", words)
