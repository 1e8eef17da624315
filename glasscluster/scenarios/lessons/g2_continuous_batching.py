"""G2: the same requests in static batches, and with slots and blocks handed out anew at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
@lesson(
    "G2",
    title=("Paged KV and continuous batching", "分页与连续批处理"),
    topic=("inference", "推理"),
    question=("Twelve requests of different lengths in static batches of four: how much does padding waste?", "十二个长短不一的请求，按四个一批静态处理：填充浪费多少？"),
    formula=Formula("Eq 33", "static: 1 − mean(len)/max(len) of a batch; paged: at most block − 1 tokens a sequence", "X", "Orca, OSDI'22; vLLM 2309.06180"),
    kills=("“Bigger batch, bigger waste.” That is padding: the longest of many is longer. Where a slot is refilled in the step after its request ended, and memory comes in blocks, no slot is empty while somebody waits, however large the batch.",
           "“批越大浪费越多。”那是填充造成的：序列越多，最长的就越长。请求一结束、下一步就补上新请求，内存又按块分配时，只要还有请求在等，无论批多大都没有空槽。"),
    card=Card(
        ("How do continuous batching and PagedAttention raise a server's throughput?", "连续批处理与 PagedAttention 如何提高服务吞吐？"),
        ("Decode is bound by memory, so throughput is tokens a step. Static batches wait for their slowest: 1 − mean/max of the slots is lost. Deciding anew at every step refills a slot at once; blocks of k tokens waste at most k − 1 a sequence, so the same memory holds more sequences.",
         "解码受内存限制，吞吐取决于每步产出的 token 数。静态批要等最慢的请求，损失 1 − 平均/最长 的槽位。每步重新调度可立刻补上空槽；k 个 token 一块的分页缓存每条序列至多浪费 k − 1 个槽位，同样的内存能放下更多序列。"),
        ("Orca: scheduling at each iteration, and selective batching: matrices see all tokens side by side, attention each sequence apart. vLLM: a table maps a sequence's positions to blocks, as virtual memory does; no reservation for the longest, no holes between sequences, sharing of prefixes by reference count. Admission needs blocks for the prompt only, so the pool can run out: the youngest is preempted and recomputed (one prefill of prompt and tokens so far) or swapped; the oldest never leaves, so there is no deadlock. A long prompt in a step makes the others wait: chunked prefill bounds that. Watch time to first token and time per token, not throughput alone.",
         "Orca：按迭代调度，并做选择性批处理：矩阵乘法把所有 token 并排处理，注意力则逐序列进行。vLLM：像虚拟内存一样用表把序列位置映射到块；不为最长长度预留，序列之间没有空洞，前缀可按引用计数共享。准入时只需够放提示的块，因此块池可能耗尽：抢占最晚到的请求，之后重算（把提示和已有 token 一次预填充）或换出；最早的请求从不让出，所以不会死锁。一步里的长提示会让其他请求等待，分块预填充可限制这一点。除吞吐外还要看首 token 时间和每 token 时间。"),
        (("What does prefix sharing need from the block table?", "前缀共享对块表有什么要求？"), ("Why does vLLM preempt all blocks of a sequence and not some?", "vLLM 抢占时为什么让出一条序列的全部块，而不是一部分？")),
    ),
    hardware="dgx-h100",
)
def continuous_batching(lab: Lab, requests: int = 12, slots: int = 4) -> None:
    """A small GPT serves the same requests four times: static, continuous, with more slots in the same memory, with too few blocks."""
    from glasscluster.model.decoding import cache as caches
    from glasscluster.scenarios.jobs import serving as checks
    from glasscluster.scenarios.jobs.serving import Serving
    from glasscluster.scenarios.jobs.serving_command import draw_requests
    from glasscluster.strategies.plan import make_model
    from glasscluster.strategies.serving import batching
    from glasscluster.strategies.serving.batching import Continuous, Static, plan
    from glasscluster.strategies.serving.serving import ServingJob, make_schedule, serve_rank
    from glasscluster.visualize.figures.plots import lines
    from glasscluster.visualize.figures.slots import cache_figure, slots_figure

    model = make_model("tiny", layers=1, seq=40)
    load = draw_requests(requests, 8, 12, 0.0, model, lab.seed)
    block, capacity = 8, max(r.cached for r in load)
    most = -(-capacity // block)  # blocks of the longest
    static = ServingJob(model, load, "static", slots)
    paged = replace(static, policy="continuous", block=block, blocks=slots * most)
    jobs = {"static": static, "continuous": paged, "wide": replace(paged, slots=2 * slots), "tight": replace(paged, blocks=most + slots)}
    titles = {"static": (f"Static batches of {slots}", f"静态批，每批 {slots} 个"), "continuous": ("Continuous batching", "连续批处理"),
              "wide": (f"Continuous, {2 * slots} slots, the same memory", f"连续，{2 * slots} 个槽位，内存不变"), "tight": (f"Continuous, {most + slots} blocks: preemption", f"连续，只有 {most + slots} 块：抢占")}
    made: dict[str, Serving] = {}
    for name, job in jobs.items():
        cluster = lab.cluster(1)
        schedule = make_schedule(job, cluster.hardware)
        run = lab.run(name, titles[name], serve_rank, job, schedule, gpus=1, precision="fp32")
        made[name] = Serving(job, schedule, run)
        exact = cluster.run(serve_rank, replace(job, precision="fp64", capture=True), schedule, record=False).results
        run.checks += checks.equality_rows(job, exact) + checks.counted_rows(made[name])

    together = checks.batches(static, made["static"].schedule)
    computed, empty = batching.predict_static(load, together, slots)
    lab.check("static batches, share of the slots without a token", empty / computed, made["static"].idle_slots, "Eq 33: 1 − mean/max of each batch", unit="fraction", tolerance=1e-12)
    ends = [n - 1 for n, step in enumerate(made["static"].schedule.steps) if step.cleared] + [len(made["static"].schedule.steps) - 1]
    result = made["static"].run.results[0]
    counted = sum(result.reserved_bytes[n] - result.filled_bytes[n] for n in ends) // result.token_bytes
    lab.check("static cache, slots without a token when a batch ends", sum(slots * capacity - sum(load[r].cached for r in b) for b in together), counted, "Eq 33: each slot is as long as the longest request", unit="slots")
    lab.check("static, steps", sum(max(load[r].tokens for r in b) for b in together), len(result.used), "each batch waits for its slowest", unit="steps")
    lab.check("the same memory for both, the static cache in blocks", caches.predict(static.model, slots * most * block, 4), made["continuous"].run.results[0].cache_bytes, "Eq 3")

    many, sizes = draw_requests(192, 8, 12, 0.0, model, lab.seed + 1), (1, 2, 4, 8, 16, 32)
    idle: dict[str, list[float]] = {"static": [], "continuous": [], "waiting": []}
    said, each = [], -(-max(r.cached for r in many) // block)
    for n in sizes:
        for name, policy in (("static", Static(many, n)), ("continuous", Continuous(many, n, block, n * each))):
            steps = plan(many, policy, lambda _step: 1.0).steps  # type: ignore[arg-type]
            last = max(i for i, step in enumerate(steps) if not all(w.start for w in step.work))  # the last one is admitted: until then somebody waits
            for key, part in ((name, steps), ("waiting", steps[:last])):
                if key != "waiting" or name == "continuous":
                    idle[key].append(1 - sum(w.count > 0 for step in part for w in step.work) / (n * len(part)))
        order = [list(range(a, min(a + n, len(many)))) for a in range(0, len(many), n)]
        whole, bare = batching.predict_static(many, order, n)
        said.append(bare / whole)
        lab.check(f"192 requests, {n} slots, static share without a token", said[-1], idle["static"][-1], "Eq 33", unit="fraction", tolerance=1e-12)

    lab.check("192 requests, continuous, share without a token while requests wait", 0, max(idle["waiting"]), "a slot is refilled in the next step", unit="fraction")
    percent, hw = 100 * made["static"].idle_slots, lab.hardware
    lab.ask(f"{requests} requests of {', '.join(str(r.tokens) for r in load)} new tokens, static batches of {slots} in this order: what percentage of slots × steps gives no token?",
            f"{requests} 个请求分别要生成 {'、'.join(str(r.tokens) for r in load)} 个新 token，按此顺序每 {slots} 个一批：槽位 × 步数中有百分之几没有产出 token？", percent, "%")

    def named(lang: str, which: tuple[str, ...]) -> Any:
        return {titles[k][lang == "zh"]: made[k] for k in which}

    lab.figure(("Who has which slot when", "哪个请求在何时占用哪个槽位"),
               lambda lang: slots_figure({k: v.spans() for k, v in named(lang, ("static", "continuous", "tight")).items()}, hw, lang))
    lab.figure(("The cache over time: what is reserved, and what holds tokens", "缓存随时间的变化：预留了多少，其中多少存着 token"),
               lambda lang: cache_figure({k: v.held() for k, v in named(lang, ("static", "continuous", "wide")).items()}, hw, lang))
    axes = {"en": ("slots", "% of slots × steps without a token", "static, Eq 33", "continuous", "continuous, while requests wait"),
            "zh": ("槽位数", "没有产出 token 的槽位 × 步数 %", "静态，Eq 33", "连续", "连续，仍有请求等待时")}
    lab.figure(("192 requests: padding wastes more the larger the batch; refilled slots are empty only in the end, when nobody is left (plans, a unit of time a step)", "192 个请求：批越大，填充浪费越多；随时补位的槽位只在最后没有请求时才空（仅调度，每步一个时间单位）"),
               lambda lang: lines({axes[lang][2]: (sizes, [100 * v for v in said]), axes[lang][3]: (sizes, [100 * v for v in idle["continuous"]]), axes[lang][4]: (sizes, [100 * v for v in idle["waiting"]])}, axes[lang][0], axes[lang][1], log_x=True))
    rate = {k: v.tokens_per_s for k, v in made.items()}
    first = {k: 1e3 * sum(v.first_token_s) / requests for k, v in made.items()}
    lab.tell(f"Static batches take {len(made['static'].times)} steps and {percent:.1f} % of their slots give no token; continuous batching takes {len(made['continuous'].times)}.",
             f"静态批需要 {len(made['static'].times)} 步，{percent:.1f} % 的槽位没有产出；连续批处理只需 {len(made['continuous'].times)} 步。", "tab=timeline&run=static")
    lab.tell(f"On {hw} that is {rate['continuous'] / rate['static']:.2f} times the tokens a second, and {first['continuous']:.2f} instead of {first['static']:.2f} ms to a request's first token on average.",
             f"在 {hw} 上，每秒 token 数是静态的 {rate['continuous'] / rate['static']:.2f} 倍，平均首 token 时间从 {first['static']:.2f} ms 降到 {first['continuous']:.2f} ms。", "tab=timeline&run=continuous")
    lab.tell(f"Of the static cache {100 * made['static'].empty_cache:.0f} % hold no token over time, of the blocks {100 * made['continuous'].empty_cache:.0f} %.",
             f"按时间平均，静态缓存有 {100 * made['static'].empty_cache:.0f} % 没有 token，分页的块只有 {100 * made['continuous'].empty_cache:.0f} %。")
    lab.tell(f"So the same memory has room for {2 * slots} sequences at once: {rate['wide'] / rate['static']:.2f} times the tokens a second.",
             f"因此同样的内存可同时容纳 {2 * slots} 条序列：每秒 token 数为 {rate['wide'] / rate['static']:.2f} 倍。", "tab=memory&run=wide")
    lab.tell(f"With {most + slots} blocks {len(made['tight'].schedule.preemptions)} times a sequence had to leave, and {made['tight'].recomputed} tokens were computed once more. All get the tokens they get alone.",
             f"只有 {most + slots} 块时发生了 {len(made['tight'].schedule.preemptions)} 次抢占，{made['tight'].recomputed} 个 token 被重算。每个请求得到的 token 仍与单独生成时相同。", "tab=timeline&run=tight")
    lab.conclude(f"Padding wastes {percent:.1f} % of the slots here; refilling slots at every step and memory in blocks give {rate['wide'] / rate['static']:.2f} times the tokens a second from the same memory.",
                 f"这里填充浪费了 {percent:.1f} % 的槽位；每步补位加上分块内存，用同样的内存得到 {rate['wide'] / rate['static']:.2f} 倍的每秒 token 数。")
    lab.explain("A static batch is as long as its longest request and its memory as long as the longest of all. Deciding at every step who runs, and handing out blocks as sequences grow, ties both to the tokens that there are.",
                "静态批的时长由批中最长的请求决定，内存则按所有请求中最长的预留。每步决定谁运行、随序列增长分配块，使两者只取决于实际的 token。",
                ("1 − mean/max grows with the batch: the longest of many is longer.", "1 − 平均/最长 随批增大：序列越多，最长的越长。"),
                ("Blocks waste less than a block a sequence, so more sequences fit; who has to leave is computed again.", "每条序列浪费不到一个块，因此能放下更多序列；被迫让出的序列之后重算。"))
    lab.own_number(f"{percent:.1f} % wasted by padding; {rate['continuous'] / rate['static']:.2f} × and {rate['wide'] / rate['static']:.2f} × the tokens a second.", f"填充浪费 {percent:.1f} %；每秒 token 数为 {rate['continuous'] / rate['static']:.2f} 倍和 {rate['wide'] / rate['static']:.2f} 倍。")
