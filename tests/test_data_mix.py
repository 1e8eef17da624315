"""Packing, mixing and sampling: no token crosses a document, no sample is lost or read twice, whoever stops
when and goes on how.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch
from helpers import differences, run_plan, worst
from hypothesis import given, settings
from hypothesis import strategies as st

from glasscluster.base.errors import InputError
from glasscluster.model.gpt import GPTStage
from glasscluster.model.layers.dropout import Draw
from glasscluster.model.parallel import IGNORE
from glasscluster.model.text.mixture import Mixture, read
from glasscluster.model.text.packing import best_fit
from glasscluster.model.text.sampler import Sampler, key_of, permuted, quotas
from glasscluster.model.text.texts import bilingual, documents
from glasscluster.model.text.tokenizer import END_OF_TEXT, Tokenizer
from glasscluster.scenarios.jobs.sources import check_data
from glasscluster.strategies.job import Job
from glasscluster.strategies.loader import Loader
from glasscluster.strategies.plan import make_model, make_plan


# ---- the sampler -------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_a_permutation_meets_every_place_once(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_permutations_of_different_keys_differ_and_no_place_is_preferred():
    found = [[permuted(i, 6, key) for i in range(6)] for key in map(key_of, range(3000))]
    seen = Counter((i, to) for order in found for i, to in enumerate(order))
    assert len(set(map(tuple, found))) > 690  # of 720; 709 are expected of 3,000 draws
    assert (
        sum((n - 500) ** 2 / 500 for n in seen.values()) < 60
    )  # χ² of 25 degrees of freedom: beyond 60 once in 10,000


def train_in_pieces(order: Sampler, pieces: list[tuple[int, int, int]]) -> list:
    """Samples as ranks read them: for each piece (ranks, batch, steps) new ranks start from the one number
    that was saved.
    """
    consumed, seen = 0, []
    for ranks, batch, steps in pieces:
        for _ in range(steps):
            seen += [sample for rank in range(ranks) for sample in order.share(consumed, batch, rank, ranks)]
            consumed += batch
    return seen


def lost_or_repeated(order: Sampler, seen: list) -> list[str]:
    """What is wrong with a training's samples: whole epochs have every row once, the last, unfinished one
    none twice.
    """
    problems = []
    for source, size in enumerate(order.sizes):
        epochs = Counter(s.epoch for s in seen if s.source == source)
        rows = Counter((s.epoch, s.row) for s in seen if s.source == source)
        problems += [f"source {source} twice: {r}" for r, n in rows.items() if n > 1]
        problems += [
            f"source {source}, epoch {e}: {n} of {size}"
            for e, n in epochs.items()
            if e < max(epochs) and n != size
        ]
    return problems


PIECES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 6)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.1, 0.2, 0.7, 1.0])), min_size=1, max_size=3),
    PIECES,
    st.integers(0, 99),
)
def test_a_training_killed_at_any_step_goes_on_with_any_ranks_and_loses_and_repeats_nothing(
    sources, pieces, seed
):
    sizes, weights = zip(*sources, strict=True)
    order = Sampler(sizes, weights, seed, block=20)
    seen = train_in_pieces(order, pieces)
    assert seen == [order.sample(n) for n in range(len(seen))]  # as if nobody had ever stopped
    assert lost_or_repeated(order, seen) == []
    assert order.drawn(len(seen)) == [sum(s.source == i for s in seen) for i in range(len(sizes))]


def test_a_sampler_that_drops_the_rest_of_a_batch_is_noticed(monkeypatch):
    def floor(self, consumed, batch, rank, ranks):
        return [self.sample(consumed + rank * (batch // ranks) + i) for i in range(batch // ranks)]

    order = Sampler((7, 5), (1.0, 1.0), block=10)
    assert lost_or_repeated(order, train_in_pieces(order, [(2, 4, 3), (3, 4, 9)])) == []
    monkeypatch.setattr(Sampler, "share", floor)
    assert lost_or_repeated(order, train_in_pieces(order, [(2, 4, 3), (3, 4, 9)]))


def test_weights_are_met_exactly_by_every_block_and_epochs_follow_f40():
    order = Sampler((7000, 1000, 50), (0.7, 0.2, 0.1))
    samples = [order.sample(n) for n in range(2000)]
    assert [sum(s.source == i for s in samples[:1000]) for i in range(3)] == [700, 200, 100] == order.quotas
    assert order.epochs(2000) == [w * 2000 / d for w, d in zip((0.7, 0.2, 0.1), order.sizes, strict=True)]
    assert quotas((1, 1, 1), 10) == [4, 3, 3]
    for sizes, weights in (((5, 0), (1, 1)), ((5, 5), (1, 0)), ((5, 5), (1, 1e-6)), ((), ())):
        with pytest.raises(ValueError, match="each"):
            Sampler(sizes, weights)


# ---- packing -----------------------------------------------------------------------------------------------
@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 16))
def test_packing_keeps_every_token_once_cuts_only_what_is_too_long_and_leaves_no_two_rows_that_fit_in_one(
    lengths, row
):
    packed = best_fit(lengths, row)
    places = sorted((p.document, p.start, p.stop) for pieces in packed.rows for p in pieces)
    assert [(d, i) for d, a, b in places for i in range(a, b)] == [
        (d, i) for d, n in enumerate(lengths) for i in range(n)
    ]
    assert all(b - a == row or b == lengths[d] for d, a, b in places)
    full = [sum(p.length for p in pieces) for pieces in packed.rows]
    assert all(n <= row for n in full)
    assert all(a + b > row for a, b in combinations(full, 2))
    assert packed.waste == pytest.approx(1 - sum(lengths) / (len(full) * row) if full else 0)
    assert all(sum(packed.lengths(i)) == row for i in range(len(full)))


def test_best_fit_by_hand():
    packed = best_fit([17, 6, 3, 2], 12)
    assert [[(p.document, p.length) for p in row] for row in packed.rows] == [
        [(0, 12)],
        [(1, 6), (0, 5)],
        [(2, 3), (3, 2)],
    ]
    assert packed.waste == pytest.approx(8 / 36)


# ---- no token with loss ------------------------------------------------------------------------------------
NOTHING = {
    "one device": {},
    "tp 2": {"tp": 2},
    "pp 2": {"pp": 2},
    "zero 3": {"dp": 2, "zero": 3},
    "fp16": {"tp": 2, "precision": "fp16"},
}


@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING)
def test_a_step_in_which_no_token_carries_loss_has_loss_0_and_the_gradient_of_one_device(tmp_path, options):
    end = b"<|endoftext|>"
    replicas = options.get("dp", 1)
    (tmp_path / "text").write_bytes(end.join([b"abcd"] * replicas + [b"x"] * 4 * replicas))
    data = Mixture(((str(tmp_path / "text"), 1.0),), packed=True)
    plan = make_plan(global_batch=replicas, **options)
    model = make_model("tiny", layers=2, hidden=16, seq=4)
    seed = next(
        s for s in range(99) if any(nothing(Job(plan, model, data=data, seed=s), i) for i in range(2))
    )
    compared = differences(plan, model, steps=2, data=data, seed=seed)
    assert worst(compared) <= 1e-10
    losses = run_plan(plan, model, steps=2, data=data, seed=seed).results[-1].losses
    empty = [nothing(Job(plan, model, data=data, seed=seed), i) for i in range(2)]
    assert any(empty)
    assert [loss == 0 for loss in losses] == empty
    assert all(map(math.isfinite, losses))


def nothing(job, step: int) -> bool:
    return bool((job.batch(step)[1] == IGNORE).all())


def test_packed_text_without_a_token_to_predict_is_refused_by_its_source(tmp_path):
    (tmp_path / "one.txt").write_text("a")
    with pytest.raises(InputError, match=r"one\.txt has no document of two tokens") as said:
        check_data(Mixture(((str(tmp_path / "one.txt"), 1.0),), packed=True), 8, 256)
    assert said.value.field == "data"


KINDS = {
    "learned": {},
    "rope": {"position": "rope", "kv_heads": 2},
    "alibi": {"position": "alibi"},
    "relative": {"position": "relative"},
    "sinusoidal, latent": {"position": "sinusoidal", "kv_latent": 16},
}
LENGTHS = ((5, 9, 2), (16,))


def packed_logits(model, tokens, lengths=LENGTHS, **more):
    stage = GPTStage(model, dtype=torch.float64)
    draw = Draw(sequences=tuple(range(len(tokens))), documents=lengths)
    x = stage.embedding(tokens, draw)
    if more.get("leaf"):
        x = x.detach().requires_grad_()
    return stage.head.logits(stage.keep.layers(list(stage.layers.values()), x, draw)), x


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_s_logits_have_the_same_bits_whatever_lies_beside_it_and_equal_it_alone(kind):
    model = make_model("tiny", layers=2, hidden=32, heads=4, seq=16, **KINDS[kind])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (2, 16), generator=generator)
    other = tokens.clone()
    other[0, :5], other[0, 14:] = torch.randint(0, 256, (5,), generator=generator), 0
    (first, x), (second, _) = packed_logits(model, tokens, leaf=True), packed_logits(model, other)
    assert torch.equal(first[0, 5:14], second[0, 5:14])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0, :5], second[0, :5])
    first[0, 5:14].square().sum().backward()
    assert x.grad[0, 5:14].abs().min() > 0
    assert not x.grad[0, :5].any()
    assert not x.grad[0, 14:].any()
    assert not x.grad[1].any()
    alone, _ = packed_logits(model, tokens[:1, 5:14], lengths=None)
    assert torch.allclose(alone[0], first[0, 5:14], rtol=0, atol=1e-12)
    unpacked, _ = packed_logits(model, tokens, lengths=None)
    assert not torch.allclose(
        unpacked[0, 5:14], first[0, 5:14], rtol=0, atol=1e-6
    )  # without the lengths documents do see each other


# ---- mixtures ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of three documents, a folder of two, and a tokenizer."""
    home = tmp_path_factory.mktemp("data")
    (home / "a.txt").write_text(END_OF_TEXT.join(["def one():\n    return 1\n" * 3, "two words", "x" * 70]))
    (home / "folder").mkdir()
    for name in "pq":
        (home / "folder" / f"{name}.txt").write_text(f"a document named {name}. " * 5)
    Tokenizer.train(documents(str(home / "a.txt")), 300, [END_OF_TEXT]).save(home / "tokenizer.json")
    return home


