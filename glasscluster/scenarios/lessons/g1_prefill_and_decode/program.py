"""G1: the same weights twice: prefill is bound by arithmetic, decode by memory."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.model.decoding import cache as caches
from glasscluster.scenarios.jobs import generation as checks
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving import generation
from glasscluster.strategies.serving.generation import GenerationJob, generate_rank
from glasscluster.visualize.figures.plots import lines
from glasscluster.visualize.figures.roofline import Dot, roofline_figure


def matrices(model: Any) -> tuple[int, int]:
    """The elements of the matrices that a token is multiplied with, and of the vectors that go into and come
    out of them.
    """
    h, kv, f, layers = model.hidden, model.key_width, model.width, model.layers
    elements = h * (h + 2 * kv) + h * h + (model.gates + 1) * h * f
    ends = (h + h + 2 * kv) + 2 * h + (h + model.gates * f) + (f + h)
    return layers * elements + model.vocab * h, layers * ends + h + model.vocab


def of_kind(run: Any, names: tuple[str, ...], step: int = 1) -> tuple[int, int]:
    """The FLOPs and bytes of a step's kernels of some names, on rank 0."""
    graph = run.graph
    chosen = [i for i, name in enumerate(graph.names) if name in names]
    here = np.isin(graph.op, chosen) & (graph.micro_batch == step) & (graph.rank == 0)
    return int(graph.flops[here].sum()), int(graph.bytes[here].sum())


H100, PRECISION = "dgx-h100", "bf16"
BATCHES = (1, 64, 256)
YES: dict[str, Any] = {"unit": "yes"}


class Llama:
    """Llama 3 8B on one H100, recorded dry once for each prompt length and batch that is used."""

    def __init__(self) -> None:
        self.model, self.machine = make_model("llama3-8b"), hardware(H100)
        self.ridge = self.machine.gpu.peak(PRECISION) / self.machine.gpu.memory_bandwidth
        self._recorded: dict[tuple[int, int], Any] = {}

    def run(self, batch: int, tokens: int) -> Any:
        """Record one prefill and one decode step of this size."""
        if (batch, tokens) not in self._recorded:
            job = GenerationJob(self.model, ((0,) * tokens,) * batch, 2, precision=PRECISION)
            cluster = Cluster(self.machine, 1, "dry", memory_bytes=None)
            self._recorded[batch, tokens] = cluster.run(generate_rank, job, info={"precision": PRECISION})
        return self._recorded[batch, tokens]

    def prefill(self, batch: int, tokens: int) -> Any:
        """The cost of the prefill."""
        return generation.phases(self.run(batch, tokens).timeline, self.machine, PRECISION)[0]

    def decode(self, batch: int, tokens: int) -> Any:
        """The cost of the decode step."""
        return generation.phases(self.run(batch, tokens).timeline, self.machine, PRECISION)[1]


