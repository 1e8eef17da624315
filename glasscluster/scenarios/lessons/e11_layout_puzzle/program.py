"""E11: the layout puzzle: every legal (dp, tp, pp, ZeRO) of eight GPUs in two nodes, recorded, counted, timed; the best ones run."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from glasscluster.scenarios.jobs.training import Trained, counted_rows
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Job, job_info, train_rank
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.palette import TIME
from glasscluster.visualize.figures.plots import stack

GPUS, NODE, LAYERS = 8, 4, 4


def legal(zeros: tuple[int, ...] = (0, 1, 3)) -> list[tuple[int, int, int, int]]:
    """All (dp, tp, pp, zero) of eight GPUs with a layer a stage at least; without data parallelism ZeRO has nothing to shard."""
    sizes = [
        (d, t, GPUS // (d * t))
        for d, t in product((8, 4, 2, 1), (1, 2, 4, 8))
        if d * t <= GPUS and GPUS // (d * t) <= LAYERS
    ]
    return [(*size, z) for size in sizes for z in (zeros if size[0] > 1 else (0,))]


def layout(dp: int, tp: int, pp: int, zero: int, batch: int, precision: str) -> dict[str, Any]:
    """A plan's options: two micro-batches a stage, one where there are no stages; sequence parallelism wherever tensors are cut."""
    m = 2 * pp if pp > 1 else 1
    return {
        "dp": dp,
        "tp": tp,
        "pp": pp,
        "zero": zero,
        "global_batch": batch,
        "micro_batch": max(1, batch // (m * dp)),
        "precision": precision,
        "sequence_parallel": tp > 1,
        "schedule": "1f1b",
    }


@lesson(hardware="dgx-h100")
def layout_puzzle(lab: Lab, hidden: int = 1024, batch: int = 32, cap_gb: float = 0.6) -> None:
    """Every legal layout of a GPT on two nodes of four GPUs is recorded on shapes, counted and timed; the quickest and the slowest then really train."""

    machine = replace(hardware(lab.hardware), name=f"{lab.hardware}, nodes of {NODE}", node_size=NODE)
    model = make_model("tiny", layers=LAYERS, hidden=hidden, heads=16, seq=512, vocab=2048)
    found: dict[tuple[int, int, int, int], dict[str, Any]] = {}
    wrong = rows_seen = 0
    for choice in legal():
        plan = make_plan(**layout(*choice, batch, "bf16"))
        plan.check(model)
        job = Job(plan, model, steps=1)
        run = Cluster(machine, GPUS, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
        rows = [
            r
            for r in counted_rows(Trained(job, run, None))
            if r["match"] == "exact" and r["predicted"] is not None
        ]
        wrong, rows_seen = wrong + sum(not r["ok"] for r in rows), rows_seen + len(rows)
        peak = max(total for total, _ in run.peak_memory())
        states = sum(sum(r.state_bytes.values()) for r in run.results)
        found[choice] = {
            "ms": run.timeline.makespan * 1e3,
            "gb": peak / 1e9,
            "run": run,
            "states": states,
            "split": run.timeline.breakdown(),
        }
    legal_ones = len(found)
    fits = {c: x for c, x in found.items() if x["gb"] <= cap_gb}
    best, worst = (pick(fits, key=lambda c: fits[c]["ms"]) for pick in (min, max))
    ratio = fits[worst]["ms"] / fits[best]["ms"]
    every = [d for d, t, p in product(range(1, GPUS + 1), repeat=3) if d * t * p == GPUS and p <= LAYERS]
    lab.row(
        "legal_layouts_gpus",
        sum(3 if d > 1 else 1 for d in every),
        legal_ones,
        "dp·tp·pp = 8, ZeRO where dp > 1",
        unit="layouts",
    )
    lab.row(
        "counted_rows_all_layouts_differ_their",
        0,
        wrong,
        "F15, F16, F18, F19, F22 and 2m·bsh a hop",
        unit="rows",
    )
    psi = model.parameters()
    for zero in (0, 1, 3):
        units = found[8, 1, 1, zero]["run"].results[0].units
        padded = sum(size for _, _, size in units)
        n = [8 if zero >= s else 1 for s in (3, 2, 1)]
        lab.row(
            "dp_zero_model_states_all_gpus",
            8 * sum(w * padded / k for w, k in zip((2, 2, 12), n, strict=True)),
            found[8, 1, 1, zero]["states"],
            "F15, each unit padded to N",
            zero=zero,
        )
    titles = {best: lab.text("quickest_fits_run"), worst: lab.text("slowest_fits_run")}
    small = make_model("tiny", layers=LAYERS, hidden=32, heads=8, seq=16)
    for key, choice in (("best", best), ("worst", worst)):
        lab.train(key, titles[choice], model=small, steps=2, **layout(*choice, 16, "fp32"))
    lab.ask("number", ratio, "×", parameters=psi / 1000000.0, NODE=NODE)

    sizes = sorted({c[:3] for c in found}, key=lambda c: (-c[0], c[1]))
    columns = (0, 1, 3)
    cells = [[found.get((*s, z)) for z in columns] for s in sizes]
    quickest = min(x["ms"] for x in found.values())
    text = [
        [
            "" if x is None else f"{x['ms']:.1f} ms · {x['gb']:.2f} GB{'' if x['gb'] <= cap_gb else ' ✗'}"
            for x in line
        ]
        for line in cells
    ]
    fill = [
        [
            "#ffffff"
            if x is None
            else "#d9d9d9"
            if x["gb"] > cap_gb
            else shade(min(1.0, (x["ms"] / quickest - 1) / 3))
            for x in line
        ]
        for line in cells
    ]
    labels = [f"dp {d} · tp {t} · pp {p}" for d, t, p in sizes]
    lab.figure(
        lab.text("time_step_peak_memory", cap_gb=cap_gb),
        lambda lang: cells_figure([Table("", labels, [f"ZeRO-{z}" for z in columns], text, fill)]),
    )
    order = sorted(fits, key=lambda c: fits[c]["ms"])
    short = [f"{d}·{t}·{p} Z{z}" for d, t, p, z in order]

    def parts(c: tuple[int, int, int, int]) -> list[float]:
        split = fits[c]["split"]
        exposed = sum(v for k, v in split.items() if k.startswith("exposed"))
        return [1e3 * v for v in (split["compute"], exposed, split["bubble"], split["optimizer"])]

    split_up = [parts(c) for c in order]
    looks = [TIME[k] for k in ("compute", "exposed", "bubble", "optimizer")]
    lab.figure(
        "where_time_goes_quickest",
        lambda lang: stack(
            short,
            {names[lang][i]: (looks[i], [s[i] for s in split_up]) for i in range(4)},
            lab.word("dp_tp_pp_zero", lang),
            lab.word("ms_last_gpu_finish", lang),
        ),
    )
    big = [
        (d, t, 64 // (d * t))
        for t, d in product((1, 2, 4, 8), (64, 16, 8, 4, 2))
        if d * t <= 64 and 64 // (d * t) <= 8
    ]
    giga = [
        [sum(predict_state(z, round(13e9 / (t * p)), d, 2, 2, 12).values()) / 1e9 for z in columns]
        for d, t, p in big
    ]
    lab.figure(
        "same_formula_f15_gb",
        lambda lang: cells_figure(
            [
                Table(
                    "",
                    [f"dp {d} · tp {t} · pp {p}" for d, t, p in big],
                    [f"ZeRO-{z}" for z in columns],
                    [[f"{g:.3g}" for g in line] for line in giga],
                    [["#d9d9d9" if g > 80 else shade(g / 160) for g in line] for line in giga],
                )
            ]
        ),
    )

    def say(c: tuple[int, int, int, int]) -> str:
        return f"dp {c[0]} · tp {c[1]} · pp {c[2]} · ZeRO-{c[3]}"

    lab.tell(
        "legal_layouts_fit_gb",
        view="tab=ledger",
        legal_ones=legal_ones,
        fitting=len(fits),
        cap_gb=cap_gb,
        rows_seen=rows_seen,
        wrong=wrong,
    )
    lab.tell(
        "quickest_ms_slowest_ms",
        view="tab=story",
        best=say(best),
        best_ms=fits[best]["ms"],
        worst=say(worst),
        worst_ms=fits[worst]["ms"],
        ratio=ratio,
    )
    across = min((c for c in found if c[1] == 8), key=lambda c: found[c]["ms"])
    lab.tell("tensor_parallelism_over_both", view="tab=story", across_ms=found[across]["ms"])
    lab.tell("quickest_slowest_then_trained", view="tab=checks&run=best")
    lab.conclude(legal_ones=legal_ones, ratio=ratio, best=say(best))
    lab.explain()
    lab.own_number(best=say(best), ratio=ratio)
