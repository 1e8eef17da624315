"""F4: four models in memory, two of them with an optimizer, and most of the time spent writing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

PROMPT, LENGTHS = 16, (4, 16, 64)  # tokens
ROLES = {"actor": "策略（actor）", "critic": "价值（critic）", "reference": "参考模型", "reward": "奖励模型", "rollout": "生成（rollout）"}


def parts_of_time(run: Any, where: Any, tokens: int, clock: str) -> tuple[float, float, float]:
    """Seconds of an iteration: until the last token is written, until the answers are judged, until all is trained."""
    line, graph = run.replay(clock), run.graph
    written = float(line.end[(graph.rank == where["rollout"]) & (graph.micro_batch == tokens - 1)].max())
    judged = float(line.end[graph.micro_batch == tokens].max())
    return written, judged - written, line.makespan - judged


# fmt: off
@lesson(
    "F4",
    title=("RLHF anatomy", "RLHF 的四个模型"),
    topic=("training", "训练"),
    question=("Which of the four models of RLHF needs an optimizer?", "RLHF 的四个模型里，哪些需要优化器？"),
    formula=Formula("Eq 39", "PPO: actor 16Ψ + critic 16Ψ + reference 2Ψ + reward model 2Ψ = 36Ψ; GRPO drops the critic: 20Ψ, 18Ψ with a rule", "X", "from Eq 15 (1910.02054); 2203.02155; 2402.03300"),
    kills=("“RLHF costs like SFT.” Two models learn and two are kept, and before anything is trained every answer is written token by token: on a GPU that is most of the iteration.",
           "“RLHF 的开销和 SFT 差不多。”两个模型在学习，两个只是留着；训练之前每个回答都要逐 token 生成：在 GPU 上这占了一次迭代的大部分时间。"),
    card=Card(
        ("Walk through PPO for RLHF: models, memory, one iteration. What does GRPO change?", "讲讲 RLHF 的 PPO：有哪些模型、占多少显存、一次迭代做什么？GRPO 改了什么？"),
        ("Actor and critic learn: 16 bytes a parameter each in mixed precision. Reference and reward model only answer: 2 each. 36Ψ together. The actor writes, the others judge, then actor and critic train. GRPO takes the group's mean for a baseline: no critic, 20Ψ.",
         "actor 与 critic 在学习：混合精度下每个参数各 16 字节。参考模型与奖励模型只作答：各 2 字节。合计 36Ψ。actor 生成，其他模型评判，然后 actor 与 critic 训练。GRPO 以组内均值为基线：没有 critic，20Ψ。"),
        ("The reward of a token is −β(log π − log π_ref), the score is added on the last one; GAE turns rewards and values into advantages; the ratio is clipped because the same answers are used for several steps. The reference keeps the policy where the reward model has seen answers: without it the score rises and quality falls. DPO needs neither reward model nor generation, 18Ψ, but its pairs are an older policy's. Systems: place roles on GPUs of their own or let them take turns; the rollout wants an inference engine and a fresh copy of the weights each iteration; answers of one-step-old weights let both sides work at once.",
         "每个 token 的奖励是 −β(log π − log π_ref)，得分加在最后一个 token 上；GAE 由奖励和价值得到优势；同一批回答要用好几步，所以比率要截断。参考模型把策略留在奖励模型见过的回答附近：没有它，得分上升而质量下降。DPO 既不要奖励模型也不生成，18Ψ，但它的偏好对来自旧策略。系统上：各角色各占 GPU，或轮流使用；rollout 需要推理引擎，每次迭代都要拿到新权重；允许权重旧一步，两边就能同时工作。"),
        (("Why is the ratio in PPO exactly 1 in the first step on a batch?", "为什么 PPO 在一批数据的第一步里比率恰好是 1？"), ("What does GRPO lose when all answers of a group are right?", "一组回答全对时，GRPO 失去了什么？")),
    ),
    hardware="dgx-h100",
)
def rlhf_anatomy(lab: Lab, sft: int = 200, iterations: int = 8, answers: int = 8) -> None:
    """A small GPT learns to sort from people who are often wrong, then DPO, PPO and GRPO raise a reward that a rule checks. Every role is
    played on a rank of its own: its bytes are counted, its messages recorded, and rollout and training are on one timeline.
    """
    from glasscluster.scenarios.jobs import tuning
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.plan import make_model
    from glasscluster.strategies.preference import ranks
    from glasscluster.strategies.preference.job import Tuning, place
    from glasscluster.strategies.preference.ranks import tune_rank
    from glasscluster.strategies.preference.rewards import Blank
    from glasscluster.visualize.figures.palette import MEMORY
    from glasscluster.visualize.figures.plots import bars, stack
    from glasscluster.visualize.figures.roles import LOOKS, roles_figure

    course = tuning.Course(sft=sft, demonstrations=256, compare=150, reward_model=80, dpo=5 * iterations, ppo=iterations, grpo=iterations)
    learned = tuning.learn(lab.seed, course, ("dpo with SFT loss", "ppo", "grpo"), lab.say)
    first, *methods = learned.rows
    behind = [m for m in methods if learned.rows[m].reward < learned.rows[first].reward + 0.2]
    lab.check("methods that do not raise the expected reward by 0.2", 0, len(behind), "the rule, on held-out prompts", unit="methods")
    for method in methods:
        exact = tuning.job_of(method, course, lab.seed, learned, iterations=2, prompts=4, precision="fp64", capture=True)
        lab.checks += tuning.equality_rows(exact, lab.cluster(exact.ranks).run(tune_rank, exact, record=False).results)

    model, jobs = make_model("tiny", layers=2, seq=PROMPT + max(LENGTHS)), {}
    psi, head = model.parameters(), model.hidden + 1
    def job(method: Any, tokens: int = LENGTHS[1], **options: Any) -> Any:
        return Tuning(method, model, Blank(prompt_tokens=PROMPT, answer_tokens=tokens), precision="bf16", seed=lab.seed, **{"prompts": answers, **options})

    names = {"ppo": ("PPO, a rank a role", "PPO，每个角色一个 rank"), "grpo": ("GRPO, the actor writes", "GRPO，actor 自己生成"), "sft": ("SFT on the same answers", "在同样的回答上做 SFT")}
    jobs["ppo"] = job("ppo", reward="model")
    jobs["grpo"] = job("grpo", prompts=-(-answers // 4), group=4, placement=place("grpo", "rule", ("actor", "rollout")))
    jobs["sft"] = job("sft")
    runs = {m: lab.run(m, names[m], tune_rank, j, gpus=j.ranks, precision="bf16") for m, j in jobs.items()}
    for m, run in runs.items():
        lab.checks += tuning.memory_rows(jobs[m], run.results) + tuning.traffic_rows(jobs[m], run)
    held, heads = {}, {"ppo": (36, 18, "model"), "grpo with a judge": (20, 2, "model"), "grpo with a rule": (18, 0, "rule")}
    for name, (each, more, reward) in heads.items():
        method = name.split()[0]
        alone = job(method, 1, reward=reward, prompts=2, **({"group": 2} if method == "grpo" else {}))
        alone = replace(alone, placement=dict.fromkeys(alone.roles, 0))
        results = lab.cluster(1).run(tune_rank, alone, record=False).results
        held[name] = sum(sum(split.values()) for split in results[0].state_bytes.values())
        lab.check(f"all roles on one rank, {name}: model states", each * psi + more * head, held[name], "Eq 39; h + 1 of a scalar head")

    times: dict[str, dict[int, Any]] = {h: {} for h in ("classroom", "dgx-h100")}
    for tokens in LENGTHS:
        longer = job("ppo", tokens, reward="model")
        run = runs["ppo"] if tokens == LENGTHS[1] else lab.cluster(longer.ranks).run(tune_rank, longer, info={"precision": "bf16"})
        for clock, found in times.items():
            found[tokens] = parts_of_time(run, longer.where, tokens, clock)
    share = {h: {n: t[0] / sum(t) for n, t in found.items()} for h, found in times.items()}
    ratio = runs["ppo"].replay("dgx-h100").makespan / runs["sft"].replay("dgx-h100").makespan
    ridge = {h: hardware(h).gpu.peak("bf16") / hardware(h).gpu.memory_bandwidth for h in times}
    lab.check(f"H100, answers of {LENGTHS[1]} tokens: writing takes most of the iteration", 1, int(share["dgx-h100"][LENGTHS[1]] > 0.5), "replay", unit="yes")

    lab.ask("Mixed precision, four models of Ψ parameters: how many bytes a parameter does PPO hold?", "混合精度，四个模型各有 Ψ 个参数：PPO 每个参数要占多少字节？", (held["ppo"] - 18 * head) / psi, "bytes")
    said = {"en": {r: r if r != "reward" else "reward model" for r in ROLES}, "zh": ROLES}
    words = {"en": ("parameters", "gradients", "optimizer", "bytes a parameter of the policy"), "zh": ("参数", "梯度", "优化器状态", "字节，按策略的每个参数计")}

    def memory(lang: str) -> Any:
        shown = [(f"{m.upper()}: {said[lang][role]}", split) for m in ("ppo", "grpo") for result in runs[m].results for role, split in result.state_bytes.items()]
        return stack([n for n, _ in shown], {w: (MEMORY[c], [split[c] / psi for _, split in shown]) for c, w in zip(MEMORY, words[lang][:3], strict=False)}, "", words[lang][3], totals=True)

    doing = {"en": {"writes": "writes a token", "judges": "judges the answers (the actor: and advantages)", "trains": "trains"}, "zh": {"writes": "生成一个 token", "judges": "评判回答（actor 还要算优势）", "trains": "训练"}}
    lab.figure(("Bytes a parameter that each role holds, counted", "各角色持有的字节数（按每个参数计，计数所得）"), memory)
    lab.figure((f"One iteration of PPO: {LENGTHS[1]} tokens are written, then judged, then trained on", f"PPO 的一次迭代：先生成 {LENGTHS[1]} 个 token，再评判，再训练"),
               lambda lang: roles_figure(runs["ppo"].replay("dgx-h100"), {said[lang][r]: rank for r, rank in jobs["ppo"].where.items()}, LENGTHS[1], doing[lang], lang))
    axes = {"en": ("writing", "judging", "training", "tokens of an answer", "share of an iteration (%)"), "zh": ("生成", "评判", "训练", "一个回答的 token 数", "占一次迭代的比例（%）")}
    lab.figure(("Where an iteration's time goes, on an H100", "H100 上一次迭代的时间去向"),
               lambda lang: stack([str(n) for n in LENGTHS], {axes[lang][i]: (list(LOOKS.values())[i], [100 * t[i] / sum(t) for t in times["dgx-h100"].values()]) for i in range(3)}, *axes[lang][3:]))
    rewards = {"en": "expected reward, held out", "zh": "期望奖励（留出集）"}
    lab.figure(("What a rule calls right, before and after", "规则判为正确的比例，之前与之后"), lambda lang: bars(["SFT", "DPO + SFT", "PPO", "GRPO"], {rewards[lang]: [r.reward for r in learned.rows.values()]}, rewards[lang]))
    r, k = ({m.split()[0]: getattr(row, what) for m, row in learned.rows.items()} for what in ("reward", "kl"))
    big = sum(ranks.predict_state(Tuning("ppo", make_model("llama3-8b"), reward="model", precision="bf16", placement=dict.fromkeys(ROLES, 0))).values()) / 1e9
    lab.tell(f"The actor and the critic hold 16 bytes a parameter, the reference and the reward model 2; a rollout on a rank of its own has 2 more, a copy. Llama 3 8B: {big:.1f} GB of model states.",
             f"actor 与 critic 每个参数占 16 字节，参考模型与奖励模型各 2 字节；独占一个 rank 的 rollout 再加一份 2 字节的拷贝。Llama 3 8B：模型状态 {big:.1f} GB。", "tab=memory&run=ppo")
    lab.tell(f"On an H100, kernel by kernel, writing {LENGTHS[1]} tokens takes {100 * share['dgx-h100'][LENGTHS[1]]:.1f}% of the iteration, {LENGTHS[2]} tokens {100 * share['dgx-h100'][LENGTHS[2]]:.1f}%. Rank 4 writes, the others wait for it. An SFT step on the same answers takes 1/{ratio:.1f} of the time.",
             f"在 H100 上逐核执行时，生成 {LENGTHS[1]} 个 token 占一次迭代的 {100 * share['dgx-h100'][LENGTHS[1]]:.1f}%，{LENGTHS[2]} 个占 {100 * share['dgx-h100'][LENGTHS[2]]:.1f}%。rank 4 在生成，其他 rank 在等它。在同样的回答上做一步 SFT 只要 1/{ratio:.1f} 的时间。", "tab=timeline&run=ppo")
    lab.tell(f"Where a kernel starts for nothing and {ridge['classroom']:.0f} FLOPs a byte keep a GPU busy (classroom; H100: {ridge['dgx-h100']:.0f}), it is {100 * share['classroom'][LENGTHS[1]]:.1f}%: launches and reads make writing long, not FLOPs.",
             f"如果启动核不花时间，且每字节 {ridge['classroom']:.0f} 次运算就能喂饱 GPU（classroom；H100 要 {ridge['dgx-h100']:.0f}），则只占 {100 * share['classroom'][LENGTHS[1]]:.1f}%：让生成变长的是核启动和读取，不是运算量。", "tab=timeline&run=grpo")
    lab.tell(f"In a large model launches hardly count. By Eq 31 a step of writing reads 2Ψ bytes, training on a token is 6Ψ FLOPs: up to {ridge['dgx-h100'] / 3:.0f} answers at once, writing takes an H100 longer than the actor's training (prompts and cache left out).",
             f"大模型里核启动几乎不算什么。按 Eq 31，生成一步要读 2Ψ 字节，训练一个 token 要 6Ψ 次运算：同时生成的回答不超过 {ridge['dgx-h100'] / 3:.0f} 条时，H100 生成比训练 actor 更久（不计提示与缓存）。", "tab=ledger&run=ppo")
    lab.tell(f"Right answers: {r['sft']:.3f} after SFT; DPO with an SFT loss {r['dpo']:.3f} (KL {k['dpo']:.2f}), PPO {r['ppo']:.3f} (KL {k['ppo']:.2f}), GRPO {r['grpo']:.3f} (KL {k['grpo']:.2f}). Most of DPO's gain here is that SFT loss; five seeds of a longer course, with it and without, are in docs/preference.md.",
             f"回答正确的比例：SFT 之后 {r['sft']:.3f}；带 SFT 损失的 DPO {r['dpo']:.3f}（KL {k['dpo']:.2f}），PPO {r['ppo']:.3f}（KL {k['ppo']:.2f}），GRPO {r['grpo']:.3f}（KL {k['grpo']:.2f}）。这里 DPO 的提升大多来自那项 SFT 损失；五个种子的更长实验（带与不带）见 docs/preference.md。")
    lab.conclude(f"PPO holds {(held['ppo'] - 18 * head) / psi:.0f} bytes a parameter in four models, GRPO with a rule {held['grpo with a rule'] / psi:.0f}; and {100 * share['dgx-h100'][LENGTHS[2]]:.0f}% of the iteration is writing.",
                 f"PPO 的四个模型每个参数共占 {(held['ppo'] - 18 * head) / psi:.0f} 字节，带规则奖励的 GRPO 占 {held['grpo with a rule'] / psi:.0f}；而一次迭代的 {100 * share['dgx-h100'][LENGTHS[2]]:.0f}% 在生成。")
    lab.explain("Only what learns has gradients and an optimizer: the policy, and PPO's baseline, which is a second model of the same size. The reference and the reward model are read.",
                "只有在学习的模型才有梯度和优化器：策略，以及 PPO 的基线，它是另一个同样大小的模型。参考模型和奖励模型只被读取。",
                ("GRPO's baseline is the mean of a group, so the second optimizer goes.", "GRPO 的基线是组内均值，于是第二个优化器就没有了。"),
                ("A token is written with one forward of the whole model; an answer is trained on in one.", "每生成一个 token 都要整个模型做一次前向；而训练时整个回答只要一次。"))
    lab.own_number(f"36 bytes a parameter; writing {LENGTHS[2]} tokens: {100 * share['dgx-h100'][LENGTHS[2]]:.0f}% of the time.", f"每个参数 36 字节；生成 {LENGTHS[2]} 个 token：时间的 {100 * share['dgx-h100'][LENGTHS[2]]:.0f}%。")
