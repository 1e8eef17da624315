"""G3: a draft guesses, the target judges: how many tokens a pass, at what cost, and whose distribution."""

from __future__ import annotations

from collections import Counter
from math import log, sqrt
from statistics import stdev
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.generate import Sampling, generate
from glasscluster.model.decoding.speculative import predict_speedup, predict_tokens, speculate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import batch, corpus
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.exchange.replica import one_thread
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving.generation import phases
from glasscluster.strategies.serving.speculation import SpeculationJob, chi_square, fill, joint, judge_alone, pass_seconds, speculate_rank
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.plots import lines
import torch

P, Q = (0.1, 0.2, 0.3, 0.4), (0.3, 0.2, 0.2, 0.3)  # Σ min(p, q) = 0.8, whatever came before
SHOWN = {10: "⏎", 32: "␣", 9: "⇥"}
def always(model: Any, p: tuple[float, ...]) -> dict[str, Any]:
    """Weights with which a model's next token has these probabilities after any other: the last norm gives e_0, the table log p."""
    table = torch.zeros(len(p), model.hidden)
    table[:, 0] = torch.tensor([log(share) for share in p])
    return {"head.norm_weight": torch.zeros(model.hidden), "head.norm_bias": torch.eye(model.hidden)[0], "head.table": table}


def trained(model: Any, steps: int, seed: int) -> dict[str, Any]:
    """Weights after a short training on the first 3 kB of the built-in text."""

    batches = [batch(corpus()[:3000], step, 8, 32, model.vocab, seed) for step in range(steps)]
    return train_one_device(model, batches, Optimizer(lr=5e-3, weight_decay=0.0), 1.0, seed, torch.float32).weights[-1]


