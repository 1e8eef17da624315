"""G1: the same weights twice: prefill multiplies matrices, decode waits for memory."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np

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
    """Elements of the matrices that a token is multiplied with, and of the vectors that go in and come out of them."""
    h, kv, f, layers = model.hidden, model.key_width, model.width, model.layers
    inside = (
        h * (h + 2 * kv) + h * h + (model.gates + 1) * h * f,
        (h + h + 2 * kv) + 2 * h + (h + model.gates * f) + (f + h),
    )
    return layers * inside[0] + model.vocab * h, layers * inside[1] + h + model.vocab


def of_kind(run: Any, names: tuple[str, ...], step: int = 1) -> tuple[int, int]:
    """FLOPs and bytes of a step's kernels of some names, on rank 0."""
    graph = run.graph
    here = (
        np.isin(graph.op, [i for i, name in enumerate(graph.names) if name in names])
        & (graph.micro_batch == step)
        & (graph.rank == 0)
    )
    return int(graph.flops[here].sum()), int(graph.bytes[here].sum())


@lesson
def prefill_and_decode(lab: Lab, context: int = 4096) -> None:
    """A small GPT generates with a cache, counted; then Llama 3 8B, recorded dry on one H100: prompts and batches on the roofline."""

    small = GenerationJob(
        make_model("tiny", kv_heads=2),
        (tuple(b"def generate("), tuple(b"a cache"), tuple(b"import torch")),
        9,
        cache="paged",
        block=8,
    )
    exact = replace(small, precision="fp64", capture=True)
    lab.checks += checks.equality_rows(
        lab.cluster(1).run(generate_rank, exact, record=False).results, checks.without_cache(exact)
    )
    run = lab.run(
        "generation", lab.text("small_gpt_prefill_then"), generate_rank, small, gpus=1, precision="fp32"
    )
    lab.checks += checks.counted_rows(small, run)

    model, h100 = make_model("llama3-8b"), hardware("dgx-h100")
    ridge, recorded = h100.gpu.peak("bf16") / h100.gpu.memory_bandwidth, {}

    def llama(batch: int, tokens: int) -> tuple[Any, list[Any]]:
        if (batch, tokens) not in recorded:
            job = GenerationJob(model, ((0,) * tokens,) * batch, 2, precision="bf16")
            made = Cluster(h100, 1, "dry", memory_bytes=None).run(
                generate_rank, job, info={"precision": "bf16"}
            )
            recorded[batch, tokens] = made, generation.phases(made.timeline, h100, "bf16")
        return recorded[batch, tokens]

    batches, prompts = (1, 64, 256), (16, 128, context)
    elements, ends = matrices(model)
    said = ceil(ridge * elements / (elements - ridge * ends))
    reached = [
        b for b in (said - 1, said) if (work := of_kind(llama(b, 1)[0], ("mm",)))[0] >= ridge * work[1]
    ]
    one, many, far = llama(1, 128), llama(64, 128), llama(64, context)
    lab.row(
        "h100_flops_byte_ridge_bf16", 295, ridge, "989 TFLOP/s ÷ 3.35 TB/s", unit="FLOPs/byte", tolerance=0.5
    )
    lab.row(
        "decode_smallest_batch_whose_matrices_reach",
        said,
        reached[0] if reached else None,
        "2BP FLOPs over 2(P + B·ends) bytes",
        unit="sequences",
    )
    lab.row(
        "decode_batch_flops_matrices", 2 * 64 * elements, of_kind(many[0], ("mm",))[0], "2BP", unit="FLOPs"
    )
    lab.row(
        "decode_batch_more_bytes_tokens",
        caches.predict(model, 64 * (context - 128), 2),
        far[1][1].bytes - many[1][1].bytes,
        "F3: each old key and value is read once",
        context=context,
    )
    group, d = model.heads // model.key_heads, model.head_dim
    for batch, tokens in ((1, context), (64, context)):
        flops, nbytes = of_kind(llama(batch, tokens)[0], ("glasscluster.cached_attention",))
        right = 2 * 2 * group * d * (tokens + 1) / (2 * (2 * d * (tokens + 1) + 2 * group * d))
        lab.row(
            "decode_batch_attention_flops_byte",
            right,
            flops / nbytes,
            "group of query heads a key head ÷ bytes an element × 2",
            unit="FLOPs/byte",
            tolerance=1e-9,
            batch=batch,
        )
    read = (
        one[0].results[0].parameter_bytes - model.vocab * model.hidden * 2
    )  # of the embedding a step reads a row
    floor = generation.predict_floor(read, caches.predict(model, 128, 2), h100)
    lab.row(
        "decode_batch_least_time_step",
        floor,
        None,
        "(weights + cache) ÷ bandwidth",
        simulated=one[1][1].roof_s,
        unit="s",
        match="virtual",
        tolerance=0.01,
    )
    lab.row(
        "prefill_tokens_limited_compute",
        1,
        int(llama(1, context)[1][0].intensity >= ridge),
        "F31",
        unit="yes",
        context=context,
    )
    step = {
        what: one[0].replay(h100.scaled(flops=2) if what == "flops" else what, precision="bf16")
        for what in ("dgx-h100", "flops", "dgx-h200")
    }
    busy = {
        k: generation.phases(t, h100, "bf16")[1].time_s
        - h100.gpu.launch_s * int((t.graph.micro_batch == 1).sum())
        for k, t in step.items()
    }
    lab.row(
        "decode_time_twice_flop_over_time",
        1,
        None,
        "bound by memory",
        simulated=busy["flops"] / busy["dgx-h100"],
        unit="×",
        match="virtual",
        tolerance=1e-9,
    )
    lab.row(
        "decode_time_h200_over_time_h100",
        h100.gpu.memory_bandwidth / hardware("dgx-h200").gpu.memory_bandwidth,
        None,
        "3.35 ÷ 4.8 TB/s",
        simulated=busy["dgx-h200"] / busy["dgx-h100"],
        unit="×",
        match="virtual",
        tolerance=1e-9,
    )

    lab.ask("number", said, "×")

    def dots(lang: str) -> Any:
        drawn = [[(f"{s}", llama(1, s)[1][0]) for s in prompts]] + [
            [(f"B = {b}", llama(b, s)[1][1]) for b in batches] for s in (128, context)
        ]
        return roofline_figure(
            h100.gpu,
            "bf16",
            {
                n: [Dot(t, p.flops, p.bytes, p.time_s) for t, p in row]
                for n, row in zip(
                    (
                        lab.word("prefill_prompt", lang),
                        lab.word("decode_tokens", lang),
                        lab.word("decode_tokens_2", lang, context=context),
                    ),
                    drawn,
                    strict=True,
                )
            },
            lang,
        )

    lab.figure("llama_h100_prefill_tokens", dots)
    lab.figure(
        "decode_step_f31_weights",
        lambda lang: lines(
            {
                **{
                    names[lang][1 + i]: (batches, [llama(b, s)[1][1].roof_s * 1e3 for b in batches])
                    for i, s in enumerate((128, context))
                },
                lab.word("weights_alone", lang): (
                    batches,
                    [read / h100.gpu.memory_bandwidth * 1e3] * len(batches),
                ),
            },
            lab.word("sequences_batch", lang),
            lab.word("ms_decode_step_least", lang),
            log_x=True,
        ),
    )
    ms, launches = (
        {k: v[1][1].time_s * 1e3 for k, v in recorded.items()},
        int((one[0].graph.micro_batch == 1).sum()),
    )
    lab.tell(
        "decode_sequence_has_flops",
        decode_intensity=one[1][1].intensity,
        context=context,
        prefill_intensity=llama(1, context)[1][0].intensity,
        ridge=ridge,
    )
    lab.tell("rule_says_sequences_vectors", said=said)
    lab.tell(
        "tokens_batch_step_takes",
        context=context,
        far_ms=far[1][1].roof_s * 1000.0,
        many_ms=many[1][1].roof_s * 1000.0,
    )
    lab.tell(
        "kernel_kernel_launch_batch",
        launch_us=h100.gpu.launch_s * 1000000.0,
        step_ms=ms[1, 128],
        launches=launches,
        floor_ms=floor * 1000.0,
    )
    lab.tell("small_gpt_run_beside", view="tab=timeline&run=generation")
    lab.conclude(said=said)
    lab.explain()
    lab.own_number(said=said, floor_ms=floor * 1000.0)