@pytest.mark.parametrize("coded", [False, True], ids=["bytes", "tokens"])
def test_packed_rows_hold_every_document_and_every_next_token_once(files, coded):
    mixture = Mixture(
        ((str(files / "a.txt"), 1.0),), str(files / "tokenizer.json") if coded else None, packed=True
    )
    rows = read(mixture, 16)
    (source,) = rows.sources
    followed = Counter()
    for number in range(source.rows):
        tokens, targets, lengths = source.row(number)
        assert sum(lengths) == len(tokens) == 16
        followed.update((int(a), int(b)) for a, b in zip(tokens, targets, strict=True) if b != IGNORE)
    assert followed == Counter((int(a), int(b)) for text in source.texts for a, b in pairwise(text))
    if coded:
        assert all(text[-1] == rows.tokenizer.specials[END_OF_TEXT] for text in source.texts)


def test_an_epoch_of_a_stream_reads_every_row_once_and_rows_overlap_by_their_first_target(files):
    mixture = Mixture(((str(files / "folder"), 3.0), (str(files / "a.txt"), 1.0)), block=4)
    source = read(mixture, 16).sources[0]
    batches = [mixture.batch(step, 4, 16, 256, seed=1) for step in range(source.rows)]
    own = [s.row for b in batches for s in b.samples if s.source == 0]
    assert all(sum(s.source == 0 for s in b.samples) == 3 for b in batches)
    assert sorted(own[: source.rows]) == list(range(source.rows))
    whole = b"".join(documents(str(files / "folder")))
    tokens, targets = batches[0].tokens[0], batches[0].targets[0]
    at = 16 * batches[0].samples[0].row
    if batches[0].samples[0].source == 0:
        assert bytes(tokens.tolist()) + bytes([int(targets[-1])]) == whole[at : at + 17]


