"""F4: four models in memory, two of them with an optimizer, and most of the time spent writing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.jobs import tuning
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.preference import ranks
from glasscluster.strategies.preference.job import Tuning, place
from glasscluster.strategies.preference.ranks import tune_rank
from glasscluster.strategies.preference.rewards import Blank
from glasscluster.visualize.figures.palette import MEMORY
from glasscluster.visualize.figures.plots import bars, stack
from glasscluster.visualize.figures.roles import LOOKS, roles_figure

PROMPT, LENGTHS = 16, (4, 16, 64)  # tokens
ROLES = {
    "actor": "策略（actor）",
    "critic": "价值（critic）",
    "reference": "参考模型",
    "reward": "奖励模型",
    "rollout": "生成（rollout）",
}


def parts_of_time(run: Any, where: Any, tokens: int, clock: str) -> tuple[float, float, float]:
    """Seconds of an iteration: until the last token is written, until the answers are judged, until all is trained."""
    line, graph = run.replay(clock), run.graph
    written = float(line.end[(graph.rank == where["rollout"]) & (graph.micro_batch == tokens - 1)].max())
    judged = float(line.end[graph.micro_batch == tokens].max())
    return written, judged - written, line.makespan - judged


@lesson(hardware="dgx-h100")
def rlhf_anatomy(lab: Lab, sft: int = 200, iterations: int = 8, answers: int = 8) -> None:
    """A small GPT learns to sort from people who are often wrong, then DPO, PPO and GRPO raise a reward that a rule checks. Every role is
    played on a rank of its own: its bytes are counted, its messages recorded, and rollout and training are on one timeline.
    """

    course = tuning.Course(
        sft=sft,
        demonstrations=256,
        compare=150,
        reward_model=80,
        dpo=5 * iterations,
        ppo=iterations,
        grpo=iterations,
    )
    learned = tuning.learn(lab.seed, course, ("dpo with SFT loss", "ppo", "grpo"), lab.say)
    first, *methods = learned.rows
    behind = [m for m in methods if learned.rows[m].reward < learned.rows[first].reward + 0.2]
    lab.row(
        "methods_do_not_raise_expected_reward",
        0,
        len(behind),
        "the rule, on held-out prompts",
        unit="methods",
    )
    for method in methods:
        exact = tuning.job_of(
            method, course, lab.seed, learned, iterations=2, prompts=4, precision="fp64", capture=True
        )
        lab.checks += tuning.equality_rows(
            exact, lab.cluster(exact.ranks).run(tune_rank, exact, record=False).results
        )

    model, jobs = make_model("tiny", layers=2, seq=PROMPT + max(LENGTHS)), {}
    psi, head = model.parameters(), model.hidden + 1

    def job(method: Any, tokens: int = LENGTHS[1], **options: Any) -> Any:
        return Tuning(
            method,
            model,
            Blank(prompt_tokens=PROMPT, answer_tokens=tokens),
            precision="bf16",
            seed=lab.seed,
            **{"prompts": answers, **options},
        )

    names = {
        "ppo": lab.text("ppo_rank_role"),
        "grpo": lab.text("grpo_actor_writes"),
        "sft": lab.text("sft_same_answers"),
    }
    jobs["ppo"] = job("ppo", reward="model")
    jobs["grpo"] = job(
        "grpo", prompts=-(-answers // 4), group=4, placement=place("grpo", "rule", ("actor", "rollout"))
    )
    jobs["sft"] = job("sft")
    runs = {m: lab.run(m, names[m], tune_rank, j, gpus=j.ranks, precision="bf16") for m, j in jobs.items()}
    for m, run in runs.items():
        lab.checks += tuning.memory_rows(jobs[m], run.results) + tuning.traffic_rows(jobs[m], run)
    held, heads = (
        {},
        {
            "ppo": (36, 18, "model"),
            "grpo with a judge": (20, 2, "model"),
            "grpo with a rule": (18, 0, "rule"),
        },
    )
    for name, (each, more, reward) in heads.items():
        method = name.split()[0]
        alone = job(method, 1, reward=reward, prompts=2, **({"group": 2} if method == "grpo" else {}))
        alone = replace(alone, placement=dict.fromkeys(alone.roles, 0))
        results = lab.cluster(1).run(tune_rank, alone, record=False).results
        held[name] = sum(sum(split.values()) for split in results[0].state_bytes.values())
        lab.row(
            "all_roles_rank_model_states",
            each * psi + more * head,
            held[name],
            "F39; h + 1 of a scalar head",
            name=name,
        )

    times: dict[str, dict[int, Any]] = {h: {} for h in ("classroom", "dgx-h100")}
    for tokens in LENGTHS:
        longer = job("ppo", tokens, reward="model")
        run = (
            runs["ppo"]
            if tokens == LENGTHS[1]
            else lab.cluster(longer.ranks).run(tune_rank, longer, info={"precision": "bf16"})
        )
        for clock, found in times.items():
            found[tokens] = parts_of_time(run, longer.where, tokens, clock)
    share = {h: {n: t[0] / sum(t) for n, t in found.items()} for h, found in times.items()}
    ratio = runs["ppo"].replay("dgx-h100").makespan / runs["sft"].replay("dgx-h100").makespan
    ridge = {h: hardware(h).gpu.peak("bf16") / hardware(h).gpu.memory_bandwidth for h in times}
    lab.row(
        "h100_answers_tokens_writing_takes_most",
        1,
        int(share["dgx-h100"][LENGTHS[1]] > 0.5),
        "replay",
        unit="yes",
        middle=LENGTHS[1],
    )

    lab.ask("number", (held["ppo"] - 18 * head) / psi, "bytes")
    said = {"en": {r: r if r != "reward" else "reward model" for r in ROLES}, "zh": ROLES}

    def memory(lang: str) -> Any:
        shown = [
            (f"{m.upper()}: {said[lang][role]}", split)
            for m in ("ppo", "grpo")
            for result in runs[m].results
            for role, split in result.state_bytes.items()
        ]
        return stack(
            [n for n, _ in shown],
            {
                w: (MEMORY[c], [split[c] / psi for _, split in shown])
                for c, w in zip(
                    MEMORY,
                    (
                        lab.word("parameters", lang),
                        lab.word("gradients", lang),
                        lab.word("optimizer", lang),
                    ),
                    strict=False,
                )
            },
            "",
            lab.word("bytes_parameter_policy", lang),
            totals=True,
        )

    doing = {
        "en": {
            "writes": "writes a token",
            "judges": "judges the answers (the actor: and advantages)",
            "trains": "trains",
        },
        "zh": {"writes": "生成一个 token", "judges": "评判回答（actor 还要算优势）", "trains": "训练"},
    }
    lab.figure("bytes_parameter_role_holds", memory)
    lab.figure(
        lab.text("iteration_ppo_tokens_written", middle=LENGTHS[1]),
        lambda lang: roles_figure(
            runs["ppo"].replay("dgx-h100"),
            {said[lang][r]: rank for r, rank in jobs["ppo"].where.items()},
            LENGTHS[1],
            doing[lang],
            lang,
        ),
    )
    lab.figure(
        "where_iteration_time_goes",
        lambda lang: stack(
            [str(n) for n in LENGTHS],
            {
                axes[lang][i]: (
                    list(LOOKS.values())[i],
                    [100 * t[i] / sum(t) for t in times["dgx-h100"].values()],
                )
                for i in range(3)
            },
            lab.word("tokens_answer", lang),
            lab.word("share_iteration", lang),
        ),
    )
    lab.figure(
        "rule_calls_right_before",
        lambda lang: bars(
            ["SFT", "DPO + SFT", "PPO", "GRPO"],
            {lab.word("expected_reward_held_out", lang): [r.reward for r in learned.rows.values()]},
            lab.word("expected_reward_held_out", lang),
        ),
    )
    r, k = (
        {m.split()[0]: getattr(row, what) for m, row in learned.rows.items()} for what in ("reward", "kl")
    )
    big = (
        sum(
            ranks.predict_state(
                Tuning(
                    "ppo",
                    make_model("llama3-8b"),
                    reward="model",
                    precision="bf16",
                    placement=dict.fromkeys(ROLES, 0),
                )
            ).values()
        )
        / 1e9
    )
    lab.tell("actor_critic_hold_bytes", view="tab=memory&run=ppo", big=big)
    lab.tell(
        "h100_kernel_kernel_writing",
        view="tab=timeline&run=ppo",
        middle=LENGTHS[1],
        h100_middle=100 * share["dgx-h100"][LENGTHS[1]],
        longest=LENGTHS[2],
        h100_longest=100 * share["dgx-h100"][LENGTHS[2]],
        ratio=ratio,
    )
    lab.tell(
        "where_kernel_starts_nothing",
        view="tab=timeline&run=grpo",
        classroom_ridge=ridge["classroom"],
        h100_ridge=ridge["dgx-h100"],
        classroom_middle=100 * share["classroom"][LENGTHS[1]],
    )
    lab.tell("large_model_launches_hardly", view="tab=ledger&run=ppo", third_ridge=ridge["dgx-h100"] / 3)
    lab.tell(
        "right_answers_after_sft",
        sft_reward=r["sft"],
        dpo_reward=r["dpo"],
        dpo_kl=k["dpo"],
        ppo_reward=r["ppo"],
        ppo_kl=k["ppo"],
        grpo_reward=r["grpo"],
        grpo_kl=k["grpo"],
    )
    lab.conclude(
        ppo_held=(held["ppo"] - 18 * head) / psi,
        grpo_held=held["grpo with a rule"] / psi,
        h100_longest=100 * share["dgx-h100"][LENGTHS[2]],
    )
    lab.explain()
    lab.own_number(longest=LENGTHS[2], h100_longest=100 * share["dgx-h100"][LENGTHS[2]])
