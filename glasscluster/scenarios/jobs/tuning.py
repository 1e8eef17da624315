"""Preference tuning: the check rows of a run, and the course from demonstrations to DPO, PPO and GRPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding import cache as caches
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.sim.run import Cluster, Run
from glasscluster.strategies.judge import check
from glasscluster.strategies.numerics.widths import WIDTH
from glasscluster.strategies.plan import make_model as make_gpt
from glasscluster.strategies.preference import alone, policy, ranks, reward_model, sequences
from glasscluster.strategies.preference.cast import Tuned
from glasscluster.strategies.preference.held import make_model
from glasscluster.strategies.preference.job import ONLINE, Method, Tuning, Weights
from glasscluster.strategies.preference.ranks import tune_rank
from glasscluster.strategies.preference.rewards import VOCABULARY, SortTask

ROLES = {
    "actor": "策略模型",
    "critic": "价值模型",
    "reference": "参考模型",
    "reward": "奖励模型",
    "rollout": "rollout",
}
MESSAGES = {
    "weights": "权重",
    "answers": "回答",
    "reference log-probabilities": "参考模型的对数概率",
    "scores": "得分",
    "values": "价值",
    "targets": "价值目标",
}

SMALL = make_gpt("tiny", layers=1, hidden=48, heads=2, vocab=VOCABULARY, seq=7, init_std=0.1)  # 3 digits


# ---- check rows --------------------------------------------------------------------------------------------
def equality_rows(job: Tuning, results: list[Tuned]) -> list[Row]:
    """The check rows that every loss and all trained weights are those of one process.

    The run must be in float64 with `capture`.
    """
    comparison, source = alone.compare(results, alone.in_one_process(job)), "one process, no messages"
    return [
        Row(
            f"{job.method}_{what}_difference",
            Said(
                f"{job.method}: largest {what} difference from one process, float64",
                f"{job.method}：与单进程（float64）的最大{check.WHAT[what].zh}差异",
            ),
            0.0,
            comparison[f"max_rel_{what}_diff"],
            source,
            unit="relative",
            tolerance=check.TOLERANCE,
        )
        for what in ("loss", "weight")
    ]


def memory_rows(job: Tuning, results: list[Tuned]) -> list[Row]:
    """The check rows of every role's model states (Eq 39), and of the rollout's keys and values (Eq 3)."""
    method, held, rows = job.method, _held(results), []
    for role, n in ranks.predict_state(job).items():
        name = Said(f"{method}: model states, {role}", f"{method}：模型状态，{ROLES.get(role, role)}")
        rows.append(Row(f"{method}_states_{role}", name, n, held.get(role, 0), "Eq 39, from Eq 15"))
    if method in ONLINE:
        width = WIDTH[job.precision]
        cache = caches.predict(job.model, job.answers * (job.task.length - 1), width)
        name = Said(f"{method}: cache of the rollout", f"{method}：rollout 的缓存")
        rows.append(Row(f"{method}_rollout_cache", name, cache, max(r.cache_bytes for r in results), "Eq 3"))
    return rows


def traffic_rows(job: Tuning, run: Run) -> list[Row]:
    """The check rows of the bytes that roles send each other in an iteration, by label, and that nothing else
    is sent.
    """
    method, rows = job.method, []
    predicted = {label: n for label, n in ranks.predict_traffic(job).items() if n}
    for label, n in predicted.items():
        name = Said(f"{method}: sent, {label}", f"{method}：发送，{MESSAGES.get(label, label)}")
        key = f"{method}_sent_{label.replace(' ', '_').replace('-', '_')}"
        rows.append(Row(key, name, n, sum(run.graph.bytes_sent(label=label)), "shapes"))
    name = Said(f"{method}: sent, all", f"{method}：发送，全部")
    return [
        *rows,
        Row(f"{method}_sent", name, sum(predicted.values()), sum(run.graph.bytes_sent()), "shapes"),
    ]


def _held(results: list[Tuned]) -> dict[str, int]:
    return {role: sum(split.values()) for r in results for role, split in r.state_bytes.items()}


# ---- the course --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Course:
    """The sizes of a course, chosen so that the reward of each method has stopped growing."""

    model: ModelConfig = SMALL
    task: SortTask = field(default_factory=SortTask)
    sft: int = 400
    demonstrations: int = 64  # an SFT step
    compare: int = 1000  # prompts whose answers are compared
    reward_model: int = 300
    dpo: int = 120
    ppo: int = 40
    grpo: int = 40
    beta: float = 0.2
    dpo_beta: float = 0.5
    dpo_lr: float = 3e-4


VARIANTS: dict[str, tuple[Method, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo with SFT loss": ("dpo", {"imitation": 1.0, "lr": 1e-3}),
    "preferred alone": (
        "dpo",
        {"imitation": 1.0, "lr": 1e-3, "beta": 0.0},
    ),  # no comparison: SFT on the answers that were right
    "ppo": ("ppo", {}),
    "grpo": ("grpo", {}),
    "ppo without KL": ("ppo", {"beta": 0.0}),
    "grpo without KL": ("grpo", {"beta": 0.0}),
}


@dataclass
class PolicyScore:
    """A policy on held-out prompts: its expected reward, its KL to the SFT policy in nats, the mean score of
    the reward model (None without one).

    `written` counts the answer tokens that were generated for its training, `trained` those it was trained
    on, after SFT.
    """

    reward: float
    kl: float
    score: float | None
    written: int
    trained: int
    rewards: list[float] = field(default_factory=list)  # mean reward of each iteration's answers, by the rule
    kls: list[float] = field(default_factory=list)
    scores: list[float] = field(
        default_factory=list
    )  # mean reward of the same answers, by the model or rule that trained on them


@dataclass
class Learned:
    """A finished course: the policies' rows by method, and how often the reward model agrees with the rule on
    comparisons it never saw.
    """

    rows: dict[str, PolicyScore] = field(default_factory=dict)
    agreement: float = 0.0
    weights: dict[str, Weights] = field(default_factory=dict)
    reward_weights: Weights | None = None
    pairs: Any = None


def tuned(job: Tuning) -> list[Tuned]:
    """Run a job on threads without recording, one rank a role; return the ranks' results."""
    return (
        Cluster("classroom", job.ranks, "threads", memory_bytes=None)
        .run(tune_rank, replace(job, capture=True), record=False)
        .results
    )