PLANS = {
    "dp, pp, recompute, ZeRO-2": {"dp": 2, "pp": 2, "zero": 2, "recompute": "full", "schedule": "1f1b"},
    "tp, sequence parallel": {"dp": 2, "tp": 2, "sequence_parallel": True, "recompute": "selective"},
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_trained_on_packed_documents_equals_one_device(files, name):
    data = Mixture(
        ((str(files / "a.txt"), 0.7), (str(files / "folder"), 0.3)),
        str(files / "tokenizer.json"),
        packed=True,
        block=10,
    )
    model = make_model("tiny", layers=2, hidden=16, heads=2, seq=16, vocab=300, dropout=0.1)
    plan = make_plan(micro_batch=2, global_batch=8, **PLANS[name])
    assert worst(differences(plan, model, steps=2, data=data)) < 1e-10


def test_ranks_that_forget_the_documents_are_noticed(files, monkeypatch):
    data = Mixture(((str(files / "a.txt"), 1.0),), packed=True)
    plan, model = (
        make_plan(dp=2, micro_batch=1, global_batch=4),
        make_model("tiny", layers=1, hidden=16, heads=2, seq=16),
    )
    honest = Loader.draws
    without = lambda self, step: [Draw(d.seed, d.step, d.sequences) for d in honest(self, step)]  # noqa: E731
    monkeypatch.setattr(Loader, "draws", without)
    assert worst(differences(plan, model, steps=1, data=data)) > 1e-6


@pytest.mark.parametrize(
    ("plan", "model", "field"),
    [
        ({"cp": 2}, {}, "cp"),
        ({"dp": 2, "exchange": "parameter-server"}, {}, "exchange"),
        ({}, {"objective": "masked"}, "objective"),
        ({}, {"attention": "unfused"}, "attention"),
        ({}, {"experts": 2}, "experts"),
        ({}, {"prefix": 4}, "prefix"),
    ],
)
def test_what_cannot_keep_documents_apart_says_so(plan, model, field):
    job = Job(make_plan(**plan), make_model("tiny", **model), data=Mixture((("python", 1.0),), packed=True))
    with pytest.raises(InputError, match="packed documents") as found:
        job.check_packed()
    assert found.value.field == field


def test_the_built_in_texts_say_the_same_in_two_languages():
    pairs = bilingual()
    assert len(pairs) > 500
    assert [len(documents(name)) for name in ("english", "chinese")] == [len(pairs)] * 2
    assert sum(len(zh) for _, zh in pairs) < sum(len(en) for en, _ in pairs) / 2


def test_a_file_that_is_another_one_in_the_next_run_is_read_anew(tmp_path, monkeypatch):
    """The fuzzer saw a broken tokenizer.json taken: an earlier one of the same path was remembered."""

    def first(data):
        job = Job(make_plan(), make_model("tiny", seq=8, vocab=300), data=data)
        return [job.batch(0)[0].tolist() for _ in range(2)]

    def of(letter, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        files = {"text.txt": letter * 100, "texts/one.txt": letter * 100}
        for name, text in files.items():
            (tmp_path / folder / name).parent.mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(text)
        Tokenizer.train([letter.encode() * 64], 257 + "abc".index(letter)).save(
            tmp_path / folder / "tok.json"
        )
        mixed = [Mixture((("text.txt", 1.0),)), Mixture((("texts", 1.0),))]
        mixed.append(Mixture((("text.txt", 1.0),), "tok.json"))
        return [first(data) for data in ("text.txt", *mixed)]

    a, b, elsewhere = of("a", "here"), of("b", "here"), of("c", "there")
    for one, two, three in zip(a, b, elsewhere, strict=True):
        assert one[0] == one[1]
        assert one != two
        assert three not in (one, two)
    (tmp_path / "there" / "tok.json").write_text("no JSON at all")
    with pytest.raises(Exception, match="no JSON"):
        first(Mixture((("text.txt", 1.0),), "tok.json"))
