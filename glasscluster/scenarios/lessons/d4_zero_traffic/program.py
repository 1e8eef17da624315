"""D4: what ZeRO's stages cost in traffic, and what prefetch hides."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import bars

STAGES = range(4)
MANY = 3  # micro-batches of the runs with accumulation


@lesson
def zero_traffic(lab: Lab, gpus: int = 4) -> None:
    """Stages 0 to 3 train the same GPT with every byte counted; stage 3 runs with and without prefetch."""
    plan: dict[str, Any] = {"model": make_model("tiny", hidden=128, seq=128), "dp": gpus, "micro_batch": 2}
    single: dict[str, Any] = {"global_batch": 2 * gpus, **plan}  # one micro-batch a rank
    sent, exposed = [], []
    for stage in STAGES:
        title = lab.text("stage", stage=stage) if stage else lab.text("data_parallel")
        trained = lab.train(f"zero{stage}", title, steps=1, checked=stage == 3, zero=stage, **single)
        times = 3 if stage == 3 else 2
        lab.row("sent", times * whole(trained.run), bytes_sent(trained.run), "Eq 16, m = 1", stage=stage)
        sent.append(bytes_sent(trained.run) / whole(trained.run))
        exposed.append(trained.timeline.summary()["exposed_comm_s"])

    not_resharded = lab.dry(zero=3, reshard=False, **single)
    lab.row("sent_when_kept", 2 * whole(not_resharded), bytes_sent(not_resharded), "Eq 16")
    several: dict[str, Any] = {"zero": 2, "global_batch": 2 * MANY * gpus, **plan}
    each = lab.dry(**several)
    lab.row("sent_in_micro_batches", (MANY + 1) * whole(each), bytes_sent(each), "Eq 16", m=MANY)
    added_up = lab.dry(accumulate="whole", **several)
    lab.row("sent_when_added_up", 2 * whole(added_up), bytes_sent(added_up), "Eq 16", m=MANY)
    third = lab.dry(**several | {"zero": 3})
    lab.row("sent_at_stage_3", 3 * MANY * whole(third), bytes_sent(third), "Eq 16", m=MANY)
    plain = lab.dry(**several | {"zero": 0})
    lab.row("sent_by_dp", 2 * whole(plain), bytes_sent(plain), "Eq 16", m=MANY)
    many: dict[str, Any] = {
        "m": MANY,
        "many_sent": bytes_sent(each) / whole(each),
        "many_sent_3": bytes_sent(third) / whole(third),
        "dp_sent": bytes_sent(plain) / whole(plain),
        "added": bytes_sent(added_up) / whole(added_up),
    }

    bare = lab.train(
        "no-prefetch", lab.text("no_prefetch"), steps=1, checked=False, zero=3, prefetch=0, **single
    )
    without = bare.timeline.summary()["exposed_comm_s"]
    times_bytes = sent[3] / sent[0]
    lab.row("prefetch_hides", 1, int(exposed[3] < without), "counted on the timelines", unit="yes")
    lab.ask("times_bytes", times_bytes, one=1)

    def by_stage(lang: str) -> Any:
        elements = lab.word("sent_elements", lang)
        return bars([lab.word("stage", lang, stage=stage) for stage in STAGES], {elements: sent}, elements)

    lab.figure("by_stage", by_stage)
    lab.tell(
        "by_stage", view="tab=network&run=zero3", by_stage=listed(f"{elements:.3g}" for elements in sent)
    )
    lab.tell("micro_batches", **many)
    waits: dict[str, Any] = {"exposed_ms": exposed[3] * 1e3, "without_ms": without * 1e3}
    lab.tell("prefetch", view="tab=timeline&run=no-prefetch", **waits)
    lab.conclude(times_bytes=times_bytes, hidden_share=1 - exposed[3] / without)
    lab.explain()
    kept = bytes_sent(not_resharded) / whole(not_resharded)
    lab.card(kept=kept, many_times=many["many_sent_3"] / many["dp_sent"], **many, **waits)
    lab.own_number(times_bytes=times_bytes, times_longer=without / exposed[3])


def bytes_sent(run: Any) -> int:
    """The bytes of gradients and parameters that all data-parallel ranks sent."""
    return sum(sum(run.graph.bytes_sent(axis="dp", purpose=what)) for what in ("gradients", "parameters"))


def whole(run: Any) -> int:
    """The bytes that all ranks send to gather the padded parameters once: (N−1)·Ψ elements of four bytes."""
    padded = sum(size for _, _, size in run.results[0].units)
    return (len(run.results) - 1) * padded * 4