@one_thread()
def learn(
    seed: int,
    course: Course | None = None,
    methods: tuple[str, ...] = ("dpo", "ppo", "grpo"),
    say: Callable[[str], None] = lambda _text: None,
) -> Learned:
    """Train the SFT policy and the reward model, then tune with each method from that SFT policy."""
    course, out = course or Course(), Learned()
    task = course.task
    base = Tuning("sft", course.model, task, course.sft, prompts=course.demonstrations, lr=1e-2, seed=seed)
    say(f"seed {seed}: SFT on {course.sft * base.answers} demonstrations")
    start = tuned(base)[0].weights["actor"]
    reference = make_model("actor", replace(base, weights=start))
    out.weights["sft"] = start
    say(f"seed {seed}: comparisons, a reward model")
    out.pairs = policy.compared(reference, task, course.compare, 1000 + seed)
    if any(VARIANTS[m][0] == "ppo" for m in methods):
        out.reward_weights, out.agreement = train_reward_model(course, seed, start, reference, out.pairs)
    reward = policy.expected_reward(reference, task)
    out.rows["sft"] = PolicyScore(reward, 0.0, _score(out, base, reference), 0, 0)
    for method in methods:
        say(f"seed {seed}: {method}")
        job = job_of(method, course, seed, out)
        first = tuned(job)[0]
        model = make_model("actor", replace(base, weights=first.weights["actor"]))
        each = job.iterations * task.answer
        written, trained = (
            (0, each * 2 * job.prompts)
            if job.method == "dpo"
            else (each * job.answers, each * job.answers * job.epochs)
        )
        kl = policy.divergence(model, reference, task, seed)
        reward, score = policy.expected_reward(model, task), _score(out, base, model)
        by_iteration = first.rewards, first.kl, first.scores
        out.rows[method] = PolicyScore(reward, kl, score, written, trained, *by_iteration)
        out.weights[method] = first.weights["actor"]
    return out


def _score(learned: Learned, base: Tuning, stage: Any) -> float | None:
    """The mean score that the reward model gives a policy's answers to held-out prompts; None without one."""
    if learned.reward_weights is None:
        return None
    model = make_model("reward", replace(base, reward_weights=learned.reward_weights))
    with torch.no_grad():
        tokens = policy.sample(stage, base.task.prompts(held_out=True), base.task.answer, base.seed)
        return float(sequences.scores(model, tokens).mean())


def job_of(method: str, course: Course, seed: int, learned: Learned, **changes: Any) -> Tuning:
    """The job of a method that starts from a course's SFT policy."""
    options: dict[str, Mapping[str, Any]] = {
        "dpo": {
            "iterations": course.dpo,
            "prompts": 32,
            "lr": course.dpo_lr,
            "beta": course.dpo_beta,
            "pairs": learned.pairs,
        },
        "ppo": {
            "iterations": course.ppo,
            "prompts": 64,
            "epochs": 2,
            "critic_lr": 5e-3,
            "beta": course.beta,
            "reward": "model",
        },
        "grpo": {"iterations": course.grpo, "prompts": 16, "group": 8, "epochs": 2, "beta": course.beta},
    }
    kind, own = VARIANTS[method]
    weights = {"weights": learned.weights["sft"], "reward_weights": learned.reward_weights}
    return Tuning(
        kind, course.model, course.task, seed=seed, **{**weights, **options[kind], **own, **changes}
    )


def train_reward_model(
    course: Course, seed: int, start: Weights, reference: Any, pairs: Any
) -> tuple[Weights, float]:
    """Train a reward model from the SFT policy and standardize it on that policy's answers.

    Returns its weights, and the share of unseen comparisons on which it agrees with the rule.
    """
    task = course.task
    job = Tuning(
        "reward-model",
        course.model,
        task,
        course.reward_model,
        prompts=32,
        lr=3e-3,
        seed=seed,
        weights=start,
        pairs=pairs,
    )
    model = make_model("reward", replace(job, reward_weights=tuned(job)[0].weights["reward"]))
    new = policy.compared(reference, task, course.compare // 5, 2000 + seed)
    answers = policy.sample(
        reference, policy.prompts_of(task, course.compare, 1, 3000 + seed), task.answer, 3000 + seed
    )
    with torch.no_grad():
        agreement = reward_model.agreement(*(sequences.scores(model, x) for x in new))
        reward_model.standardize(model.scalar, sequences.scores(model, answers))
    return {name: p.detach().clone() for name, (p, _) in model.full_names().items()}, agreement
