"""A3: what generation keeps of every token, and how many users that leaves room for: MHA, GQA, MQA, MLA."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from glasscluster.base.errors import OutOfMemory
from glasscluster.model.decoding import cache as caches
from glasscluster.model.decoding.cache import StaticCache
from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.jobs import generation as checks
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.run import Cluster
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving.generation import GenerationJob, generate_rank
from glasscluster.visualize.figures.plots import bars


def hold(gpu: Any, model: Any, users: int) -> int:
    """A model in bf16 and the caches of some users, each as long as the model's sequences; bytes that are left of the GPU."""

    cache = StaticCache(GPTStage(model, dtype=torch.bfloat16, device=gpu.device), users, model.seq)
    return cache.bytes


@lesson
def key_value_cache(lab: Lab, capacity: int = 80_000_000_000) -> None:
    """Four small models generate with a cache, counted and equal to no cache; four shapes of an 8B model fill an 80 GB GPU."""

    llama = {"norm": "rmsnorm", "bias": False, "position": "rope", "activation": "swiglu", "heads": 8}
    small = {
        "MHA": {},
        "GQA": {"kv_heads": 2},
        "MQA": {"kv_heads": 1},
        "MLA": {"kv_latent": 12, "rope_dim": 4},
    }
    big: dict[str, dict[str, Any]] = {
        "MHA": {"kv_heads": 32},
        "GQA": {"kv_heads": 8},
        "MQA": {"kv_heads": 1},
        "MLA": {"kv_heads": 32, "kv_latent": 512, "rope_dim": 64},
    }
    titles = {
        "MHA": lab.text("multi_head_attention"),
        "GQA": lab.text("grouped_queries"),
        "MQA": lab.text("key_head"),
        "MLA": lab.text("latent_attention"),
    }
    worst = other = 0.0
    for name, more in small.items():
        job = GenerationJob(make_model("tiny", **llama, **more), (tuple(b"def forward("), tuple(b"a key")), 6)
        run = lab.run(
            name,
            lab.text("text", name=name, kind=titles[name][1]),
            generate_rank,
            job,
            gpus=1,
            precision="fp32",
        )
        lab.row(
            "cache_small_model",
            caches.predict(job.model, 2 * job.capacity, 4),
            run.results[0].cache_bytes,
            "F3",
            name=name,
        )
        exact = replace(job, precision="fp64", capture=True)
        rows = checks.equality_rows(
            lab.cluster(1).run(generate_rank, exact, record=False).results, checks.without_cache(exact)
        )
        worst, other = max(worst, rows[0]["counted"]), other + rows[1]["counted"]
    lab.row(
        "largest_logits_difference_no_cache_all",
        0,
        worst,
        "one device computes every token again",
        unit="relative",
        tolerance=1e-10,
    )
    lab.row(
        "tokens_chosen_otherwise_without_cache_all",
        0,
        other,
        "one device computes every token again",
        unit="tokens",
    )

    models, users, weights, a_user, flops = (
        {k: make_model("llama3-8b", **more) for k, more in big.items()},
        {},
        {},
        {},
        {},
    )
    for name, model in models.items():
        weights[name], a_user[name] = 2 * model.parameters(), caches.predict(model, model.seq, 2)
        said, fits = (capacity - weights[name]) // a_user[name], []
        gpu = Cluster("dgx-a100-80gb", 1, "dry", memory_bytes=capacity)
        for many in (said, said + 1):
            with suppress(OutOfMemory):
                fits.append((many, gpu.run(hold, model, many).results[0]))
        users[name] = max(many for many, _ in fits)
        lab.row(
            "users_tokens_gb",
            said,
            users[name],
            "F3: (80 GB − weights) ÷ a user's cache",
            unit="users",
            name=name,
        )
        lab.row("cache_so_many_users", said * a_user[name], fits[-1][1], "F3", name=name)
        job = GenerationJob(model, ((0,) * 8,), 2, precision="bf16")
        graph = Cluster("dgx-a100-80gb", 1, "dry", memory_bytes=None).run(generate_rank, job).graph
        flops[name] = int(graph.flops[graph.micro_batch == 1].sum())
    less = {k: flops["MHA"] / flops[k] for k in flops}
    lab.row("mha_cache_over_gqa", 4, a_user["MHA"] / a_user["GQA"], "a / n_kv = 32 / 8", unit="×")
    saved = 2 * 32 * 4096 * 2 * (32 - 8) * 128
    lab.row(
        "flops_decode_step_gqa_saves",
        saved,
        flops["MHA"] - flops["GQA"],
        "columns of K and V: 2·L·h·2(a − n_kv)d",
        unit="FLOPs",
    )
    seventy = make_model("llama3-70b")
    lab.row("tokens_batch_gqa", 80 * 1024**3, caches.predict(seventy, 8192 * 32, 2), "2.5 GiB a sequence")
    lab.ask("number", users["GQA"], "users")
    groups = [f"{k}, B = {b}" for b in (1, 16, 64) for k in models]

    def memory(lang: str) -> Any:
        figure = bars(
            groups,
            {
                lab.word("weights", lang): [weights[k] / 1e9 for _ in range(3) for k in models],
                lab.word("cache", lang): [b * a_user[k] / 1e9 for b in (1, 16, 64) for k in models],
            },
            lab.word("gb", lang),
            stack=True,
        )
        figure.add_hline(
            y=capacity / 1e9, line={"color": "#333333", "dash": "dash", "width": 2}, annotation_text="80 GB"
        )
        return figure

    lab.figure("memory_model_kind_attention", memory)
    lab.figure(
        "users_fit_found_filling",
        lambda lang: bars(
            list(models),
            {lab.word("users_tokens_gb", lang): [users[k] for k in models]},
            lab.word("users_tokens_gb", lang),
        ),
    )
    kb = {k: a_user[k] / 8192 / 1e3 for k in models}
    lab.tell("token_takes_kb_mha", mha=kb["MHA"], gqa=kb["GQA"], mla=kb["MLA"], mqa=kb["MQA"])
    lab.tell(
        "so_gb_hold_users",
        mha_users=users["MHA"],
        gqa_users=users["GQA"],
        mla_users=users["MLA"],
        mqa_users=users["MQA"],
    )
    lab.tell("gqa_makes_cache_times", gqa_less=less["GQA"])
    lab.tell("mla_pays_flops_step", mla_less=1 / less["MLA"])
    lab.tell("four_small_models_really", view="tab=memory&run=MLA")
    lab.conclude(gqa_users=users["GQA"], mha_users=users["MHA"])
    lab.explain()
    lab.own_number(gqa_users=users["GQA"], mha_users=users["MHA"])
