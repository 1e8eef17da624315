"""Beyond lesson F4: PPO exploits a reward model when no KL penalty holds it back, and what placements cost.

`glass run preference`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.base.text import Said
from glasscluster.scenarios.jobs import tuning
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.preference.job import Tuning, place
from glasscluster.strategies.preference.placements import fit
from glasscluster.strategies.preference.ranks import predict_state, tune_rank
from glasscluster.strategies.preference.rewards import Blank
from glasscluster.visualize.figures.plots import bars, lines

TITLES = {
    "one": ("PPO on one GPU", "一块 GPU 上的 PPO"),
    "two": ("PPO on two GPUs", "两块 GPU 上的 PPO"),
    "five": ("PPO on five GPUs", "五块 GPU 上的 PPO"),
}


@scenario("preference", hardware="dgx-h100")
def preference(lab: Lab, sft: int = 400, iterations: int = 40, answers: int = 8, tokens: int = 16) -> None:
    """PPO against a reward model, with its pull to the reference and without, and GRPO against a rule, from
    one SFT policy. The rule says after every iteration what the answers are worth, the reward model what it
    thinks of them. Then PPO's roles are put on one, two and five GPUs.
    """
    full = sft >= 400 and iterations >= 40
    fewer: dict[str, Any] = {} if full else {"compare": 120, "reward_model": 40}
    course = tuning.Course(sft=sft, ppo=iterations, grpo=iterations, **fewer)
    learned = tuning.learn(lab.seed, course, ("ppo", "ppo without KL", "grpo"), lab.say)
    _check_learned(lab, course, learned)

    model = make_model("tiny", layers=2, seq=16 + tokens)
    job = Tuning(
        "ppo",
        model,
        Blank(prompt_tokens=16, answer_tokens=tokens),
        prompts=answers,
        reward="model",
        precision="bf16",
        seed=lab.seed,
    )
    times, fullest = _placed(lab, job)
    if not lab.leader:
        return
    fewest = _fewest_gpus(lab, list(job.roles))
    _draw_learned(lab, course, learned.rows)
    _draw_placed(lab, times, fullest)
    _tell(lab, learned, times, fullest, fewest)


def _check_learned(lab: Lab, course: tuning.Course, learned: tuning.Learned) -> None:
    """Two iterations of each method against one device, and whether the pull holds the policy back."""
    for method in ("ppo", "grpo"):
        exact = tuning.job_of(
            method, course, lab.seed, learned, iterations=2, prompts=4, precision="fp64", capture=True
        )
        lab.checks += tuning.equality_rows(
            exact, lab.cluster(exact.ranks).run(tune_rank, exact, record=False).results
        )
    held, free = learned.rows["ppo"], learned.rows["ppo without KL"]
    name = Said(
        "β = 0: the policy is farther from the reference than with a pull",
        "β = 0：策略比有约束时离参考模型更远",
    )
    farther = int(free.kl > held.kl)
    lab.check("farther_without_pull", 1, farther, "2203.02155, section 3.5", name=name, unit="yes")


def _placed(lab: Lab, job: Tuning) -> tuple[dict[str, float], dict[str, float]]:
    """Run PPO's roles on one, two and five GPUs, with the rows of their bytes.

    Returns:
        By number of GPUs: the virtual time of an iteration in ms, and the model states of the fullest GPU in
        bytes a parameter. Both are empty where this process doesn't lead.
    """
    ways: dict[str, list[tuple[str, ...]]] = {
        "one": [tuple(job.roles)],
        "two": [("actor", "rollout"), ("critic", "reference", "reward")],
        "five": [(role,) for role in job.roles],
    }
    times, fullest = dict[str, float](), dict[str, float]()
    for key, groups in ways.items():
        placed = replace(job, placement=place("ppo", "model", *groups))
        run = lab.run(key, TITLES[key], tune_rank, placed, gpus=placed.ranks, precision="bf16")
        if not lab.leader:
            continue
        counted = tuning.memory_rows(placed, run.results) + tuning.traffic_rows(placed, run)
        lab.checks += [row.of_run(key) for row in counted]
        times[key] = run.timeline.makespan * 1e3
        fullest[key] = (
            max(sum(sum(split.values()) for split in r.state_bytes.values()) for r in run.results)
            / job.model.parameters()
        )
    return times, fullest


def _fewest_gpus(lab: Lab, roles: list[str]) -> dict[str, float]:
    """Check the fewest GPUs of 80 GB for PPO of a larger model; return the numbers that the story tells."""
    big = Tuning(
        "ppo",
        make_model("gpt2-small", layers=32, hidden=2560, heads=32),
        reward="model",
        precision="bf16",
        placement=dict.fromkeys(roles, 0),
    )
    psi, groups = big.model.parameters(), fit(big, 80e9, spare=10e9)
    needed = sum(predict_state(big).values())
    name = Said(
        "the fewest GPUs of 80 GB, 10 of them free, for PPO of 32 layers of width 2560",
        "32 层、宽 2560 的模型做 PPO 最少需要的 80 GB GPU 数（各留 10 GB）",
    )
    source = "Eq 39, tried in all ways; at least the sum over the capacity"
    lab.check("fewest_gpus", -(-needed // int(70e9)), len(groups), source, name=name, unit="GPUs")
    return {"parameters": psi, "bytes": needed, "gpus": len(groups)}


def _draw_learned(lab: Lab, course: tuning.Course, rows: dict[str, Any]) -> None:
    """What the rule and the reward model say after every iteration, and how far the policy has gone."""
    iterations = course.ppo
    names = {
        "ppo": (f"PPO, β = {course.beta:g}", f"PPO，β = {course.beta:g}"),
        "ppo without KL": ("PPO, β = 0", "PPO，β = 0"),
        "grpo": ("GRPO, a rule", "GRPO，规则"),
    }
    axes = {
        "en": (
            "iterations",
            "right answers, by the rule",
            "mean score of the reward model",
            "KL to the SFT policy (nats)",
        ),
        "zh": ("迭代次数", "正确率（按规则）", "奖励模型的平均得分", "与 SFT 策略的 KL（nats）"),
    }

    def drawn(what: str, y: int, lang: str, methods: tuple[str, ...]) -> Any:
        every = max(1, iterations // 20)
        series = {
            names[m][lang == "zh"]: (range(1, iterations + 1, every), getattr(rows[m], what)[::every])
            for m in methods
        }
        return lines(series, axes[lang][0], axes[lang][y]).update_yaxes(rangemode="normal")

    lab.figure(
        ("What the rule says", "规则怎么说"),
        lambda lang: drawn("rewards", 1, lang, ("ppo", "ppo without KL", "grpo")),
    )
    lab.figure(
        ("What the judge says of the same answers", "评判者对同样的回答怎么说"),
        lambda lang: drawn("scores", 2, lang, ("ppo", "ppo without KL")),
    )
    lab.figure(
        ("How far the policy has gone", "策略走了多远"),
        lambda lang: drawn("kls", 3, lang, ("ppo", "ppo without KL", "grpo")),
    )


def _draw_placed(lab: Lab, times: dict[str, float], fullest: dict[str, float]) -> None:
    """Time and memory of the three placements."""
    cost = {
        "en": ("an iteration (ms), virtual", "fullest GPU: bytes a parameter"),
        "zh": ("一次迭代（ms，虚拟）", "最满的 GPU：每个参数的字节数"),
    }

    def placed_bars(values: dict[str, float], axis: int, lang: str) -> Any:
        return bars(
            [TITLES[k][lang == "zh"] for k in TITLES],
            {cost[lang][axis]: list(values.values())},
            cost[lang][axis],
        )

    lab.figure(
        ("Time of an iteration, by placement", "不同放置的迭代时间"), lambda lang: placed_bars(times, 0, lang)
    )
    lab.figure(
        ("Model states of the fullest GPU", "最满的 GPU 上的模型状态"),
        lambda lang: placed_bars(fullest, 1, lang),
    )


def _tell(
    lab: Lab,
    learned: tuning.Learned,
    times: dict[str, float],
    fullest: dict[str, float],
    fewest: dict[str, float],
) -> None:
    """Tell the story: each sentence links to the view that shows it."""
    rows = learned.rows
    held, free = rows["ppo"], rows["ppo without KL"]
    likes, likes_free = (row.score or 0.0 for row in (held, free))
    billions, gigabytes = fewest["parameters"] / 1e9, fewest["bytes"] / 1e9
    lab.tell(
        (
            f"With its pull PPO ends at {held.reward:.3f} right and a KL of {held.kl:.2f}; without, at "
            f"{free.reward:.3f} and {free.kl:.2f}, while the judge's score goes from {likes:.2f} to "
            f"{likes_free:.2f}.",
            f"有约束时 PPO 最终正确率 {held.reward:.3f}，KL {held.kl:.2f}；没有约束时为 {free.reward:.3f} 和 "
            f"{free.kl:.2f}，而评判者的得分从 {likes:.2f} 变为 {likes_free:.2f}。",
        )
    )
    lab.tell(
        (
            f"The judge agrees with the rule on {100 * learned.agreement:.1f}% of comparisons of SFT "
            f"answers; about answers that nobody there gave it was never asked. A rule has no such "
            f"gap: GRPO ends at {rows['grpo'].reward:.3f}.",
            f"在 SFT 回答的比较上，评判者与规则有 {100 * learned.agreement:.1f}% 一致；那里没人给出过的回答，从来没有问过它。规则没有这种漏洞：GRPO "
            f"最终为 {rows['grpo'].reward:.3f}。",
        )
    )
    lab.tell(
        (
            f"Five GPUs take {times['five']:.3f} ms an iteration, one takes {times['one']:.3f} ms: "
            f"roles take turns, and while answers are written four GPUs of five wait.",
            f"五块 GPU 一次迭代 {times['five']:.3f} ms，一块 {times['one']:.3f} ms：各角色轮流工作，生成回答时五块里有四块在等。",
        ),
        view="tab=timeline&run=five",
    )
    lab.tell(
        (
            f"What they buy is memory: the fullest GPU holds {fullest['five']:.1f} bytes a parameter "
            f"instead of {fullest['one']:.1f}. PPO of a model of {billions:.1f}B parameters holds "
            f"{gigabytes:.1f} GB: {fewest['gpus']} GPUs of 80 GB.",
            f"换来的是显存：最满的 GPU 每个参数 {fullest['five']:.1f} 字节，而不是 {fullest['one']:.1f}。{billions:.1f}B "
            f"参数的模型做 PPO 要 {gigabytes:.1f} GB：{fewest['gpus']} 块 80 GB 的 GPU。",
        ),
        view="tab=memory&run=one",
    )
    lab.conclude(
        (
            f"Pulled back, PPO gets {held.reward:.3f} right; let go, {free.reward:.3f}, and its "
            f"judge likes it {'better' if likes_free > likes else 'no better'}.",
            f"有约束时 PPO 正确率 {held.reward:.3f}；放开之后 {free.reward:.3f}，"
            f"而评判者{'更喜欢它' if likes_free > likes else '并没有更喜欢它'}。",
        )
    )
