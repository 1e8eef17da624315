"""F4: four models in memory, two of them with an optimizer, and most of the time goes into writing
answers.
"""

from __future__ import annotations

from collections.abc import Callable
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
ROLES = ("actor", "critic", "reference", "reward", "rollout")
CLOCKS = ("classroom", "dgx-h100")
PARTS = ("writing", "judging", "training")
LEARNING, READ = 16, 2  # bytes a parameter of a model that learns, and of one that is only read (Eq 15)
HELD = {  # bytes of every parameter of the policy, and of a scalar head; method; who says what is right
    "ppo": (36, 18, "ppo", "model"),
    "grpo_judge": (20, 2, "grpo", "model"),
    "grpo_rule": (18, 0, "grpo", "rule"),
}


def parts_of_time(run: Any, where: Any, tokens: int, clock: str) -> tuple[float, float, float]:
    """The seconds of an iteration: until the last token is written, until the answers are scored, until all
    is trained.
    """
    line, graph = run.replay(clock), run.graph
    written = float(line.end[(graph.rank == where["rollout"]) & (graph.micro_batch == tokens - 1)].max())
    scored = float(line.end[graph.micro_batch == tokens].max())
    return written, scored - written, line.makespan - scored


@lesson(hardware="dgx-h100")
def rlhf_anatomy(lab: Lab, sft: int = 200, iterations: int = 8, answers: int = 8) -> None:
    """A small GPT learns to sort from people who are often wrong, then DPO, PPO and GRPO raise a reward
    that a rule checks. Every role is played on a rank of its own: its bytes are counted, its messages
    recorded, and rollout and training are on one timeline.
    """
    learned = learn_to_sort(lab, sft, iterations)
    model = make_model("tiny", layers=2, seq=PROMPT + max(LENGTHS))
    psi, head = model.parameters(), model.hidden + 1

    def job(method: Any, tokens: int = LENGTHS[1], **options: Any) -> Tuning:
        """The job of one iteration of a method on blank prompts."""
        task = Blank(prompt_tokens=PROMPT, answer_tokens=tokens)
        return Tuning(method, model, task, precision="bf16", seed=lab.seed, **{"prompts": answers, **options})

    groups: dict[str, Any] = {
        "prompts": -(-answers // 4),
        "group": 4,
        "placement": place("grpo", "rule", ("actor", "rollout")),
    }
    jobs = {"ppo": job("ppo", reward="model"), "grpo": job("grpo", **groups), "sft": job("sft")}
    runs = {m: lab.run(m, lab.text(m), tune_rank, j, gpus=j.ranks, precision="bf16") for m, j in jobs.items()}
    for method, run in runs.items():
        lab.checks += tuning.memory_rows(jobs[method], run.results) + tuning.traffic_rows(jobs[method], run)
    held = check_states(lab, job)
    by_length = {n: job("ppo", n, reward="model") for n in LENGTHS}
    times = times_by_length(lab, by_length, runs["ppo"])
    share = {
        clock: {n: 100 * parts[0] / sum(parts) for n, parts in each.items()} for clock, each in times.items()
    }
    _, middle, longest = LENGTHS
    mostly = int(share["dgx-h100"][middle] > 50)
    lab.row("writing_takes_most", 1, mostly, "replay", unit="yes", middle=middle)

    without_heads = (held["ppo"] - 18 * head) / psi
    lab.ask("bytes", without_heads, learning=LEARNING, read=READ)
    figures(lab, jobs["ppo"], runs, learned, times["dgx-h100"])
    lab.tell("memory", view="tab=memory&run=ppo", big=gigabytes_of_an_8b())
    h100: dict[str, Any] = {
        "h100_middle": share["dgx-h100"][middle],
        "h100_longest": share["dgx-h100"][longest],
    }
    ratio = runs["ppo"].replay("dgx-h100").makespan / runs["sft"].replay("dgx-h100").makespan
    lab.tell("writing", view="tab=timeline&run=ppo", middle=middle, longest=longest, **h100, ratio=ratio)
    ridge = {clock: ridge_of(clock) for clock in CLOCKS}
    ridges: dict[str, Any] = {"classroom_ridge": ridge["classroom"], "h100_ridge": ridge["dgx-h100"]}
    there = share["classroom"][middle]
    lab.tell("classroom", view="tab=timeline&run=grpo", **ridges, classroom_middle=there)
    lab.tell("large_model", view="tab=ledger&run=ppo", third_ridge=ridge["dgx-h100"] / 3)
    rows = {method.split()[0]: row for method, row in learned.rows.items()}
    rewards: dict[str, Any] = {f"{method}_reward": row.reward for method, row in rows.items()}
    lab.tell("rewards", **rewards, **{f"{method}_kl": row.kl for method, row in rows.items()})
    small = held["grpo_rule"] / psi
    lab.conclude(ppo_held=without_heads, grpo_held=small, h100_longest=h100["h100_longest"])
    lab.explain()
    lab.own_number(ppo_held=without_heads, longest=longest, h100_longest=h100["h100_longest"])


def learn_to_sort(lab: Lab, sft: int, iterations: int) -> Any:
    """Train SFT, then DPO, PPO and GRPO from it; check what each reaches, and each method on ranks against
    one process.
    """
    small: dict[str, Any] = {"demonstrations": 256, "compare": 150, "reward_model": 80}
    course = tuning.Course(sft=sft, **small, dpo=5 * iterations, ppo=iterations, grpo=iterations)
    learned = tuning.learn(lab.seed, course, ("dpo with SFT loss", "ppo", "grpo"), lab.say)
    first, *methods = learned.rows
    enough = learned.rows[first].reward + 0.2
    behind = sum(learned.rows[method].reward < enough for method in methods)
    lab.row("methods_that_do_not_learn", 0, behind, "the rule, on held-out prompts", unit="methods")
    two: dict[str, Any] = {"iterations": 2, "prompts": 4, "precision": "fp64", "capture": True}
    for method in methods:
        exact = tuning.job_of(method, course, lab.seed, learned, **two)
        results = lab.cluster(exact.ranks).run(tune_rank, exact, record=False).results
        lab.checks += tuning.equality_rows(exact, results)
    return learned


def check_states(lab: Lab, job: Callable[..., Tuning]) -> dict[str, int]:
    """Check the bytes of model states when all roles of a method share a rank, against Eq 39; returns them by
    method.
    """
    held = {}
    for name, (each, more, method, reward) in HELD.items():
        two = {"group": 2} if method == "grpo" else {}
        alone = job(method, 1, reward=reward, prompts=2, **two)
        held[name] = states_on_one_rank(lab, alone)
        expected = each * alone.model.parameters() + more * (alone.model.hidden + 1)
        source, title = "Eq 39; h + 1 of a scalar head", lab.text(f"name_{name}")
        lab.row("states_on_one_rank", expected, held[name], source, name=title)
    return held


def states_on_one_rank(lab: Lab, job: Tuning) -> int:
    """The bytes of model states when all roles of a method share a rank."""
    together = replace(job, placement=dict.fromkeys(job.roles, 0))
    results = lab.cluster(1).run(tune_rank, together, record=False).results
    return sum(sum(split.values()) for split in results[0].state_bytes.values())


def times_by_length(lab: Lab, jobs: dict[int, Tuning], middle: Any) -> dict[str, dict[int, Any]]:
    """The seconds of each part of an iteration, by hardware and tokens of an answer; the middle length was
    really run.
    """
    times: dict[str, dict[int, Any]] = {clock: {} for clock in CLOCKS}
    for tokens, job in jobs.items():
        run = middle
        if tokens != LENGTHS[1]:
            run = lab.cluster(job.ranks).run(tune_rank, job, info={"precision": "bf16"})
        for clock in CLOCKS:
            times[clock][tokens] = parts_of_time(run, job.where, tokens, clock)
    return times


def ridge_of(clock: str) -> float:
    """The FLOPs a byte at which computing and reading take a GPU equally long, in bf16."""
    gpu = hardware(clock).gpu
    return gpu.peak("bf16") / gpu.memory_bandwidth


def gigabytes_of_an_8b() -> float:
    """The GB of model states of PPO with an 8B model, all roles together."""
    together = dict.fromkeys(ROLES, 0)
    job = Tuning("ppo", make_model("llama3-8b"), reward="model", precision="bf16", placement=together)
    return sum(ranks.predict_state(job).values()) / 1e9


def figures(lab: Lab, job: Tuning, runs: dict[str, Any], learned: Any, times: dict[int, Any]) -> None:
    """Draw what each role holds, who computes what at which time, where the time goes, and what was
    learned.
    """
    psi = job.model.parameters()

    def memory(lang: str) -> Any:
        names, splits = [], []
        for method in ("ppo", "grpo"):
            for result in runs[method].results:
                for role, split in result.state_bytes.items():
                    names.append(f"{method.upper()}: {lab.word(role, lang)}")
                    splits.append(split)
        series = {}
        for kind in ("parameters", "gradients", "optimizer"):
            series[lab.word(kind, lang)] = (MEMORY[kind], [split[kind] / psi for split in splits])
        return stack(names, series, "", lab.word("bytes_a_parameter", lang), totals=True)

    def iteration(lang: str) -> Any:
        where = {lab.word(role, lang): rank for role, rank in job.where.items()}
        doing = {what: lab.word(what, lang) for what in ("writes", "judges", "trains")}
        return roles_figure(runs["ppo"].replay("dgx-h100"), where, LENGTHS[1], doing, lang)

    def time_by_length(lang: str) -> Any:
        series = {}
        for i, (part, look) in enumerate(zip(PARTS, LOOKS.values(), strict=True)):
            series[lab.word(part, lang)] = (
                look,
                [100 * seconds[i] / sum(seconds) for seconds in times.values()],
            )
        lengths = [str(n) for n in LENGTHS]
        return stack(lengths, series, lab.word("answer_tokens", lang), lab.word("share_iteration", lang))

    def rewards(lang: str) -> Any:
        reward = lab.word("expected_reward", lang)
        return bars(
            ["SFT", "DPO + SFT", "PPO", "GRPO"], {reward: [r.reward for r in learned.rows.values()]}, reward
        )

    lab.figure("memory", memory)
    lab.figure("iteration", iteration, middle=LENGTHS[1])
    lab.figure("time_by_length", time_by_length)
    lab.figure("rewards", rewards)
