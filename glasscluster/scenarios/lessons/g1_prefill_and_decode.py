"""G1: the same weights twice: prefill multiplies matrices, decode waits for memory."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
def matrices(model: Any) -> tuple[int, int]:
    """Elements of the matrices that a token is multiplied with, and of the vectors that go in and come out of them."""
    h, kv, f, layers = model.hidden, model.key_width, model.width, model.layers
    inside = h * (h + 2 * kv) + h * h + (model.gates + 1) * h * f, (h + h + 2 * kv) + 2 * h + (h + model.gates * f) + (f + h)
    return layers * inside[0] + model.vocab * h, layers * inside[1] + h + model.vocab


def of_kind(run: Any, names: tuple[str, ...], step: int = 1) -> tuple[int, int]:
    """FLOPs and bytes of a step's kernels of some names, on rank 0."""
    import numpy as np
    graph = run.graph
    here = np.isin(graph.op, [i for i, name in enumerate(graph.names) if name in names]) & (graph.micro_batch == step) & (graph.rank == 0)
    return int(graph.flops[here].sum()), int(graph.bytes[here].sum())


@lesson(
    "G1",
    title=("Prefill vs decode", "预填充与解码"),
    topic=("inference", "推理"),
    question=("How large must the batch be until decode on an H100 is limited by compute?", "在 H100 上，批要多大，解码才受算力限制？"),
    formula=Formula("Eq 31", "min(peak, I·bandwidth); decode's matrices: I ≈ B FLOPs a byte in bf16; H100: 989 / 3.35 = 295; Eq 3", "V", "Williams et al. 2009; Pope et al. 2211.05102"),
    kills=("“Tokens per second scale with TFLOPS.” A decode step reads all weights and all of the cache for one token a sequence: twice the FLOP/s change nothing, twice the bandwidth halves the time.",
           "“每秒 token 数随 TFLOPS 增长。”解码一步要为每条序列的一个 token 读一遍全部权重和缓存：算力翻倍毫无变化，带宽翻倍则时间减半。"),
    card=Card(
        ("Why is decode memory-bound, and what does batching do about it?", "为什么解码受内存限制？批处理起什么作用？"),
        ("Each step reads every weight once for B tokens: about B FLOPs a byte in bf16; the H100 needs 295. The batch shares the weights, not the cache: each sequence reads its own keys and values.",
         "每一步为 B 个 token 把权重读一遍：bf16 下约每字节 B 次运算；H100 需要 295。批共享的是权重而不是缓存：每条序列读自己的键和值。"),
        ("Prefill has S tokens of a prompt in one product: hundreds of FLOPs a byte, bound by compute. Decode: 2·B·P FLOPs over 2·P bytes. Floor of a step: (weights + cache) / bandwidth. Attention in decode has 2·(a/n_kv)/w FLOPs a byte of cache whatever the batch: at long context the cache outweighs the weights, and a larger batch makes a step longer. Remedies: GQA or MLA (a smaller cache, more FLOPs a byte), quantised weights and cache, speculation (several tokens a read), chunked prefill beside decode, separate machines for both.",
         "预填充把提示的 S 个 token 放进一次乘法：每字节数百次运算，受算力限制。解码：2·B·P 次运算对 2·P 字节。一步的下限：(权重 + 缓存) / 带宽。解码时注意力对缓存每字节只有 2·(a/n_kv)/w 次运算，与批大小无关：上下文一长，缓存就超过权重，批越大一步越久。对策：GQA 或 MLA（缓存更小、每字节运算更多）、量化权重与缓存、投机解码（读一次出多个 token）、分块预填充与解码混排、两阶段分机部署。"),
        (("Why does chunked prefill help both phases?", "为什么分块预填充对两个阶段都有好处？"), ("What do speculative tokens change on the roofline?", "投机 token 在屋顶线上改变了什么？")),
    ),
)
def prefill_and_decode(lab: Lab, context: int = 4096) -> None:
    """A small GPT generates with a cache, counted; then Llama 3 8B, recorded dry on one H100: prompts and batches on the roofline."""
    from glasscluster.model.decoding import cache as caches
    from glasscluster.scenarios.jobs import generation as checks
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.plan import make_model
    from glasscluster.strategies.serving import generation
    from glasscluster.strategies.serving.generation import GenerationJob, generate_rank
    from glasscluster.visualize.figures.plots import lines
    from glasscluster.visualize.figures.roofline import Dot, roofline_figure

    small = GenerationJob(make_model("tiny", kv_heads=2), (tuple(b"def generate("), tuple(b"a cache"), tuple(b"import torch")), 9, cache="paged", block=8)
    exact = replace(small, precision="fp64", capture=True)
    lab.checks += checks.equality_rows(lab.cluster(1).run(generate_rank, exact, record=False).results, checks.without_cache(exact))
    run = lab.run("generation", ("A small GPT: prefill, then 8 steps", "小 GPT：预填充，然后 8 步"), generate_rank, small, gpus=1, precision="fp32")
    lab.checks += checks.counted_rows(small, run)

    model, h100 = make_model("llama3-8b"), hardware("dgx-h100")
    ridge, recorded = h100.gpu.peak("bf16") / h100.gpu.memory_bandwidth, {}

    def llama(batch: int, tokens: int) -> tuple[Any, list[Any]]:
        if (batch, tokens) not in recorded:
            job = GenerationJob(model, ((0,) * tokens,) * batch, 2, precision="bf16")
            made = Cluster(h100, 1, "dry", memory_bytes=None).run(generate_rank, job, info={"precision": "bf16"})
            recorded[batch, tokens] = made, generation.phases(made.timeline, h100, "bf16")
        return recorded[batch, tokens]

    batches, prompts = (1, 64, 256), (16, 128, context)
    elements, ends = matrices(model)
    said = ceil(ridge * elements / (elements - ridge * ends))
    reached = [b for b in (said - 1, said) if (work := of_kind(llama(b, 1)[0], ("mm",)))[0] >= ridge * work[1]]
    one, many, far = llama(1, 128), llama(64, 128), llama(64, context)
    lab.check("H100: FLOPs a byte at the ridge, bf16", 295, ridge, "989 TFLOP/s ÷ 3.35 TB/s", unit="FLOPs/byte", tolerance=0.5)
    lab.check("decode: smallest batch whose matrices reach the ridge", said, reached[0] if reached else None, "2BP FLOPs over 2(P + B·ends) bytes", unit="sequences")
    lab.check("decode, batch 64: FLOPs of the matrices", 2 * 64 * elements, of_kind(many[0], ("mm",))[0], "2BP", unit="FLOPs")
    lab.check(f"decode, batch 64: more bytes at {context} tokens than at 128", caches.predict(model, 64 * (context - 128), 2), far[1][1].bytes - many[1][1].bytes, "Eq 3: each old key and value is read once")
    group, d = model.heads // model.key_heads, model.head_dim
    for batch, tokens in ((1, context), (64, context)):
        flops, nbytes = of_kind(llama(batch, tokens)[0], ("glasscluster.cached_attention",))
        right = 2 * 2 * group * d * (tokens + 1) / (2 * (2 * d * (tokens + 1) + 2 * group * d))
        lab.check(f"decode, batch {batch}: attention's FLOPs a byte", right, flops / nbytes, "group of query heads a key head ÷ bytes an element × 2", unit="FLOPs/byte", tolerance=1e-9)
    read = one[0].results[0].parameter_bytes - model.vocab * model.hidden * 2  # of the embedding a step reads a row
    floor = generation.predict_floor(read, caches.predict(model, 128, 2), h100)
    lab.check("decode, batch 1: least time of a step", floor, None, "(weights + cache) ÷ bandwidth", simulated=one[1][1].roof_s, unit="s", match="virtual", tolerance=0.01)
    lab.check(f"prefill of {context} tokens: limited by compute", 1, int(llama(1, context)[1][0].intensity >= ridge), "Eq 31", unit="yes")
    step = {what: one[0].replay(h100.scaled(flops=2) if what == "flops" else what, precision="bf16") for what in ("dgx-h100", "flops", "dgx-h200")}
    busy = {k: generation.phases(t, h100, "bf16")[1].time_s - h100.gpu.launch_s * int((t.graph.micro_batch == 1).sum()) for k, t in step.items()}
    lab.check("decode: time with twice the FLOP/s over time with one", 1, None, "bound by memory", simulated=busy["flops"] / busy["dgx-h100"], unit="×", match="virtual", tolerance=1e-9)
    lab.check("decode: time on an H200 over time on an H100", h100.gpu.memory_bandwidth / hardware("dgx-h200").gpu.memory_bandwidth, None, "3.35 ÷ 4.8 TB/s", simulated=busy["dgx-h200"] / busy["dgx-h100"], unit="×", match="virtual", tolerance=1e-9)

    lab.ask("Llama 3 8B in bf16 on one H100: how many sequences until decode's matrices are limited by compute?",
            "一块 H100 上的 bf16 Llama 3 8B：解码的矩阵运算要多少条序列才受算力限制？", said, "×")
    names = {"en": ("prefill, one prompt", "decode, 128 tokens each", f"decode, {context} tokens each"), "zh": ("预填充，一条提示", "解码，每条 128 个 token", f"解码，每条 {context} 个 token")}

    def dots(lang: str) -> Any:
        drawn = [[(f"{s}", llama(1, s)[1][0]) for s in prompts]] + [[(f"B = {b}", llama(b, s)[1][1]) for b in batches] for s in (128, context)]
        return roofline_figure(h100.gpu, "bf16", {n: [Dot(t, p.flops, p.bytes, p.time_s) for t, p in row] for n, row in zip(names[lang], drawn, strict=True)}, lang)

    lab.figure(("Llama 3 8B on one H100: prefill by tokens of the prompt, decode by batch; time with 5 µs a kernel launch", "一块 H100 上的 Llama 3 8B：预填充按提示的 token 数，解码按批大小；每次核启动计 5 µs"), dots)
    axes = {"en": ("sequences in the batch", "ms a decode step, at least", "weights alone"), "zh": ("批中的序列数", "解码一步至少需要的 ms", "仅权重")}
    lab.figure(("A decode step by Eq 31: the weights are read once for all, the cache once for each", "Eq 31 给出的解码一步：权重为所有序列读一次，缓存则每条序列各读一次"),
               lambda lang: lines({**{names[lang][1 + i]: (batches, [llama(b, s)[1][1].roof_s * 1e3 for b in batches]) for i, s in enumerate((128, context))},
                                   axes[lang][2]: (batches, [read / h100.gpu.memory_bandwidth * 1e3] * len(batches))}, axes[lang][0], axes[lang][1], log_x=True))
    ms, launches = {k: v[1][1].time_s * 1e3 for k, v in recorded.items()}, int((one[0].graph.micro_batch == 1).sum())
    lab.tell(f"Decode of one sequence has {one[1][1].intensity:.2f} FLOPs a byte, prefill of {context} tokens {llama(1, context)[1][0].intensity:.0f}; the ridge is {ridge:.0f}.",
             f"单条序列的解码每字节 {one[1][1].intensity:.2f} 次运算，{context} 个 token 的预填充为 {llama(1, context)[1][0].intensity:.0f}；脊点为 {ridge:.0f}。")
    lab.tell(f"The rule says 295 sequences; vectors in and out make it {said}: each is read and written beside the weights.",
             f"经验值是 295 条序列；加上输入输出向量的读写后为 {said} 条。")
    lab.tell(f"At {context} tokens and batch 64 a step takes at least {far[1][1].roof_s * 1e3:.3g} ms, at 128 tokens {many[1][1].roof_s * 1e3:.3g} ms: the cache is what is read.",
             f"{context} 个 token、批 64 时一步至少 {far[1][1].roof_s * 1e3:.3g} ms，128 个 token 时 {many[1][1].roof_s * 1e3:.3g} ms：读的主要是缓存。")
    lab.tell(f"Kernel by kernel, with {h100.gpu.launch_s * 1e6:.0f} µs a launch, batch 1 takes {ms[1, 128]:.3g} ms for {launches} launches against a floor of {floor * 1e3:.3g} ms: why servers capture a step as one graph.",
             f"逐核执行、每次启动 {h100.gpu.launch_s * 1e6:.0f} µs 时，批 1 的 {launches} 次启动共需 {ms[1, 128]:.3g} ms，而下限是 {floor * 1e3:.3g} ms：所以推理服务会把一步捕获成一张图。")
    lab.tell("The small GPT's run beside it is real: logits with the paged cache equal those without, every byte of the cache is Eq 3's.", "旁边的小 GPT 是真实运行：带分页缓存与不带缓存的 logits 相等，缓存的每个字节都符合 Eq 3。", "tab=timeline&run=generation")
    lab.conclude(f"Decode needs {said} sequences before compute limits its matrices, and no batch makes its attention compute-bound; prefill gets there with one prompt.",
                 f"解码要 {said} 条序列，其矩阵运算才受算力限制，而注意力无论批多大都受内存限制；预填充一条提示就够了。")
    lab.explain("A weight that is read serves every token of the batch; a cached key serves one sequence. Intensity is tokens a weight, or query heads a key head.",
                "读一次权重可供批中所有 token 使用；一个缓存的键只供一条序列使用。强度就是每个权重服务的 token 数，或每个键值头服务的查询头数。",
                ("Decode reads weights and cache once a step: the floor is their bytes over the bandwidth.", "解码每步读一遍权重和缓存：下限是它们的字节数除以带宽。"),
                ("Batching raises the matrices' intensity, never the attention's.", "批处理提高矩阵运算的强度，但不提高注意力的强度。"))
    lab.own_number(f"{said} sequences; floor {floor * 1e3:.3g} ms a token.", f"{said} 条序列；每 token 下限 {floor * 1e3:.3g} ms。")