@lesson
def prefill_and_decode(lab: Lab, context: int = 4096) -> None:
    """A small GPT generates with a cache, counted; then Llama 3 8B, recorded dry on one H100: prompts and
    batches on the roofline.
    """
    llama = Llama()
    if not 128 < context < llama.model.seq:  # 128 is the short context that it is compared with
        rule = f"more than 128 tokens, and with the new one no more than {llama.model.seq:,}"
        raise InputError("context", context, rule, [min(max(context, 129), llama.model.seq - 1)])
    generate_small(lab)
    ridge, decode, prefill = llama.ridge, llama.decode(1, 128), llama.prefill(1, context)
    source = "989 TFLOP/s ÷ 3.35 TB/s"
    lab.row("ridge", 295, ridge, source, unit="FLOPs/byte", tolerance=0.5)
    smallest_batch = check_matrices(lab, llama)
    many, far = llama.decode(64, 128), llama.decode(64, context)
    expected, source = (
        caches.predict(llama.model, 64 * (context - 128), 2),
        "Eq 3: each old key and value is read once",
    )
    lab.row("more_bytes", expected, far.bytes - many.bytes, source, context=context)
    attention = check_attention(lab, llama, 1, context)
    check_attention(lab, llama, 64, context)
    read, floor = check_floor(lab, llama)
    limited = int(prefill.intensity >= ridge)
    lab.row("prefill_limited_by_compute", 1, limited, "Eq 31", **YES, context=context)
    others = check_other_machines(lab, llama)
    ask(lab, llama, smallest_batch)
    lab.figure("on_the_roofline", lambda lang: on_the_roofline(lab, llama, context, lang))
    lab.figure("decode_step", lambda lang: decode_step(lab, llama, context, read, lang))
    both: dict[str, Any] = {"decode_intensity": decode.intensity, "prefill_intensity": prefill.intensity}
    lab.tell("intensities", **both, context=context, ridge=ridge)
    lab.tell("rule", batch=smallest_batch, ridge=ridge)
    held: dict[str, Any] = {
        "cache_gb": caches.predict(llama.model, 64 * context, 2) / 1e9,
        "weights_gb": read / 1e9,
    }
    lab.tell("long_context", context=context, far_ms=far.roof_s * 1e3, many_ms=many.roof_s * 1e3, **held)
    launches = int((llama.run(1, 128).graph.micro_batch == 1).sum())
    step: dict[str, Any] = {
        "launch_us": llama.machine.gpu.launch_s * 1e6,
        "step_ms": decode.time_s * 1e3,
        "launches": launches,
    }
    lab.tell("launches", **step, floor_ms=floor * 1e3)
    lab.tell("small_gpt", view="tab=timeline&run=generation")
    lab.conclude(batch=smallest_batch, context=context)
    lab.explain()
    lab.card(ridge=ridge, attention=attention, context=context, **both, **others)
    lab.own_number(batch=smallest_batch, floor_ms=floor * 1e3)


def generate_small(lab: Lab) -> None:
    """Generate with a small GPT; check it against no cache, with every byte counted."""
    prompts = tuple(tuple(text) for text in (b"def generate(", b"a cache", b"import torch"))
    small = GenerationJob(make_model("tiny", kv_heads=2), prompts, 9, cache="paged", block=8)
    exact = replace(small, precision="fp64", capture=True)
    results = lab.cluster(1).run(generate_rank, exact, record=False).results
    lab.checks += checks.equality_rows(results, checks.without_cache(exact))
    run = lab.run("generation", lab.text("generation"), generate_rank, small, gpus=1, precision="fp32")
    lab.checks += checks.counted_rows(small, run)


def check_matrices(lab: Lab, llama: Llama) -> int:
    """Check the batch from which matrices are bound by arithmetic, by the rule and by trial, and their FLOPs.

    Returns that batch, by the rule.
    """
    elements, ends = matrices(llama.model)
    by_rule = ceil(llama.ridge * elements / (elements - llama.ridge * ends))
    reached = None
    for batch in (by_rule, by_rule - 1):
        flops, nbytes = of_kind(llama.run(batch, 1), ("mm",))
        if flops >= llama.ridge * nbytes:
            reached = batch
    lab.row("smallest_batch", by_rule, reached, "2BP FLOPs over 2(P + B·ends) bytes", unit="sequences")
    flops, _ = of_kind(llama.run(64, 128), ("mm",))
    lab.row("flops_of_matrices", 2 * 64 * elements, flops, "2BP", unit="FLOPs")
    return by_rule


def check_attention(lab: Lab, llama: Llama, batch: int, tokens: int) -> float:
    """Check the FLOPs a byte of a decode step's attention, and return them."""
    group, d = llama.model.heads // llama.model.key_heads, llama.model.head_dim
    flops, nbytes = of_kind(llama.run(batch, tokens), ("glasscluster.cached_attention",))
    expected = 2 * 2 * group * d * (tokens + 1) / (2 * (2 * d * (tokens + 1) + 2 * group * d))
    source = "group of query heads a key head ÷ bytes an element × 2"
    rounding: dict[str, Any] = {"tolerance": 1e-9}
    lab.row(
        "intensity_of_attention", expected, flops / nbytes, source, unit="FLOPs/byte", **rounding, batch=batch
    )
    return flops / nbytes


