"""F1: a loss curve that went wrong, and the few probes that say why."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

FIRST = 5  # the case of seed 0
LOWER = 10  # times lower: what is tried first when a loss blows up


# fmt: off
@lesson(
    "F1",
    title=("The loss emergency room", "损失爆炸急诊"),
    topic=("training", "训练"),
    question=("Here is a loss curve that went wrong. What broke?", "这条损失曲线出了问题。是什么坏了？"),
    formula=Formula("Eq 37, Eq 38", "first loss ln V; global norm √Σ_shards ‖g‖², replicated parameters counted once; z-loss 1e-4·log² Z", "X", "definition; Megatron-LM clip_grads.py; PaLM 2204.02311, section 5"),
    kills=("“A spike means: lower the learning rate.” That cures one cause in eleven; for the others it slows training and hides the bug.",
           "“出现尖峰就降学习率。”十一个原因里它只治一个；对其余的原因，它只是让训练变慢，并把错误藏起来。"),
    card=Card(
        ("The loss blew up: what are the first five things you check?", "损失爆炸了：你最先查哪五样？"),
        ("Skipped steps and the loss scale; are replicas equal in every bit; is the clipping norm the true one; loss by rank and the batch itself; then first loss against ln V, update-to-weight ratio, attention logits. Exact signs first.",
         "跳过的步与损失缩放；副本是否逐比特相等；裁剪用的范数是否为真；各 rank 的损失与那一批数据；然后是首个损失与 ln V、更新与权重之比、注意力 logit。先查能精确判断的。"),
        ("A loss curve has one number a step, and many causes give the same curve. Some signs are exact: replicas that differ in one bit have missed a reduction; a norm that is not √Σ‖g‖² with replicated parameters once clips wrongly, "
         "which Adam hides and SGD does not; a sequence whose hash was seen before is repeated data; every step skipped means a loss scale that never falls. Then data: one rank's loss far from the others' is a bad shard, all ranks' at one step a bad batch: skip it and return to a snapshot. "
         "Then the start: a first loss above ln V is the initial weights. What is left is size: updates against weights, attention logits (QK-norm), log Z (z-loss). Only a rate that is too high is cured by lowering it.",
         "损失曲线每步只有一个数，许多原因会给出同样的曲线。有些迹象是精确的：副本有一个比特不同，就是漏了一次归约；裁剪用的范数不等于 √Σ‖g‖²（重复的参数只算一次），裁剪就错了，Adam 会掩盖它，SGD 不会；"
         "序列的哈希以前见过，就是数据重复；每一步都被跳过，就是损失缩放从不下降。然后看数据：一个 rank 的损失远离其他 rank，是坏分片；某一步所有 rank 一起跳升，是坏批：跳过它并退回快照。"
         "再看开头：首个损失高于 ln V，是初始权重的问题。剩下的是大小：更新与权重之比、注意力 logit（QK-norm）、log Z（z-loss）。只有学习率过高才靠降学习率来治。"),
        (("Why does Adam hide a gradient norm that is counted twice?", "为什么 Adam 会掩盖被重复计算的梯度范数？"), ("Why must all ranks skip a step together?", "为什么所有 rank 必须一起跳过一步？")),
    ),
)
def loss_blow_up(lab: Lab, fault: str = "drawn") -> None:
    """A small GPT is trained as it should be, broken in one way, with its cure, and with what most people try first: a lower rate. Probes on every rank look on. `--fault` chooses what breaks; else the seed does."""
    import math
    from dataclasses import replace

    from glasscluster.base.errors import InputError
    from glasscluster.scenarios.emergency_room.diagnosis import RULES
    from glasscluster.scenarios.emergency_room.emergency_room import (
        BACK,
        BY_NAME,
        CASES,
        FEW_STEPS,
        STEPS,
        Treated,
        examine,
        job_of,
    )
    from glasscluster.visualize.figures.plots import dots, lines

    if fault != "drawn" and fault not in BY_NAME:
        raise InputError("fault", fault, "is not one of the causes", ["drawn", *BY_NAME])
    case = BY_NAME[fault] if fault != "drawn" else CASES[(lab.seed + FIRST) % len(CASES)]
    steps = STEPS if case.name == "bad-batch" else FEW_STEPS
    job = job_of(case, "broken", lab.seed, steps)
    broken = examine(case, "broken", lab, steps, title=("The patient: something is broken", "病人：有什么坏了"))
    charts = {"broken": broken} | {state: examine(case, state, lab, steps) for state in ("healthy", "cured")}
    slower = examine(replace(case, broken=case.broken | {"lr": job.plan.lr / LOWER}), "broken", lab, steps)
    twice = examine(BY_NAME["norm-counted-twice"], "broken", lab, 2)
    if not lab.leader:
        return
    treated, well = Treated(case, charts), charts["healthy"]
    number, tp = {rule.cause: i + 1 for i, rule in enumerate(RULES)}, 2
    lab.check("first loss of a sound model, against ln V", math.log(job.model.vocab), well.losses[0], "Eq 37, ± 0.1", unit="nats", match="statistical", tolerance=0.1)
    lab.check("largest distance of the clipping norm from the true norm, sound run", 0.0, max(abs(v.norm_ratio - 1) for v in well.vitals), "Eq 38: √Σ‖g‖² over shards, replicated parameters once", unit="relative", tolerance=1e-5)
    lab.check("clipping norm over true norm where tensor ranks are summed twice", math.sqrt(tp), twice.signs.norm_ratio, "Eq 38: every square counts t times", unit="×", tolerance=1e-5)
    lab.check("number of the rule that names the cause", number[case.name], number.get(treated.found, 0), "diagnosis.py: probes alone", unit="rule")
    lab.check("rules that hold in the sound run", 0, sum(rule.holds(well.signs) for rule in RULES), "diagnosis.py", unit="rules")
    lab.check("share of the damage that the cure takes back", 1.0, min(treated.back, 1.0), f"three runs of one seed, at least {BACK:.0%}", unit="", match="statistical", tolerance=1 - BACK)
    lab.ask(f"A sound model has a vocabulary of {job.model.vocab} bytes. What is its loss before the first step? (nats a token)", f"正常的模型，词表为 {job.model.vocab} 个字节。第一步之前的损失是多少？（nat / token）", well.losses[0], "nats")
    rule = next(r for r in RULES if r.cause == case.name)
    ill, cure = treated.case.title, treated.case.cure
    names = {"en": ("as it should be", "broken", "cured", f"broken, rate ÷ {LOWER}", "step", "loss (nats a token)", "gradient norm", "sign over its limit", "rank"),
             "zh": ("正常", "损坏", "治愈", f"损坏，学习率 ÷ {LOWER}", "步", "损失（nat / token）", "梯度范数", "迹象与其阈值之比", "rank")}
    runs = (well, broken, charts["cured"], slower)

    def curves(lang: str) -> Any:
        return lines({n: (range(steps), c.losses) for n, c in zip(names[lang], runs, strict=False)}, names[lang][4], names[lang][5], log_y=True)

    def rules(lang: str) -> Any:
        sign = [[abs(r.reading(c.signs)) / r.limit for r in RULES] for c in runs[:2]]
        return dots([r.text[lang == "zh"] for r in RULES], dict(zip(names[lang], sign, strict=False)), names[lang][7], least=1e-4, limit=1.0)

    def by_rank(lang: str) -> Any:
        each = zip(*(v.rank_losses for v in broken.vitals), strict=True)
        return lines({f"{names[lang][8]} {i}": (range(steps), losses) for i, losses in enumerate(each)}, names[lang][4], names[lang][5])

    def norms(lang: str) -> Any:
        sound = [[max(v.gradient_norm, 1e-9) if math.isfinite(v.gradient_norm) else 1e-9 for v in c.vitals] for c in runs[:2]]
        return lines({n: (range(steps), x) for n, x in zip(names[lang], sound, strict=False)}, names[lang][4], names[lang][6], log_y=True)

    same = charts["cured"].losses == well.losses
    lab.figure(("The curve: what broke?" + same * " (The cured run lies on the sound one.)", "曲线：是什么坏了？" + same * "（治愈后的曲线与正常的重合。）"), curves)
    lab.figure(("Every sign over its limit: the first beyond the line, from the top, names the cause", "各迹象与阈值之比：自上而下第一个越线的说出原因"), rules)
    lab.figure(("The patient's loss, rank by rank", "病人各 rank 的损失"), by_rank)
    lab.figure(("Gradient norm before clipping", "裁剪前的梯度范数"), norms)
    lab.tell(f"Held out, the broken run ends at {broken.loss:.3f} where a sound one ends at {well.loss:.3f}.", f"在留出集上，损坏的运行止于 {broken.loss:.3f}，正常的止于 {well.loss:.3f}。", "tab=story")
    lab.tell(f"Rule {number[case.name]} of {len(RULES)} is the first that holds: {rule.text[0]}. The cause: {ill[0]}.", f"{len(RULES)} 条规则中，第 {number[case.name]} 条最先成立：{rule.text[1]}。原因：{ill[1]}。", "tab=story")
    lab.tell(f"The cure ({cure[0]}) ends at {charts['cured'].loss:.3f}: it takes back {treated.back:.0%} of the damage. Lowering the rate {LOWER} times instead ends at {slower.loss:.3f}.",
             f"对症的办法（{cure[1]}）止于 {charts['cured'].loss:.3f}：挽回损失的 {treated.back:.0%}。若改为把学习率降到 1/{LOWER}，则止于 {slower.loss:.3f}。", "tab=story")
    lab.tell(f"Where tensor ranks' norms are summed twice, the norm that clips is {twice.signs.norm_ratio:.3f} times the true one: √{tp}.", f"张量并行的范数求和两次时，裁剪用的范数是真范数的 {twice.signs.norm_ratio:.3f} 倍：√{tp}。", "tab=ledger")
    lab.conclude(f"The curve did not say it, a probe did: {ill[0]}.", f"曲线没有说出来，探针说出来了：{ill[1]}。")
    lab.explain("A loss is one number a step, and many causes bend it alike. Probes see where they differ: bits, counts, data, the start, sizes.",
                "损失每步只有一个数，许多原因使它弯成一样。探针看得到它们的不同之处：比特、计数、数据、开头、大小。",
                ("Exact signs come first: skipped steps, equal bits, the true norm, data that comes again.", "精确的迹象优先：跳过的步、比特是否相等、真范数、重复的数据。"),
                ("A lower rate is the cure for one cause; it is no test of which cause it was.", "降学习率只是一种原因的治法；它不能用来判断是哪种原因。"))
    lab.own_number(f"{ill[0]}: held-out loss {broken.loss:.2f}, cured {charts['cured'].loss:.2f}.", f"{ill[1]}：留出集损失 {broken.loss:.2f}，治愈后 {charts['cured'].loss:.2f}。")
