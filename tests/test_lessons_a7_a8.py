"""The lessons about text: every row can fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from glasscluster.model.text import bpe, sampler, texts
from glasscluster.model.text.sampler import Sampler
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.scenarios.lab import Lab, perform
from glasscluster.scenarios.lesson import taught_lesson
from glasscluster.scenarios.lessons.a7_bpe_by_hand import program as a7
from glasscluster.scenarios.lessons.a8_data_mix import program as a8

PAIRS = texts.bilingual()[:200]
PLACES = (
    "numbers lost by going on with 3 ranks instead of 4",
    "numbers read twice by going on with 3 ranks instead of 4",
)
OWN_PLACES = {
    f"numbers {what} if 4 strided ranks had saved places of their own and {others} went on"
    for what, others in (("read twice", 3), ("never read", 8))
}
OTHER = "rows that are not those of a run without the stop, 3 ranks"


class Untrained(Lab):
    """Leaves the GPT out: what is tested here is the lesson's own rows."""

    loss = 5.545

    def train(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(run=SimpleNamespace(results=[SimpleNamespace(losses=[self.loss])]))


@pytest.fixture
def failed(monkeypatch):
    """Names of the rows that do not hold; no GPT is trained, and the rest of its losses stand still."""
    monkeypatch.setattr(
        a7, "train_one_device", lambda _m, batches, *_, **__: SimpleNamespace(losses=[3.0] * len(batches))
    )

    def rows(id_: str, **options: Any) -> set[str]:
        taught = taught_lesson(id_)
        return {
            r.name.en
            for r in perform(taught, Untrained(taught, "threads", taught.hardware), options).checks
            if r.verdict == "failed"
        }

    return rows


def test_another_order_of_merges_a_lost_byte_and_another_first_loss_fail_a7(failed, monkeypatch):
    monkeypatch.setattr(a7, "bilingual", lambda: PAIRS)
    loss, kinds, small = (
        "first loss of the GPT that reads tokens",
        ("English", "Chinese", "both languages"),
        {"vocab": 300, "steps": 4},
    )
    with monkeypatch.context() as patch:
        pairs = bpe.pairwise
        patch.setattr(
            bpe, "pairwise", lambda word: pairs(word[:-1])
        )  # the last pair of a piece is not counted
        assert "texts from which the tokenizer learns other merges than the plain algorithm" in failed(
            "A7", **small
        )
    with monkeypatch.context() as patch:
        back = Tokenizer.decode_bytes
        patch.setattr(
            Tokenizer, "decode_bytes", lambda self, numbers: back(self, numbers).replace(b"\xe4", b"")
        )
        assert failed("A7", **small) == {
            loss,
            *(f"texts that differ after encoding and decoding, tokenizer for {name}" for name in kinds),
        }  # ln 300, not ln 256
    honest = Tokenizer.train

    def idle(*args: Any, **how: Any) -> Tokenizer:
        made = honest(*args, **how)
        made.merges.append(made.merges[-1])  # a merge that makes no token
        return made

    monkeypatch.setattr(Tokenizer, "train", idle)
    assert failed("A7", **small) == {
        loss,
        *(f"different tokens of the tokenizer for {name}" for name in kinds),
    }


def test_other_shares_repeated_rows_and_a_wrong_place_to_go_on_from_fail_a8(failed, monkeypatch):
    assert failed("A8", seq=512) == set()
    honest = a8.read_on
    with monkeypatch.context() as patch:

        def early(gpu, order, consumed, *more):
            return honest(gpu, order, max(0, consumed - 12), *more)

        patch.setattr(a8, "read_on", early)  # from one step too early
        assert failed("A8", seq=512) == {*PLACES, OTHER}
    with monkeypatch.context() as patch:
        places = a8.own_places  # of ranks that go on one row too early
        patch.setattr(a8, "own_places", lambda ranks, others, place: places(ranks, others, place - 1))
        assert failed("A8", seq=512) == OWN_PLACES
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "permuted", lambda place, size, key: key % size if 100 < size < 700 else place)
        assert "rows read twice within an epoch" in failed("A8", seq=512)
    monkeypatch.setattr(Sampler, "quotas", [60, 30, 10])
    assert {name.split()[2] for name in failed("A8", seq=512) if name.startswith("epochs")} == {
        "python",
        "english",
    }


def test_what_ranks_with_places_of_their_own_would_lose_or_repeat():
    assert a8.own_places(4, 4, 15) == (0, 0)
    assert a8.own_places(4, 3, 9) == (9, 0)
    assert a8.own_places(4, 8, 9) == (0, 36)