def check_floor(lab: Lab, llama: Llama) -> tuple[int, float]:
    """Check the least time of a step of one sequence; returns the bytes of weights that it reads, and its
    seconds.
    """
    held = llama.run(1, 128).results[0].parameter_bytes
    read = held - llama.model.vocab * llama.model.hidden * 2  # a step reads one row of the embedding
    floor = generation.predict_floor(read, caches.predict(llama.model, 128, 2), llama.machine)
    simulated = llama.decode(1, 128).roof_s
    one_percent: dict[str, Any] = {"match": "virtual", "tolerance": 0.01}
    lab.row(
        "least_time",
        floor,
        None,
        "(weights + cache) ÷ bandwidth",
        simulated=simulated,
        unit="s",
        **one_percent,
    )
    return read, floor


def ask(lab: Lab, llama: Llama, answer: int) -> None:
    """Ask for the smallest batch, with everything that it is computed from."""
    (elements, ends), gpu = matrices(llama.model), llama.machine.gpu
    lab.ask(
        "batch",
        answer,
        peak=gpu.peak(PRECISION) / 1e12,
        bandwidth=gpu.memory_bandwidth / 1e12,
        elements=elements / 1e9,
        ends=ends / 1e6,
        elements_zh=elements / 1e8,
        ends_zh=ends / 1e4,
    )


def check_other_machines(lab: Lab, llama: Llama) -> dict[str, float]:
    """Check a decode step with twice the FLOP/s, and with an H200's memory; launches are left out.

    Returns both times over the H100's, and how many times its bandwidth the H200 has.
    """
    run, machine = llama.run(1, 128), llama.machine

    def busy(clock: Any) -> float:
        line = run.replay(clock, precision=PRECISION)
        launches = machine.gpu.launch_s * int((line.graph.micro_batch == 1).sum())
        return generation.phases(line, machine, PRECISION)[1].time_s - launches

    virtual: dict[str, Any] = {"unit": "×", "match": "virtual", "tolerance": 1e-9}
    twice = busy(machine.scaled(flops=2)) / busy(H100)
    lab.row("twice_the_flops", 1, None, "bound by memory", simulated=twice, **virtual)
    ratio = machine.gpu.memory_bandwidth / hardware("dgx-h200").gpu.memory_bandwidth
    other = busy("dgx-h200") / busy(H100)
    lab.row("on_an_h200", ratio, None, "3.35 ÷ 4.8 TB/s", simulated=other, **virtual)
    return {"twice": twice, "other": other, "wider": 1 / ratio}


def on_the_roofline(lab: Lab, llama: Llama, context: int, lang: str) -> Any:
    """Draw prompts by length and batches by size on the roofline."""

    def dot(name: str, phase: Any) -> Dot:
        return Dot(name, phase.flops, phase.bytes, phase.time_s)

    def batches(tokens: int) -> list[Dot]:
        return [dot(f"B = {batch}", llama.decode(batch, tokens)) for batch in BATCHES]

    rows = {
        lab.word("prefill", lang): [dot(f"{n}", llama.prefill(1, n)) for n in (16, 128, context)],
        lab.word("decode_128", lang): batches(128),
        lab.word("decode_context", lang, context=context): batches(context),
    }
    return roofline_figure(llama.machine.gpu, PRECISION, rows, lang)


def decode_step(lab: Lab, llama: Llama, context: int, read: int, lang: str) -> Any:
    """Draw milliseconds of a step by batch, at two lengths, and of reading the weights alone."""

    def step(tokens: int) -> list[float]:
        return [llama.decode(batch, tokens).roof_s * 1e3 for batch in BATCHES]

    weights = read / llama.machine.gpu.memory_bandwidth * 1e3
    series = {
        lab.word("decode_128", lang): (BATCHES, step(128)),
        lab.word("decode_context", lang, context=context): (BATCHES, step(context)),
        lab.word("weights_alone", lang): (BATCHES, [weights] * len(BATCHES)),
    }
    return lines(series, lab.word("sequences", lang), lab.word("milliseconds", lang), log_x=True)
