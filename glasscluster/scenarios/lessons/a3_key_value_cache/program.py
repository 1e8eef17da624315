"""A3: what generation keeps of every token, and how many users that leaves room for: MHA, GQA, MQA, MLA."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
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
    """Hold a model in bf16 and the caches of some users, each as long as the model's sequences; return the
    caches' bytes.
    """

    cache = StaticCache(GPTStage(model, dtype=torch.bfloat16, device=gpu.device), users, model.seq)
    return cache.bytes


SMALL: dict[str, dict[str, int]] = {  # the kinds of attention, of a model with 8 query heads
    "MHA": {},
    "GQA": {"kv_heads": 2},
    "MQA": {"kv_heads": 1},
    "MLA": {"kv_latent": 12, "rope_dim": 4},
}
BIG: dict[str, dict[str, int]] = {  # the same, of Llama 3 8B
    "MHA": {"kv_heads": 32},
    "GQA": {"kv_heads": 8},
    "MQA": {"kv_heads": 1},
    "MLA": {"kv_heads": 32, "kv_latent": 512, "rope_dim": 64},
}
MACHINE, BATCHES = "dgx-a100-80gb", (1, 16, 64)
CONTEXTS = (8, 1024)  # tokens of a prompt, at which a decode step's FLOPs are counted


@dataclass(frozen=True)
class Big:
    """An 8B model with one kind of attention: bytes of its weights and of a user's cache, how many users fit,
    FLOPs of a decode step behind a short prompt, and how many more each token of context costs it.
    """

    weights: int
    a_user: int
    users: int
    flops: int
    flops_of_context: int

    def at(self, context: int) -> int:
        """FLOPs of a decode step behind so many tokens."""
        return self.flops + self.flops_of_context * (context - CONTEXTS[0])


@lesson
def key_value_cache(lab: Lab, capacity: int = 80_000_000_000) -> None:
    """Four small models generate with a cache, counted and equal to no cache; four shapes of an 8B model
    fill an 80 GB GPU.
    """
    check_small_models(lab)
    models = {kind: measure(lab, kind, capacity) for kind in BIG}
    mha, gqa = models["MHA"], models["GQA"]
    mla = models["MLA"]
    lab.row("mha_over_gqa", 4, mha.a_user / gqa.a_user, "a / n_kv = 32 / 8", unit="×")
    source = "K and V: 2·L·h·2(a − n_kv)d; hidden h, query heads a"
    saved = 2 * 32 * 4096 * 2 * (32 - 8) * 128
    lab.row("flops_saved", saved, mha.flops - gqa.flops, source, unit="FLOPs")
    source = "scores and sum: 2·L·a·2d FLOPs, query heads a; MLA: 2·L·a·(2d_c + d_R)"
    for kind, columns in (("MHA", 2 * 128), ("MLA", 2 * 512 + 64)):
        counted, expected = models[kind].flops_of_context, 2 * 32 * 32 * columns
        lab.row("flops_of_context", expected, counted, source, unit="FLOPs", name=kind)
    seventy, many = make_model("llama3-70b"), make_model("llama3-70b", kv_heads=64)
    large = caches.predict(seventy, 8192 * 32, 2)
    lab.row("seventy_billion", 80 * 1024**3, large, "2.5 GiB a sequence")
    lab.row("seventy_billion_mha", 8 * large, caches.predict(many, 8192 * 32, 2), "a / n_kv = 64 / 8")

    users: dict[str, Any] = {f"{kind.lower()}_users": model.users for kind, model in models.items()}
    users["gb"] = capacity / 1e9
    lab.ask("users", gqa.users, gb=capacity / 1e9, weights=gqa.weights / 1e9, layers=32, kv_heads=8, d=128)
    lab.figure("memory", lambda lang: memory(lab, models, capacity, lang))

    def users_that_fit(lang: str) -> Any:
        name = lab.word("users", lang)
        return bars(list(models), {name: [model.users for model in models.values()]}, name)

    lab.figure("users_that_fit", users_that_fit)
    kilobytes: dict[str, Any] = {kind.lower(): model.a_user / 8192 / 1e3 for kind, model in models.items()}
    lab.tell("bytes_of_a_token", **kilobytes)
    weights: dict[str, Any] = {f"{kind.lower()}_weights": m.weights / 1e9 for kind, m in models.items()}
    lab.tell("users", **users, **weights)
    lab.tell("gqa", smaller=mha.a_user / gqa.a_user, gqa_less=mha.flops / gqa.flops, short=CONTEXTS[0])
    equal = CONTEXTS[0] + (mha.flops - mla.flops) / (mla.flops_of_context - mha.flops_of_context)
    heads: dict[str, Any] = {
        "latent": 512 + 64,
        "d": 128,
    }  # elements that a query is multiplied with: MLA's, MHA's
    lab.tell("mla", short=CONTEXTS[0], mla_short=mla.flops / mha.flops, equal=round(equal), **heads)
    lab.tell("small_models", view="tab=memory&run=MLA")
    lab.conclude(**users)
    lab.explain()
    lab.own_number(**users)
    gib = {"a_sequence": large / 32 / 1024**3, "together": large / 1024**3}
    lab.card(layers=seventy.layers, kv_heads=seventy.key_heads, d=seventy.head_dim, sequences=32, **gib)
    lab.card(
        smaller=mha.a_user / gqa.a_user,
        less=(1 - gqa.flops / mha.flops),
        more=seventy.heads // seventy.key_heads,
        short=CONTEXTS[0],
    )
    lab.card(latent=512, rotary=64, long=8192, mla_long=mla.at(8192) / mha.at(8192))


def check_small_models(lab: Lab) -> None:
    """Check four small models that generate: the bytes of their caches, and that logits and tokens are those
    without a cache.
    """
    llama: dict[str, Any] = {
        "norm": "rmsnorm",
        "bias": False,
        "position": "rope",
        "activation": "swiglu",
        "heads": 8,
    }
    worst = other = 0.0
    for kind, more in SMALL.items():
        job = GenerationJob(make_model("tiny", **llama, **more), (tuple(b"def forward("), tuple(b"a key")), 6)
        title = lab.text("run", name=kind, kind=lab.text(kind))
        run = lab.run(kind, title, generate_rank, job, gpus=1, precision="fp32")
        expected, counted = caches.predict(job.model, 2 * job.capacity, 4), run.results[0].cache_bytes
        lab.row("cache_of_small_model", expected, counted, "Eq 3", name=kind)
        exact = replace(job, precision="fp64", capture=True)
        results = lab.cluster(1).run(generate_rank, exact, record=False).results
        logits, tokens = checks.equality_rows(results, checks.without_cache(exact))[:2]
        worst, other = max(worst, logits.counted or 0.0), other + (tokens.counted or 0.0)
    source = "one device computes every token again"
    lab.row("logits", 0, worst, source, unit="relative", tolerance=1e-10)
    lab.row("tokens_chosen_otherwise", 0, other, source, unit="tokens")


def measure(lab: Lab, kind: str, capacity: int) -> Big:
    """Find how many users' caches fit a virtual GPU beside the weights, and count the FLOPs of a decode
    step.
    """
    model = make_model("llama3-8b", **BIG[kind])
    weights, a_user = 2 * model.parameters(), caches.predict(model, model.seq, 2)
    expected, fits = (capacity - weights) // a_user, {}
    gpu = Cluster(MACHINE, 1, "dry", memory_bytes=capacity)
    for many in (expected, expected + 1):
        with suppress(OutOfMemory):
            fits[many] = gpu.run(hold, model, many).results[0]
    users = max(fits)
    lab.row("users", expected, users, "Eq 3: (80 GB − weights) ÷ a user's cache", unit="users", name=kind)
    lab.row("cache_of_so_many", expected * a_user, fits[users], "Eq 3", name=kind)
    flops = []
    for prompt in CONTEXTS:
        job = GenerationJob(model, ((0,) * prompt,), 2, precision="bf16")
        graph = Cluster(MACHINE, 1, "dry", memory_bytes=None).run(generate_rank, job).graph
        flops.append(int(graph.flops[graph.micro_batch == 1].sum()))
    more, rest = divmod(flops[1] - flops[0], CONTEXTS[1] - CONTEXTS[0])
    assert rest == 0, f"{kind}: a decode step's FLOPs do not grow by a whole number a token"
    return Big(weights, a_user, users, flops[0], more)


def memory(lab: Lab, models: dict[str, Big], capacity: int, lang: str) -> Any:
    """Draw weights and caches by batch and kind of attention, against the GPU's memory."""
    groups = [f"{kind}, B = {batch}" for batch in BATCHES for kind in models]
    series = {
        lab.word("weights", lang): [model.weights / 1e9 for _ in BATCHES for model in models.values()],
        lab.word("cache", lang): [
            batch * model.a_user / 1e9 for batch in BATCHES for model in models.values()
        ],
    }
    figure = bars(groups, series, lab.word("gb", lang), stack=True)
    dashed = {"color": "#333333", "dash": "dash", "width": 2}
    figure.add_hline(y=capacity / 1e9, line=dashed)
    end = {
        "x": 1,
        "xref": "x domain",
        "xanchor": "right",
        "y": capacity / 1e9,
        "yref": "y",
        "yanchor": "bottom",
    }
    return figure.add_annotation(text=f"{capacity / 1e9:.0f} GB", showarrow=False, **end)
