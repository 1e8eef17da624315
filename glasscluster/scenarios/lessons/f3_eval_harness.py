"""F3: what an accuracy is worth: its error, the same items for both models, two normalisations, the prompt, and text seen before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def learn(model: Any, text: bytes, stops: tuple[int, ...], folders: list[str], lr: float = 5e-3, tokens: int = 32) -> None:
    """One process trains on a text, 16 pieces of so many tokens a step, and saves the weights at some steps."""
    import numpy as np
    import torch

    from glasscluster.model.adamw import Optimizer
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.text.data import batch
    from glasscluster.model.weights import hugging_face

    stage, words, optimizer = GPTStage(model), np.frombuffer(text, dtype=np.uint8), Optimizer("adamw", lr=lr)
    state = [[torch.zeros_like(p) for _ in range(optimizer.moments)] for p in stage.parameters()]
    for step in range(max(stops) + 1):
        if step in stops:
            hugging_face.save(stage, folders[stops.index(step)])
        inputs, targets = batch(words, step, 16, tokens, model.vocab, 0)
        stage.zero_grad()
        (stage(inputs, targets) / targets.numel()).backward()
        with torch.no_grad():
            for p, moments in zip(stage.parameters(), state, strict=True):
                optimizer.update(p, p.grad if p.grad is not None else torch.zeros_like(p), moments, step + 1)


def margins(task: Any, found: Any) -> list[float]:
    """How far the right continuation is likelier than the best wrong one, in nats: above 0 the item is right."""
    return [v[i.answer] - max(x for n, x in enumerate(v) if n != i.answer) for i, v in zip(task.items, found, strict=True)]


# fmt: off
@lesson(
    "F3",
    title=("Eval harness", "评测"),
    topic=("training for real", "真实训练"),
    question=("71.2 against 70.4 on 1,000 items: is the first model better?", "1000 道题上 71.2 对 70.4：第一个模型更好吗？"),
    formula=Formula("Eq 41", "standard error √(p(1 − p)/(n − 1)); paired test on the same items", "X", "statistics; lm-evaluation-harness; McNemar 1947"),
    kills=("“The prompt's format does not matter.” The same brackets asked for in other words are answered otherwise, by several standard errors: scores belong to a prompt.",
           "“提示的格式无所谓。”同样的括号题换一种问法，答案就不同，差距达几个标准误：分数属于某个提示。"),
    card=Card(
        ("How do you compare two models on a benchmark?", "怎样在一个基准上比较两个模型？"),
        ("With the same items, prompt and scorer. An accuracy p of n items has the error √(p(1−p)/(n−1)): about 1.4 points at 1,000. Compare item by item: only those that one of the two has right count (McNemar).",
         "题目、提示和评分方式都相同。n 道题的准确率 p 的标准误是 √(p(1−p)/(n−1))：1000 题时约 1.4 个百分点。要逐题比较：只有一方答对的题才算数（McNemar）。"),
        ("Multiple choice is scored by log p(choice | context). acc takes the largest sum, which favours short choices; acc_norm divides by bytes. Generation is scored by a rule (exact match) or by running it (pass@k, without bias from n ≥ k samples). Perplexity depends on the tokenizer, bits per byte do not. "
         "Say prompt, number of examples in it, normalisation and version; look for items in the training text (pieces of 50 characters); correct for many comparisons. Refusals are a score of their own: refuse what is harmful and answer what only looks so.",
         "选择题按 log p(选项 | 上文) 评分。acc 取和最大的，偏向短选项；acc_norm 除以字节数。生成题按规则（完全匹配）或运行结果评分（pass@k，用 n ≥ k 个样本无偏估计）。困惑度取决于分词器，每字节比特数则不然。"
         "要说明提示、其中的示例数、归一化方式和版本；要在训练文本里查找题目（50 个字符的片段）；多次比较要校正。拒答单独计分：有害的要拒绝，只是看起来有害的要回答。"),
        (("How many items does a difference of 0.8 points need?", "要分辨 0.8 个百分点需要多少道题？"), ("Why can acc and acc_norm order two models differently?", "为什么 acc 与 acc_norm 会给出不同的排名？")),
    ),
)
def eval_harness(lab: Lab, items: int = 120, early: int = 120, late: int = 300) -> None:
    """A small GPT at two moments of its training answers the same items, shared out over four ranks; then other words, other sums, and planted items."""
    import tempfile

    from glasscluster.model.text.data import corpus
    from glasscluster.model.text.tasks import Choice, Task, Text, contaminated, make_task, plain, practice
    from glasscluster.scenarios.jobs import evaluation
    from glasscluster.strategies.exchange.replica import one_thread
    from glasscluster.strategies.plan import make_model
    from glasscluster.strategies.serving import scores
    from glasscluster.strategies.serving.evaluation import EvaluationJob, evaluate_rank
    from glasscluster.visualize.figures.scores import Score, interval_figure, paired_figure

    model = make_model("tiny", layers=2, hidden=48, heads=4, seq=64, activation="gelu-tanh")
    training = corpus(None).tobytes()
    brackets = make_task("brackets", items)
    asked = Task("brackets in other words", tuple(Choice(b"Q: what closes " + i.context + b"?\nA: ", i.choices, i.answer) for i in brackets.items if isinstance(i, Choice)))
    tasks = (make_task("arithmetic", items), brackets, make_task("next-line", items), asked)
    kinds, found = ("early", "late"), {}
    with tempfile.TemporaryDirectory() as home:
        folders = [f"{home}/{kind}" for kind in kinds]
        lab.say("training the model that is asked")
        with one_thread():
            learn(model, practice(0, 6000) + training[:40_000], (early, late), folders)
        exact = EvaluationJob(model, tuple(replace(t, items=t.items[:6]) for t in tasks), dp=4, precision="fp64", weights=folders[1])
        alone = lab.cluster(1).run(evaluate_rank, replace(exact, dp=1), record=False).results[0]
        lab.checks += evaluation.equality_rows(lab.cluster(4).run(evaluate_rank, exact, record=False).results, alone)
        job = replace(exact, tasks=tasks, precision="fp32")
        found["early"] = lab.cluster(4).run(evaluate_rank, replace(job, weights=folders[0]), record=False).results[0]
        run = lab.run("scoring", ("Items shared out over four ranks, then one sum", "题目分给四个 rank，再求一次和"), evaluate_rank, job, gpus=4, precision="fp32")
        found["late"] = run.results[0]
    lab.checks += evaluation.counted_rows(job, run)

    right = {(k, n): [evaluation.right(t, found[k].scores[i], n == "acc_norm") for i, t in enumerate(tasks)] for k in kinds for n in ("acc", "acc_norm")}
    mean = {key: [scores.mean(v) for v in values] for key, values in right.items()}
    for i, task in enumerate(tasks):
        p = mean["late", "acc"][i]
        lab.check(f"standard error of the accuracy, {task.name}", scores.predict_error(p, items), scores.spread(right["late", "acc"][i]), "Eq 41", unit="", tolerance=1e-12)
    told = scores.paired(right["early", "acc"][1], right["late", "acc"][1])
    lab.check("late minus early, brackets, items won minus items lost", told.better - told.worse, round(told.difference * items), "the same items", unit="items")
    apart = scores.predict_unpaired(mean["early", "acc"][1], mean["late", "acc"][1], items)
    planted = Task("planted", tuple(Text(training[a : a + 120]) for a in range(0, 3_000_000, 200_000)))
    seen = plain(training)
    lab.check("items copied from the training text that are flagged", len(planted.items), sum(contaminated(i, seen) for i in planted.items), "GPT-4 report, 2303.08774, appendix C", unit="items")
    flagged = sum(contaminated(i, seen) for i in tasks[2].items)
    errors = 0.008 / scores.predict_unpaired(0.712, 0.704, 1000)
    needed = round(2 * 0.708 * 0.292 * (1.96 / 0.008) ** 2)
    lab.ask("71.2 and 70.4 on 1,000 items, as if on different ones: the difference is how many of its standard errors?",
            "1000 题上 71.2 与 70.4，按不同题目计算：差距是其标准误的几倍？", errors, "×")

    labels = {"en": ("sums", "brackets", "next line", "brackets in other words"), "zh": ("加法", "括号", "下一行", "换种问法的括号")}
    who = {"en": (f"after {early} steps", f"after {late} steps"), "zh": (f"{early} 步之后", f"{late} 步之后")}
    axis = {"en": "accuracy, with its 95 % interval; dotted: guessing", "zh": "准确率及其 95 % 区间；点线：瞎猜"}
    lab.figure(("The same items at two moments of training", "训练中两个时刻的同一批题目"),
               lambda lang: interval_figure(labels[lang], {n: [Score(scores.mean(v), scores.spread(v)) for v in right[k, "acc"]] for k, n in zip(kinds, who[lang], strict=True)}, axis[lang], [0.25] * 4))
    quadrants = {"en": ("both right", "only the early one", "only the late one", "both wrong"), "zh": ("都对", "只有早的对", "只有晚的对", "都错")}
    prefer = {"en": "nats for the right answer, ", "zh": "偏向正确答案的 nat 数，"}
    lab.figure(("Brackets, item by item: the right answer against the best wrong one; both models' verdicts", "括号题逐题比较：正确答案对最好的错误答案，两个模型的判断"),
               lambda lang: paired_figure(margins(brackets, found["early"].scores[1]), margins(brackets, found["late"].scores[1]), prefer[lang] + who[lang][0], prefer[lang] + who[lang][1], quadrants[lang]))
    both = {"en": ("acc: sum of log p", "acc_norm: the same a byte"), "zh": ("acc：log p 之和", "acc_norm：除以字节数")}
    lab.figure(("Two ways to choose, the late model", "两种选法，较晚的模型"),
               lambda lang: interval_figure(labels[lang], {name: [Score(scores.mean(v), scores.spread(v)) for v in right["late", n]] for n, name in zip(("acc", "acc_norm"), both[lang], strict=True)}, axis[lang], [0.25] * 4))
    a, b = mean["late", "acc"][1], mean["late", "acc"][3]
    lab.tell(f"0.8 points on 1,000 items are {errors:.2f} standard errors of a difference: nothing is shown. As different items, {needed} of them would be needed.",
             f"1000 题上的 0.8 个百分点是差值标准误的 {errors:.2f} 倍：什么也没有证明。若题目不同，需要 {needed} 道。", "tab=ledger")
    lab.tell(f"Brackets: {told.better} items won and {told.worse} lost; paired, the error of the difference is {told.error:.3f}, unpaired {apart:.3f}; by chance (McNemar) p = {told.p:.2g}.",
             f"括号题：赢 {told.better} 道，输 {told.worse} 道；配对时差值的误差为 {told.error:.3f}，不配对为 {apart:.3f}；偶然性 (McNemar) p = {told.p:.2g}。")
    lab.tell(f"The same brackets in other words: {b:.3f} instead of {a:.3f}, chance is 0.25.", f"同样的括号换一种问法：{b:.3f} 而不是 {a:.3f}，瞎猜是 0.25。")
    lab.tell(f"Next lines differ in length: acc {mean['late', 'acc'][2]:.3f}, acc_norm {mean['late', 'acc_norm'][2]:.3f}; of these items {flagged} have a piece of 50 characters in the training text.",
             f"下一行的长短不一：acc {mean['late', 'acc'][2]:.3f}，acc_norm {mean['late', 'acc_norm'][2]:.3f}；其中 {flagged} 道有 50 个字符的片段出现在训练文本里。")
    lab.tell("Each item is scored by one rank, and one all-reduce of all scores, zeros elsewhere, brings them to every rank.", "每道题由一个 rank 评分，所有分数（其余为零）做一次 all-reduce，每个 rank 就都有了。", "tab=timeline&run=scoring")
    lab.conclude(f"No: 0.8 points on 1,000 items are {errors:.2f} standard errors. Compare item by item, and say prompt and normalisation.",
                 f"不能说更好：1000 题上的 0.8 个百分点只有 {errors:.2f} 个标准误。要逐题比较，并说明提示和归一化方式。")
    lab.explain("An accuracy is a mean of n coin throws; its error falls with √n. Items that both models have right or wrong say nothing about which is better.",
                "准确率是 n 次抛硬币的平均，误差按 √n 下降。两个模型都对或都错的题，说明不了谁更好。",
                ("The error of p is √(p(1−p)/(n−1)).", "p 的标准误是 √(p(1−p)/(n−1))。"), ("A paired test counts only the items that one of the two has right.", "配对检验只数一方答对的题。"))
    lab.own_number(f"{errors:.2f} standard errors; paired p = {told.p:.2g} on my items.", f"{errors:.2f} 个标准误；我的题目上配对 p = {told.p:.2g}。")