@lesson(hardware='dgx-h100')
def speculative_decoding(lab: Lab, gamma: int = 4) -> None:
    """Two small GPTs, trained for a moment, speculate on text; two with a constant α show F32; a tiny pair is held against its exact distribution."""


    shape: dict[str, Any] = {"vocab": 128, "seq": 96, "position": "rope", "norm": "rmsnorm", "bias": False, "init_std": 0.05, "heads": 4}
    large, small = ModelConfig(layers=2, hidden=64, **shape), ModelConfig(layers=1, hidden=32, **shape)
    warm, prompts = Sampling(temperature=1.0, seed=lab.seed), (tuple(b"Each line is "),)
    tiny: dict[str, Any] = {"hidden": 8, "heads": 2, "vocab": 5, "seq": 16, "init_std": 0.7, "tied": False}
    target, draft = (GPTStage(ModelConfig(layers=n, **tiny), seed=lab.seed + n, dtype=torch.float64) for n in (1, 2))
    samples, prompt = 900, (2, 0, 3)
    with one_thread():
        states = trained(large, 100, lab.seed), trained(small, 60, lab.seed)
        stages = [GPTStage(m, dtype=torch.float64) for m in (large, small)]
        for stage, state in zip(stages, states, strict=True):
            fill(stage, state)
        greedy, alone = speculate(stages[0], stages[1], prompts, 40, gamma).generated[0], generate(stages[0], prompts, 40).tokens[0]
        drawn = Counter(tuple(s) for s in speculate(target, draft, [prompt] * samples, 3, 2, warm).generated)
        statistic, degrees, tail = chi_square(drawn, {c: samples * share for c, share in joint(target, prompt, 3, warm).items()})
    lab.row("greedy_tokens_target_alone_chooses_otherwise", 0, sum(a != b for a, b in zip(greedy, alone, strict=True)), "the target alone, no draft, no cache", unit="tokens")
    lab.row("samples_three_tokens_against_exact_distribution", degrees, statistic, "mean and 4 σ of χ²", unit="χ²", match="statistical", tolerance=4 * sqrt(2 * degrees), samples=samples)
    job = SpeculationJob(large, small, prompts, 60, gamma, warm, target_state=states[0], draft_state=states[1])
    text = lab.run("text", lab.text("two_gpts_bytes_trained"), speculate_rank, job, gpus=1, precision="fp32").results[0]

    fixed: dict[str, Any] = {"hidden": 16, "heads": 1, "vocab": len(P), "seq": 64, "tied": False}
    deep, flat = ModelConfig(layers=4, **fixed), ModelConfig(layers=1, **fixed)
    alpha, sizes = sum(map(min, P, Q)), (0, 1, 2, 4, 8, 16)
    counted, speed, seconds = {}, {}, {}
    for n in sizes:
        constant = SpeculationJob(deep, flat, ((1,),) * 14, 30 if n else 8, n, warm, target_state=always(deep, P), draft_state=always(flat, Q))
        run = lab.cluster(1).run(speculate_rank, constant, info={"precision": "fp32"})
        tokens = [1 + a for a in run.results[0].accepted]
        counted[n], seconds[n] = sum(tokens) / len(tokens), pass_seconds(run.timeline)
        speed[n] = counted[n] / sum(seconds[n])
        if n:
            error = stdev(tokens) / sqrt(len(tokens))
            lab.row("tokens_pass", predict_tokens(alpha, n), counted[n], "F32, 4 standard errors", unit="tokens", match="statistical", tolerance=4 * error, n=n)
    said = {n: predict_tokens(alpha, n) / sum(seconds[n]) for n in sizes}
    few = (1, 4, 16)
    lab.row("fastest", max(few, key=said.__getitem__), max(few, key=speed.__getitem__), "F32 ÷ the run's seconds a pass", unit="γ")
    lab.row("every_guess_constant_pair", alpha, run.results[0].alpha, "Σ min(p, q)", unit="fraction", tolerance=1e-6)
    cost = seconds[4][0] / 4 / seconds[0][1]

    model, h100 = make_model("llama3-8b"), hardware("dgx-h100")
    one, five = (phases(Cluster(h100, 1, "dry", memory_bytes=None).run(judge_alone, model, 128, n, info={"precision": "bf16"}).timeline, h100, "bf16")[0] for n in (1, 5))
    ridge = h100.gpu.peak("bf16") / h100.gpu.memory_bandwidth
    lab.row("llama_h100_judging_five_tokens_bound", 1, int(five.intensity < ridge), "F31", unit="yes")
    lab.row("llama_flops_judging_five_tokens_over", 5, five.flops / one.flops, "2P a token, and attention to one more each", unit="×", tolerance=0.01)

    lab.ask("number", predict_tokens(alpha, 4), "tokens")
    colours = {"yes": "#0072B2", "no": "#D55E00", "own": "#00795a", "off": "#e4e7eb"}
    rows = list(zip(text.judged[0].guessed, text.judged[0].accepted, text.judged[0].own, strict=True))[:12]

    def strips(lang: str) -> Any:
        def char(t: int) -> str:
            return SHOWN.get(t, chr(t) if t > 32 else "·")
        cells = [[*(f"{char(t)} {'✓' if i < n else '✗' if i == n else ''}" for i, t in enumerate(guessed)), f"+ {char(own)}"] for guessed, n, own in rows]
        fill = [[*(colours["yes" if i < n else "no" if i == n else "off"] for i in range(gamma)), colours["own"]] for _, n, _ in rows]
        names = (lab.word("pass", lang), lab.word("guesses_accepted_rejected_grey", lang),)))], [*(str(i + 1) for i in range(gamma)), "+"], cells, fill, names[1])])

    lab.figure("accepted_rejected_guesses_text", strips)
    lab.figure("tokens_pass_where_guess",
               lambda lang: lines({lab.word("f32", lang): (sizes, [predict_tokens(alpha, n) for n in sizes]), lab.word("counted", lang): (sizes, [counted[n] for n in sizes])}, lab.word("guesses_pass", lang), lab.word("tokens_pass", lang)))
    lab.figure(lab.text("speed_guess_more_costs", hardware=lab.hardware),
               lambda lang: lines({lab.word("f32_seconds_pass", lang): (sizes, [said[n] / said[0] for n in sizes]), lab.word("counted_seconds_pass", lang): (sizes, [speed[n] / speed[0] for n in sizes]), lab.word("no_draft", lang): ((sizes[0], sizes[-1]), (1, 1))}, lab.word("guesses_pass", lang), lab.word("fast_no_draft", lang)))
    mean, betas = predict_tokens(text.alpha, gamma), text.judged[0].overlap
    best = max(sizes, key=speed.__getitem__)
    lab.tell("every_place_passes_gave", counted_4=counted[4], predicted_4=predict_tokens(alpha, 4))
    lab.tell("pass_draft_costs_target", cost=cost, best=best, best_speedup=speed[best] / speed[0], long_speedup=speed[16] / speed[0], long_predicted=predict_speedup(alpha, 16, cost))
    lab.tell("text_mean_pass_gave", view="tab=timeline&run=text", text_alpha=text.alpha, text_tokens=text.tokens_per_pass, mean=mean, lowest=min(betas), highest=max(betas))
    lab.tell("samples_against_exact_distribution", samples=samples, statistic=statistic, degrees=degrees, tail=tail)
    lab.tell("why_pays_llama_h100", times_flops=five.flops / one.flops, times_seconds=five.roof_s / one.roof_s)
    lab.conclude(predicted_4=predict_tokens(alpha, 4), best=best, long_speedup=speed[16] / speed[0])
    lab.explain()
    lab.own_number(counted_4=counted[4], best=best)
