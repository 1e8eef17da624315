"""Caches of keys and values: generation with and without them is equal, and their bytes are Eq 3's."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.base.operator_costs import cost_of
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding import cache as caches
from glasscluster.model.decoding.cache import Cache, CacheFull, PagedCache, SlidingWindowCache, StaticCache
from glasscluster.model.decoding.generate import Generator, Sampling, generate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels import cached_attention
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.parallel import KeepAll
from glasscluster.sim.run import Cluster
from glasscluster.strategies.judge.check import TOLERANCE, difference
from glasscluster.strategies.serving import generation
from glasscluster.strategies.serving.generation import GenerationJob, generate_rank

GIB = 1024**3
PROMPTS = ((7, 1, 4, 2, 9, 9, 0), (3, 5), (11, 2, 8, 8, 1, 0, 4, 6, 10, 5, 5))
NEW = 6
CAPACITY = max(map(len, PROMPTS)) + NEW - 1


@lru_cache(maxsize=8)
def model(**more: Any) -> GPTStage:
    """Weights so large that attention is sharp and every token matters."""
    values = {"layers": 2, "hidden": 16, "heads": 4, "vocab": 23, "seq": 32, "init_std": 0.5, **more}
    return GPTStage(ModelConfig(**values), dtype=torch.float64)


def make(kind: str, stage: GPTStage, window: int = 100) -> Cache:
    n = len(PROMPTS)
    return {
        "static": lambda: StaticCache(stage, n, CAPACITY),
        "paged": lambda: PagedCache(stage, n, CAPACITY, block=3),
        "sliding": lambda: SlidingWindowCache(stage, n, CAPACITY, window),
    }[kind]()


def apart(a: Any, b: Any) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a.logits, b.logits, strict=True))


# ---- the kernel --------------------------------------------------------------------------------------------
@st.composite
def shapes(draw):
    b, groups, kv, d = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from([2, 4])),
    )
    window = draw(st.one_of(st.just(cached_attention.NO_WINDOW), st.integers(1, 9)))
    starts = draw(st.lists(st.integers(0, 12), min_size=b, max_size=b))
    counts = draw(st.lists(st.one_of(st.integers(0, 6), st.integers(126, 131)), min_size=b, max_size=b))
    block, biased, cap, sinks = draw(
        st.tuples(st.integers(1, 5), st.booleans(), st.sampled_from([0.0, 0.7]), st.booleans())
    )
    return b, groups * kv, kv, d, block, window, starts, counts, biased, cap, sinks


@settings(max_examples=25, deadline=None)
@given(shapes())
def test_the_kernel_is_masked_attention_and_reads_what_its_formula_says(shape):
    b, a, kv, d, block, window, starts, counts, biased, cap, sinks = shape
    width, length = max(1, *counts), max(s + n for s, n in zip(starts, counts, strict=True)) or 1
    generator = torch.Generator().manual_seed(1)
    whole_k, whole_v = (
        torch.randn(b, kv, length + width, d, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    q = torch.randn(b, a, width, d, generator=generator, dtype=torch.float64)
    each = -(-min(window, length) // block) if window <= length and block == 1 else -(-length // block)
    order = torch.randperm(b * each, generator=generator).tolist()
    pools = [torch.zeros(b * each, kv, block, d, dtype=torch.float64) for _ in range(2)]
    new = [torch.stack([w[i, :, s : s + width] for i, s in enumerate(starts)]) for w in (whole_k, whole_v)]
    for pool, w in zip(pools, (whole_k, whole_v), strict=True):
        cached_attention.write(pool, w, order, [0] * b, starts)
    bias = torch.randn(a, length + width, generator=generator, dtype=torch.float64) if biased else None
    shared = d // 2 if d > 2 and block % 2 else 0  # the values are half of the keys' columns
    if shared:
        new[1], pools[1], whole_v = new[0], pools[0], whole_k[..., :shared]
    sink = torch.randn(a, generator=generator, dtype=torch.float64) if sinks else None
    rest = (order, starts, counts, window, 0.3, bias, shared)
    heard = {"read": 0, "write": 0}
    meter = lambda what, nbytes: heard.__setitem__(what, heard[what] + nbytes)  # noqa: E731
    out = cached_attention.attend(q, *new, *pools, *rest, meter, cap, sink)
    rest = (*rest, cap, sink)
    assert torch.equal(out, torch.ops.glasscluster.cached_attention(q, *new, *pools, *rest))
    for i, (start, n) in enumerate(zip(starts, counts, strict=True)):
        keys, values = (w[i, :, : start + n].repeat_interleave(a // kv, 0) for w in (whole_k, whole_v))
        scores = 0.3 * q[i, :, :n] @ keys.transpose(-1, -2)
        far = torch.arange(start, start + n)[:, None] - torch.arange(start + n)
        scores = cap * (scores / cap).tanh() if cap else scores
        scores = scores if bias is None else scores + bias[:, far.clamp(min=0)]
        scores = scores.masked_fill((far < 0) | (far >= window), float("-inf"))
        if sink is not None:
            scores = torch.cat([scores, sink[:, None, None].expand(a, n, 1)], -1)
        right = scores.softmax(-1)[..., : start + n] @ values
        torch.testing.assert_close(out[i, :, :n], right, rtol=1e-12, atol=1e-12)
        assert not out[i, :, n:].any()
    flops, nbytes = cost_of("glasscluster::cached_attention")
    assert nbytes((q, *new, *pools, *rest), out) == sum(heard.values())
    pairs = sum(cached_attention.pairs(s, n, window)[0] for s, n in zip(starts, counts, strict=True))
    assert flops((q, *new, *pools, *rest), out) == 2 * a * (d + (shared or d)) * pairs


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_a_ring_keeps_the_last_tokens_and_writes_what_its_formula_says(slots: int, pieces: list[int]):
    pool, start, heard = torch.full((1, 1, slots, 1), -1.0), 0, []
    for n in pieces:
        new = torch.arange(start, start + 9.0).view(1, 1, 9, 1)
        before = len(heard)
        cached_attention.write(pool, new, [0], [start], [n], lambda _, nbytes: heard.append(nbytes))
        assert sum(heard[before:]) == cost_of("glasscluster::cache_write").nbytes(
            (pool, new, [0], [start], [n]), None
        )
        start += n
    kept = [p for p in range(start) if p >= start - slots]
    assert {p % slots: float(p) for p in kept} == {
        s: float(x) for s, x in enumerate(pool.flatten().tolist()) if x >= 0
    }


# ---- the same tokens ---------------------------------------------------------------------------------------
MODELS: list[dict[str, Any]] = [
    {},
    {"kv_heads": 2, "attention": "unfused", "qkv": "separate"},
    {"kv_heads": 1, "tied": False, "activation": "swiglu"},
    {"experts": 3},
    {
        "kv_heads": 2,
        "norm": "rmsnorm",
        "bias": False,
        "position": "rope",
        "activation": "swiglu",
        "qk_norm": True,
    },
    {"position": "sinusoidal", "norm": "scalenorm", "norm_position": "post"},
    {"position": "none", "norm_position": "sandwich"},
    {"position": "alibi", "attention": "unfused"},
    {"position": "relative", "kv_heads": 2, "relative_buckets": 8, "relative_distance": 16},
    {"prefix": 2, "position": "rope"},
    {"kv_latent": 6, "q_latent": 5, "rope_dim": 2, "position": "rope", "norm": "rmsnorm"},
    {"kv_latent": 6, "position": "alibi", "bias": False},
]


NAMES = "mha gqa mqa experts llama sines no-positions alibi t5 prefix mla mla-alibi".split()


@pytest.mark.parametrize("more", MODELS, ids=NAMES)
@pytest.mark.parametrize("kind", caches.KINDS)
def test_logits_are_equal_with_and_without_a_cache_step_by_step(kind: str, more: dict):
    stage = model(**more)
    right = generate(stage, PROMPTS, NEW)
    for chunk in (0, 4):
        cache = make(kind, stage)
        made = generate(stage, PROMPTS, NEW, cache, chunk=chunk)
        assert made.tokens == right.tokens
        assert apart(made, right) <= 1e-12
        assert cache.lengths == [len(p) + NEW - 1 for p in PROMPTS]


def test_each_sequence_of_a_batch_is_what_it_is_alone():
    stage = model(kv_heads=2)
    right = generate(stage, PROMPTS, NEW, make("paged", stage)).tokens
    assert [generate(stage, [p], NEW).tokens[0] for p in PROMPTS] == right


@pytest.mark.parametrize("window", [1, 5, 12])
@pytest.mark.parametrize("position", ["learned", "alibi"])
def test_a_sliding_window_is_attention_that_looks_no_further_back(window: int, position: str):
    stage = model(kv_heads=2, position=position)
    right = generate(stage, PROMPTS, NEW, window=window)
    for chunk in (0, 3):
        made = generate(stage, PROMPTS, NEW, make("sliding", stage, window), chunk=chunk)
        assert made.tokens == right.tokens
        assert apart(made, right) <= 1e-12
    assert (
        apart(generate(stage, PROMPTS, NEW, make("sliding", stage, window + 1)), right) > 1e-6
    )  # one token more is seen


def test_a_cache_that_loses_a_token_or_takes_one_for_another_is_noticed():
    stage = model()
    right = generate(stage, PROMPTS, NEW)

    class Careless(StaticCache):
        def end(self) -> None:
            super().end()
            pool = self.pools[1][self.harm]
            pool[2, 0, 1], pool[2, 0, 2] = pool[2, 0, 2].clone(), pool[2, 0, 1].clone()

    for harm in (0, 1):
        cache = Careless(stage, len(PROMPTS), CAPACITY)
        cache.harm = harm
        assert apart(generate(stage, PROMPTS, NEW, cache), right) > 1e-6


# ---- bytes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", caches.KINDS)
def test_bytes_are_those_of_f3(kind: str, kv_heads: int):
    stage, n = model(kv_heads=kv_heads), len(PROMPTS)
    cache = make(kind, stage, window=7)
    generate(stage, PROMPTS, NEW, cache)
    slots = {"static": CAPACITY, "paged": 18, "sliding": 7}[kind]
    assert cache.bytes == caches.predict(stage.config, slots * n, 8) == 2 * 2 * kv_heads * 4 * slots * n * 8
    held = sum(min(k, 7) if kind == "sliding" else k for k in cache.lengths)
    assert cache.filled_bytes == caches.predict(stage.config, held, 8)
    waste = cache.used_bytes - cache.filled_bytes
    if kind == "paged":
        assert (
            waste
            == caches.predict_waste(cache.lengths, 3)[0] * cache.token_bytes
            <= n * 2 * cache.token_bytes
        )
    if kind == "static":
        assert waste == caches.predict_waste(cache.lengths)[0] * cache.token_bytes
    for change in ({"layers": 3}, {"heads": 2, "kv_heads": 1, "head_dim": 2}):  # the check can fail
        assert cache.bytes != caches.predict(stage.config.model_copy(update=change), slots * n, 8)
    assert cache.bytes != caches.predict(stage.config, slots * n + 1, 8)
    assert cache.bytes != caches.predict(stage.config, slots * n, 4)
    key, value = cache.pools[1]
    cache.pools[1] = key[:, :, 1:], value  # one slot fewer in one layer
    assert cache.bytes != caches.predict(stage.config, slots * n, 8)


@pytest.mark.parametrize("kind", caches.KINDS)
def test_latent_attention_keeps_a_latent_and_a_rotary_key(kind: str):
    stage, n = model(kv_latent=6, q_latent=5, rope_dim=2, position="rope", norm="rmsnorm"), len(PROMPTS)
    cache = make(kind, stage, window=7)
    slots = {"static": CAPACITY, "paged": 18, "sliding": 7}[kind]
    assert cache.bytes == caches.predict(stage.config, slots * n, 8) == 2 * (6 + 2) * slots * n * 8
    assert cache.bytes != caches.predict(stage.config.model_copy(update={"rope_dim": 4}), slots * n, 8)
    right = generate(stage, PROMPTS, NEW, window=7 if kind == "sliding" else None)
    assert apart(generate(stage, PROMPTS, NEW, cache, chunk=3), right) <= 1e-12
    cache.pools[1][0][:, :, :, 7] += 0.5  # the rotary key counts, in every slot

    class Spoilt(type(cache)):  # type: ignore[misc]
        def end(self) -> None:
            super().end()
            self.pools[1][0][..., 7] += 0.5

    cache.__class__, cache.lengths = Spoilt, [0] * n
    assert apart(generate(stage, PROMPTS, NEW, cache), right) > 1e-6


@pytest.mark.parametrize(
    ("shape", "tokens", "gib"),
    [
        ({"layers": 32, "hidden": 4096, "heads": 32}, 4096, 2.0),  # Llama-2-7B
        ({"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8}, 8192, 2.5),  # 70B, grouped
        ({"layers": 80, "hidden": 8192, "heads": 64}, 8192, 20.0),  # the same with a key head a query head
    ],
)
def test_the_published_sizes_are_allocated(shape: dict, tokens: int, gib: float):
    stage = GPTStage(ModelConfig(seq=tokens, **shape), dtype=torch.float16, device="meta")
    cache = StaticCache(stage, 1, tokens)
    assert cache.bytes == caches.predict(stage.config, tokens, 2) == gib * GIB


# ---- the allocator -----------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.booleans()), max_size=40)
)
def test_no_block_is_lost_or_shared_and_waste_is_less_than_a_block_a_sequence(
    block: int, moves: list[tuple[int, int, bool]]
):
    cache = PagedCache(model(), 4, 12, block, blocks=11)
    for sequence, tokens, done in moves:
        try:
            cache.begin([tokens if b == sequence else 0 for b in range(4)])
            cache.end()
        except CacheFull:
            full = cache.lengths[sequence] + tokens > 12
            assert full or not cache.unused
        if done:
            cache.free(sequence)
        taken = [b for row in cache.table for b in row if b >= 0]
        assert sorted(taken + cache.unused) == list(range(11))
        for row, length in zip(cache.table, cache.lengths, strict=True):
            assert sum(b >= 0 for b in row) * block >= length
    for b in range(4):
        cache.free(b)
    assert sorted(cache.unused) == list(range(11))
    assert cache.used_bytes == cache.filled_bytes == 0


def test_a_freed_sequence_gives_its_blocks_to_the_next():
    stage = model()
    cache = PagedCache(stage, 3, CAPACITY, 3, blocks=14)
    right = generate(stage, PROMPTS, NEW)
    for _ in range(3):  # whatever lies in a block from before is not seen
        assert apart(generate(stage, PROMPTS, NEW, cache), right) <= 1e-12
        for b in range(3):
            cache.free(b)
    with pytest.raises(CacheFull, match="needs a block for its token 9, and none is left"):
        generate(stage, PROMPTS, NEW, PagedCache(stage, 3, CAPACITY, 3, blocks=7))
    with pytest.raises(
        CacheFull, match="sequence 2 has 0 tokens and gets 11 more; the cache holds 10 of each"
    ):
        generate(stage, PROMPTS, NEW, StaticCache(stage, 3, 10))


# ---- choosing ----------------------------------------------------------------------------------------------
def test_sampling_keeps_the_likely_and_draws_by_probability():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).log_softmax(-1)
    p = logits.exp()[0].double()
    assert torch.allclose(Sampling(1.0).probabilities(logits)[0], p)
    assert torch.allclose(
        Sampling(1.0, top_k=2).probabilities(logits)[0], torch.tensor([*(p[:2] / p[:2].sum()), 0, 0]).double()
    )
    for top_p, kept in ((0.5, 1), (float(p[0]) + 1e-6, 2), (0.95, 3), (1.0, 4)):
        assert int((Sampling(1.0, top_p=top_p).probabilities(logits) > 0).sum()) == kept
    assert torch.allclose(Sampling(2.0).probabilities(logits)[0], (logits[0].double() / 2).softmax(-1))
    draws = (
        Sampling(1.0).choose(logits.expand(4000, -1), torch.Generator().manual_seed(0)).bincount(minlength=4)
        / 4000
    )
    assert float((draws - p).abs().max()) < 4 * (0.25 / 4000) ** 0.5
    assert Sampling().choose(logits, torch.Generator()).item() == 0


@pytest.mark.parametrize("coldest", [{"top_p": 0.0}, {"temperature": 5e-324}, {"top_p": 1e-12, "top_k": 3}])
def test_the_least_that_sampling_may_draw_from_is_the_likeliest_token(coldest):
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 5
    sampling = Sampling(**{"temperature": 1.0, **coldest})
    assert torch.equal(sampling.choose(logits, torch.Generator().manual_seed(1)), logits.argmax(-1))
    alike = sampling.probabilities(torch.zeros(1, 4))
    assert alike.sum() == pytest.approx(1)


def test_a_seed_gives_the_same_tokens_with_and_without_a_cache():
    stage = model()
    sampling = Sampling(1.5, top_k=8, top_p=0.9, seed=3)
    right = generate(stage, PROMPTS, NEW, sampling=sampling)
    assert generate(stage, PROMPTS, NEW, make("paged", stage), sampling=sampling).tokens == right.tokens
    assert generate(stage, PROMPTS, NEW, sampling=replace(sampling, seed=4)).tokens != right.tokens
    assert generate(stage, PROMPTS, NEW).tokens != right.tokens


@pytest.mark.parametrize(
    ("message", "prompts", "more"),
    [
        ("at least one token", [[1], []], {}),
        ("tokens 0 to 22, a prompt has 23", [[23]], {}),
        ("30 positions, the model has 29", [[1] * 25], {"seq": 29}),
        ("dropout = 0.1: is for training", [[1]], {"dropout": 0.1}),
        ("a masked model fills in, it does not generate", [[1]], {"objective": "masked"}),
        ("prefix = 3: has to be seen at once", [[1, 2, 3], [1, 2]], {"prefix": 3}),
    ],
)
def test_what_cannot_be_generated_is_refused(message: str, prompts: list, more: dict):
    with pytest.raises(ValueError, match=message):
        generate(model(**more), prompts, NEW)


def test_a_cache_in_use_is_refused():
    stage = model()
    cache = make("static", stage)
    generate(stage, PROMPTS, NEW, cache)
    with pytest.raises(ValueError, match="3 empty ones are needed"):
        generate(stage, PROMPTS, NEW, cache)


# ---- tensor-parallel ranks, work and time ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tp", "kv_heads", "cache"),
    [(2, 4, "static"), (2, 2, "paged"), (4, 2, "sliding"), (2, 1, "none"), (2, 0, "static")],
)
def test_tensor_ranks_generate_the_same_and_cache_their_heads(tp: int, kv_heads: int, cache: Any):
    config = model(
        **({"kv_heads": kv_heads} if kv_heads else {"kv_latent": 6, "rope_dim": 2, "position": "rope"})
    ).config
    right = generate(GPTStage(config, dtype=torch.float64), PROMPTS, 3)
    job = GenerationJob(config, PROMPTS, 3, cache, tp, block=4, precision="fp64", capture=True)
    run = Cluster("classroom", tp).run(generate_rank, job)
    for result in run.results:
        assert result.tokens == right.tokens
        assert apart(result, right) <= 1e-12
        assert result.cache_bytes == generation.predict_cache(job, 8)
        if cache != "none" and kv_heads >= tp:
            assert result.cache_bytes * tp == generation.predict_cache(replace(job, tp=1), 8)
    widths = [11, 1, 1] if cache != "none" else [11, 12, 13]
    sent = [sum(generation.predict_traffic(config, tp, 3, n, 8).values()) for n in widths]
    assert sum(sent) == generation.traffic(run.graph)
    assert sum(sent) != sum(sum(generation.predict_traffic(config, tp, 3, n + 1, 8).values()) for n in widths)
    dry = Cluster("classroom", tp, "dry").run(generate_rank, job)
    assert dry.graph.difference(run.graph) is None


def test_prefill_is_bound_by_compute_and_decode_by_memory():
    config = ModelConfig(
        layers=2,
        hidden=4096,
        heads=32,
        kv_heads=8,
        ffn=14336,
        activation="swiglu",
        vocab=32000,
        seq=2048,
        tied=False,
    )
    found, parameters = {}, 0
    for batch, tokens in ((1, 1024), (64, 1024), (64, 512), (512, 1024)):
        job = GenerationJob(config, ((0,) * tokens,) * batch, 2, precision="bf16")
        run = Cluster("dgx-h100", 1, "dry", memory_bytes=None).run(generate_rank, job)
        found[batch, tokens] = generation.phases(run.timeline, run.hardware, "bf16")
        parameters = run.results[0].parameter_bytes
    prefill, decode = found[1, 1024]
    assert (prefill.as_dict()["bound"], decode.as_dict()["bound"]) == ("compute", "memory")
    assert (
        0.9 < decode.intensity < 1.1
    )  # Eq 31: a batch of B has about B FLOPs a byte while weights are most of it
    assert decode.intensity < found[64, 1024][1].intensity < found[512, 1024][1].intensity
    looked_up = (config.vocab + config.seq) * config.hidden * 2  # of these a step reads its rows alone
    floor = generation.predict_floor(parameters - looked_up, caches.predict(config, 1024, 2), run.hardware)
    assert floor < decode.roof_s < 1.02 * floor
    longer, shorter = found[64, 1024][1], found[64, 512][1]
    assert longer.bytes - shorter.bytes == caches.predict(
        config, 64 * 512, 2
    )  # each old key and value is read once
    assert longer.flops - shorter.flops == 64 * 512 * config.layers * 4 * config.hidden


# ---- why training has none ---------------------------------------------------------------------------------
class Past(KeepAll):
    """A cache that autograd could see through: keys and values of one token after the other, cut off from the
    graph or not.
    """

    def __init__(self, detached: bool) -> None:
        self.detached, self.kept = detached, list[tuple[torch.Tensor, torch.Tensor]]()

    def core(self, attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = (torch.cat([pair[i] for pair in self.kept] + [new], 2) for i, new in enumerate((k, v)))
        self.kept.append((k.detach(), v.detach()) if self.detached else (k, v))
        return flash_attention(q, keys, values, False)


def by_token(stage: GPTStage, tokens: torch.Tensor, targets: torch.Tensor, detached: bool) -> torch.Tensor:
    """The loss, token by token."""
    losses = []
    with caches.keeping(stage, lambda _: Past(detached)):
        for i in range(tokens.shape[1]):
            x = stage.embedding(tokens[:, i : i + 1], positions=[[i]] * len(tokens))
            for block in stage.layers.values():
                x = block(x)
            losses.append(stage.head(x, targets[:, i : i + 1]))
    return torch.stack(losses).sum()


def gradients(stage: GPTStage, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(stage.parameters())))


def test_training_through_a_cache_is_the_same_work_one_token_at_a_time_or_wrong():
    stage = model(kv_heads=2)
    tokens = torch.tensor([PROMPTS[2]])
    targets = tokens.roll(-1, 1)
    whole, kept, cut = (
        stage(tokens, targets),
        by_token(stage, tokens, targets, False),
        by_token(stage, tokens, targets, True),
    )
    for loss in (kept, cut):
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    right = gradients(stage, whole)
    floor = 1e-3 * max(float(g.abs().max()) for g in right)
    found = [
        max(difference(a, b, floor) for a, b in zip(gradients(stage, loss), right, strict=True))
        for loss in (kept, cut)
    ]
    assert found[0] <= TOLERANCE  # nothing was saved: every key stays on the graph
    assert found[1] > 0.01  # a cache without a graph: keys and values learn nothing from later tokens


def test_a_step_of_the_optimizer_makes_a_cache_stale():
    config = model(kv_heads=2).config
    stage = GPTStage(config, dtype=torch.float64)
    tokens = torch.tensor([PROMPTS[2]])

    def filled() -> Generator:
        made = Generator(stage, [PROMPTS[2][:10]], 1, StaticCache(stage, 1, 11))
        made.prefill()
        return made

    old = filled()
    for parameter, gradient in zip(
        stage.parameters(), gradients(stage, stage(tokens, tokens.roll(-1, 1))), strict=True
    ):
        parameter.data.sub_(gradient, alpha=0.01)
    new = filled()
    answers = []
    for generator in (old, new):
        assert generator.cache is not None
        answers.append(generator.forward(tokens[:, -1:], generator.cache.begin([1])))
    right = generate(stage, [PROMPTS[2]], 1).logits[0]
    assert float((answers[1] - right).abs().max()) <= 1e-12
    assert float((answers[0] - right).abs().max()) > 1e-3
