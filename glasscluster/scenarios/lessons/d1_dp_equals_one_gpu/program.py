"""D1: what to divide by when ranks hold different numbers of tokens."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.visualize.figures.plots import bars


def program(gpu: Any, lengths: list[int]) -> dict[str, Any]:
    """Average whole-number gradients, one a token, over ranks in two ways."""

    mine = torch.arange(1, lengths[gpu.rank] + 1, dtype=torch.float64) * (gpu.rank + 1)
    totals = torch.tensor([float(mine.sum()), float(len(mine))], dtype=torch.float64)
    gpu.comm.all_reduce(totals, purpose="gradients")  # sum and count travel together; one division at the end
    means = torch.tensor([float(mine.mean())], dtype=torch.float64)
    gpu.comm.all_reduce(means, op="avg", purpose="gradients")
    return {"token_weighted": totals.tolist(), "mean_of_means": float(means)}


@lesson
def dp_equals_one_gpu(lab: Lab, longest: int = 16) -> None:
    """Four ranks with 2 to 16 tokens average whole-number gradients in two ways; then a GPT trains and is
    compared tensor by tensor.
    """
    lengths = sorted(max(longest // share, 1) for share in (1, 2, 4, 8))
    run = lab.run("averages", lab.text("two_ways"), program, lengths, gpus=len(lengths))
    of_ranks = [[i * (rank + 1) for i in range(1, n + 1)] for rank, n in enumerate(lengths)]
    gradients = [g for of_rank in of_ranks for g in of_rank]
    true, mean_of = sum(gradients) / len(gradients), [sum(x) / len(x) for x in of_ranks]
    total, count = run.results[0]["token_weighted"]
    means = run.results[0]["mean_of_means"]
    percent = 100 * (means / true - 1)
    lab.ask("percent", percent, "%", tokens=listed(lengths), means=listed(f"{x:g}" for x in mean_of))
    lab.row("sum_over_all_tokens", sum(gradients), total, "Eq 13", unit="gradient")
    lab.row("tokens_over_all_ranks", sum(lengths), count, "Eq 13", unit="tokens")
    lab.row("mean_of_means", sum(mean_of) / len(mean_of), means, "Eq 13: equal counts only", unit="gradient")
    trained = lab.train("dp", lab.text("gpt"), dp=4, global_batch=8)
    difference = trained.comparison["max_rel_grad_diff"]
    lab.row("gpt_and_one_device", 0, difference, "Eq 13", unit="relative", tolerance=1e-10)

    def three_averages(lang: str) -> Any:
        ways = [lab.word(way, lang) for way in ("one_device", "token_weighted", "mean_of_means")]
        mean = lab.word("mean_gradient", lang)
        return bars(ways, {mean: [true, total / count, means]}, mean)

    lab.figure("three_averages", three_averages)
    lab.tell("two_averages", loss=total / count, means=means)
    weights = [len(gradients) / (len(lengths) * n) for n in lengths]
    lab.tell("weights", short=weights[0], long=weights[-1])
    lab.tell("gpt", view="tab=checks&run=dp", difference=difference)
    lab.conclude(percent=percent)
    lab.explain(fewest=lengths[0], most=lengths[-1])
    lab.own_number(percent=percent)
