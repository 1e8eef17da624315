"""A3: what generation keeps of every token, and how many users that leaves room for: MHA, GQA, MQA, MLA."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
def hold(gpu: Any, model: Any, users: int) -> int:
    """A model in bf16 and the caches of some users, each as long as the model's sequences; bytes that are left of the GPU."""
    import torch

    from glasscluster.model.decoding.cache import StaticCache
    from glasscluster.model.gpt import GPTStage
    cache = StaticCache(GPTStage(model, dtype=torch.bfloat16, device=gpu.device), users, model.seq)
    return cache.bytes


@lesson(
    "A3",
    title=("MHA→MQA→GQA→MLA and the KV cache", "KV 缓存账本"),
    topic=("attention", "注意力"),
    question=("Llama 3 8B in bf16, 8192 tokens each: how many users fit in 80 GB?", "bf16 的 Llama 3 8B，每人 8192 个 token：80 GB 能放下多少用户？"),
    formula=Formula("Eq 3", "2·L·n_kv·d·s·B·w bytes; MLA: L·(d_c + d_R)·s·B·w", "X", "MQA 1911.02150; GQA 2305.13245; DeepSeek-V2 2405.04434, table 1"),
    kills=("“GQA saves FLOPs.” It drops some columns of K and V from one product of many; what shrinks by a/n_kv is the cache, and so what every decode step reads.",
           "“GQA 省了很多 FLOPs。”它只在众多乘法中的一个里少算了 K、V 的一些列；缩小 a/n_kv 倍的是缓存，也就是解码每一步要读的量。"),
    card=Card(
        ("How large is the KV cache of a 70B model at 8k tokens and batch 32, and how do GQA and MLA shrink it?", "70B 模型、8k token、批 32 的 KV 缓存有多大？GQA 与 MLA 如何缩小它？"),
        ("2·L·n_kv·d·s·B·w: with 80 layers, 8 key heads of 128 in 16 bits it is 2.5 GiB a sequence, 80 GiB for 32; with 64 key heads eight times that. MLA keeps one latent of 512 and 64 rotary elements a layer for all heads.",
         "2·L·n_kv·d·s·B·w：80 层、8 个 128 维键值头、16 位时每条序列 2.5 GiB，32 条为 80 GiB；64 个键值头则是其八倍。MLA 每层只为所有头保留一个 512 维潜向量和 64 个旋转元素。"),
        ("A token's keys and values depend only on what came before, so they are computed once and kept. MQA: one key head for all; GQA: one a group, quality near MHA's. Keys are cached after their rotation. MLA: c = W_D x is kept; W_UK is absorbed into the query and W_UV behind the sum, so decode is MQA with heads of d_c + d_R; the rotary part stands apart because a rotation between W_UQ and W_UK could not be absorbed. On t tensor ranks the cache is divided until t = n_kv; MLA's is whole on each. Training keeps none: all positions are computed at once, each key is used in that forward, and backward needs it on the graph.",
         "一个 token 的键和值只取决于它之前的内容，所以只算一次并保留。MQA：所有头共用一个键值头；GQA：每组一个，质量接近 MHA。缓存的键是旋转之后的。MLA：保留 c = W_D x；W_UK 吸收进查询，W_UV 放到求和之后，因此解码等于头维为 d_c + d_R 的 MQA；旋转部分要单独放，因为夹在 W_UQ 与 W_UK 之间的旋转无法吸收。在 t 个张量并行 rank 上，t 不超过 n_kv 时缓存被均分；MLA 的缓存每个 rank 都有完整一份。训练不用缓存：所有位置一次算完，每个键就在这次前向里用掉，而反向还需要它留在计算图上。"),
        (("What does PagedAttention add to this?", "PagedAttention 在此之上又解决了什么？"), ("Why does a sliding window bound the cache but not the context?", "为什么滑动窗口限制了缓存，却没有同样限制上下文？")),
    ),
)
def key_value_cache(lab: Lab, capacity: int = 80_000_000_000) -> None:
    """Four small models generate with a cache, counted and equal to no cache; four shapes of an 8B model fill an 80 GB GPU."""
    from glasscluster.base.errors import OutOfMemory
    from glasscluster.model.decoding import cache as caches
    from glasscluster.scenarios.jobs import generation as checks
    from glasscluster.sim.run import Cluster
    from glasscluster.strategies.plan import make_model
    from glasscluster.strategies.serving.generation import GenerationJob, generate_rank
    from glasscluster.visualize.figures.plots import bars

    llama = {"norm": "rmsnorm", "bias": False, "position": "rope", "activation": "swiglu", "heads": 8}
    small = {"MHA": {}, "GQA": {"kv_heads": 2}, "MQA": {"kv_heads": 1}, "MLA": {"kv_latent": 12, "rope_dim": 4}}
    big: dict[str, dict[str, Any]] = {"MHA": {"kv_heads": 32}, "GQA": {"kv_heads": 8}, "MQA": {"kv_heads": 1}, "MLA": {"kv_heads": 32, "kv_latent": 512, "rope_dim": 64}}
    titles = {"MHA": ("multi-head attention", "多头注意力"), "GQA": ("grouped queries", "分组查询"), "MQA": ("one key head", "单个键值头"), "MLA": ("latent attention", "潜注意力")}
    worst = other = 0.0
    for name, more in small.items():
        job = GenerationJob(make_model("tiny", **llama, **more), (tuple(b"def forward("), tuple(b"a key")), 6)
        run = lab.run(name, (f"{name}: {titles[name][0]}", f"{name}：{titles[name][1]}"), generate_rank, job, gpus=1, precision="fp32")
        lab.check(f"{name}: cache of the small model", caches.predict(job.model, 2 * job.capacity, 4), run.results[0].cache_bytes, "Eq 3")
        exact = replace(job, precision="fp64", capture=True)
        rows = checks.equality_rows(lab.cluster(1).run(generate_rank, exact, record=False).results, checks.without_cache(exact))
        worst, other = max(worst, rows[0]["counted"]), other + rows[1]["counted"]
    lab.check("largest logits difference from no cache, all four, float64", 0, worst, "one device computes every token again", unit="relative", tolerance=1e-10)
    lab.check("tokens chosen otherwise without a cache, all four", 0, other, "one device computes every token again", unit="tokens")

    models, users, weights, a_user, flops = {k: make_model("llama3-8b", **more) for k, more in big.items()}, {}, {}, {}, {}
    for name, model in models.items():
        weights[name], a_user[name] = 2 * model.parameters(), caches.predict(model, model.seq, 2)
        said, fits = (capacity - weights[name]) // a_user[name], []
        gpu = Cluster("dgx-a100-80gb", 1, "dry", memory_bytes=capacity)
        for many in (said, said + 1):
            with suppress(OutOfMemory):
                fits.append((many, gpu.run(hold, model, many).results[0]))
        users[name] = max(many for many, _ in fits)
        lab.check(f"{name}: users of 8192 tokens in 80 GB", said, users[name], "Eq 3: (80 GB − weights) ÷ a user's cache", unit="users")
        lab.check(f"{name}: cache of so many users", said * a_user[name], fits[-1][1], "Eq 3")
        job = GenerationJob(model, ((0,) * 8,), 2, precision="bf16")
        graph = Cluster("dgx-a100-80gb", 1, "dry", memory_bytes=None).run(generate_rank, job).graph
        flops[name] = int(graph.flops[graph.micro_batch == 1].sum())
    less = {k: flops["MHA"] / flops[k] for k in flops}
    lab.check("MHA's cache over GQA's", 4, a_user["MHA"] / a_user["GQA"], "a / n_kv = 32 / 8", unit="×")
    saved = 2 * 32 * 4096 * 2 * (32 - 8) * 128
    lab.check("FLOPs of a decode step that GQA saves", saved, flops["MHA"] - flops["GQA"], "columns of K and V: 2·L·h·2(a − n_kv)d", unit="FLOPs")
    seventy = make_model("llama3-70b")
    lab.check("70B, 8192 tokens, batch 32, GQA", 80 * 1024**3, caches.predict(seventy, 8192 * 32, 2), "2.5 GiB a sequence")
    lab.ask("80 GB, Llama 3 8B with its 8 key heads, 8192 tokens each: how many users?", "80 GB、8 个键值头的 Llama 3 8B、每人 8192 个 token：多少用户？", users["GQA"], "users")
    words = {"en": ("weights", "cache of {} users", "GB", "users of 8192 tokens in 80 GB"), "zh": ("权重", "{} 个用户的缓存", "GB", "80 GB 中 8192 token 的用户数")}
    groups = [f"{k}, B = {b}" for b in (1, 16, 64) for k in models]

    def memory(lang: str) -> Any:
        figure = bars(groups, {words[lang][0]: [weights[k] / 1e9 for _ in range(3) for k in models],
                               {"en": "cache", "zh": "缓存"}[lang]: [b * a_user[k] / 1e9 for b in (1, 16, 64) for k in models]}, words[lang][2], stack=True)
        figure.add_hline(y=capacity / 1e9, line={"color": "#333333", "dash": "dash", "width": 2}, annotation_text="80 GB")
        return figure

    lab.figure(("Memory of an 8B model by kind of attention and batch, 8192 tokens each, bf16", "8B 模型的显存：按注意力种类与批大小，每条 8192 个 token，bf16"), memory)
    lab.figure(("Users that fit, found by filling a virtual GPU until it is out of memory", "能放下的用户数：把虚拟 GPU 填到显存不足为止"),
               lambda lang: bars(list(models), {words[lang][3]: [users[k] for k in models]}, words[lang][3]))
    kb = {k: a_user[k] / 8192 / 1e3 for k in models}
    lab.tell(f"A token takes {kb['MHA']:.1f} kB with MHA, {kb['GQA']:.1f} with GQA, {kb['MLA']:.1f} with MLA, {kb['MQA']:.1f} with MQA.",
             f"每个 token 占用：MHA {kb['MHA']:.1f} kB，GQA {kb['GQA']:.1f}，MLA {kb['MLA']:.1f}，MQA {kb['MQA']:.1f}。")
    lab.tell(f"So 80 GB hold {users['MHA']}, {users['GQA']}, {users['MLA']} and {users['MQA']} users beside the weights.", f"于是 80 GB 除权重外可容纳 {users['MHA']}、{users['GQA']}、{users['MLA']}、{users['MQA']} 个用户。")
    lab.tell(f"GQA makes the cache 4 times smaller and a decode step's FLOPs {less['GQA']:.2f} times.", f"GQA 让缓存缩小 4 倍，而解码一步的 FLOPs 只缩小 {less['GQA']:.2f} 倍。")
    lab.tell(f"MLA pays with FLOPs: a step has {1 / less['MLA']:.2f} times MHA's, because queries come down to the latents and values up from them.",
             f"MLA 用 FLOPs 换内存：一步的运算是 MHA 的 {1 / less['MLA']:.2f} 倍，因为查询要降到潜空间，值要从潜空间升上来。")
    lab.tell("The four small models really generate: logits equal those without a cache, bytes equal Eq 3.", "四个小模型是真实生成：logits 与不用缓存时相等，字节数等于 Eq 3。", "tab=memory&run=MLA")
    lab.conclude(f"80 GB hold {users['GQA']} users of Llama 3 8B at 8192 tokens; with a key head for each query head {users['MHA']}.",
                 f"80 GB 可容纳 {users['GQA']} 个 8192 token 的 Llama 3 8B 用户；若每个查询头都有自己的键值头则为 {users['MHA']} 个。")
    lab.explain("The cache grows with layers, key heads, tokens and users, not with query heads: sharing keys divides it, a latent replaces it.",
                "缓存随层数、键值头数、token 数和用户数增长，与查询头数无关：共享键值头使它成倍缩小，潜向量则取而代之。",
                ("Weights are there once, the cache once a user: at long context it decides how many fit.", "权重只有一份，缓存每个用户一份：上下文长时由它决定能放下多少。"),
                ("Fewer key heads save memory and what a step reads, hardly any FLOPs.", "更少的键值头省的是内存和每步的读取量，几乎不省 FLOPs。"))
    lab.own_number(f"{users['GQA']} users with GQA, {users['MHA']} with MHA.", f"GQA {users['GQA']} 个用户，MHA {users['MHA']} 个。")
