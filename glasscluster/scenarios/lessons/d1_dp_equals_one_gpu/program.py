"""D1: what to divide by when ranks hold different numbers of tokens."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import bars


def program(gpu: Any, lengths: list[int]) -> dict[str, Any]:
    """Average whole-number gradients, one a token, over ranks in two ways."""

    mine = torch.arange(1, lengths[gpu.rank] + 1, dtype=torch.float64) * (gpu.rank + 1)
    totals = torch.tensor([float(mine.sum()), float(len(mine))], dtype=torch.float64)
    gpu.comm.all_reduce(totals, purpose="gradients")  # sum and count travel together; one division at the end
    means = torch.tensor([float(mine.mean())], dtype=torch.float64)
    gpu.comm.all_reduce(means, op="avg", purpose="gradients")
    return {"token_weighted": totals.tolist(), "mean_of_means": float(means)}


LENGTHS = (2, 4, 8, 16)  # tokens of each rank


@lesson
def dp_equals_one_gpu(lab: Lab) -> None:
    """Four ranks with 2 to 16 tokens average whole-number gradients in two ways; then a GPT trains and is
    compared tensor by tensor.
    """
    run = lab.run("averages", lab.text("two_ways"), program, list(LENGTHS), gpus=len(LENGTHS))
    gradients = [i * (rank + 1) for rank, n in enumerate(LENGTHS) for i in range(1, n + 1)]
    true = sum(gradients) / len(gradients)
    total, count = run.results[0]["token_weighted"]
    means = run.results[0]["mean_of_means"]
    percent = 100 * (means / true - 1)
    lab.ask("percent", percent, "%")
    lab.row("sum_over_all_tokens", sum(gradients), total, "Eq 13", unit="gradient")
    lab.row("tokens_over_all_ranks", sum(LENGTHS), count, "Eq 13", unit="tokens")
    trained = lab.train("dp", lab.text("gpt"), dp=4, global_batch=8)
    difference = trained.comparison["max_rel_grad_diff"]
    lab.row("gpt_and_one_device", 0, difference, "Eq 13", unit="relative", tolerance=1e-10)

    def three_averages(lang: str) -> Any:
        ways = [lab.word(way, lang) for way in ("one_device", "token_weighted", "mean_of_means")]
        mean = lab.word("mean_gradient", lang)
        return bars(ways, {mean: [true, total / count, means]}, mean)

    lab.figure("three_averages", three_averages)
    lab.tell("two_averages", loss=total / count, means=means)
    lab.tell("gpt", view="tab=checks&run=dp", difference=difference)
    lab.conclude(percent=percent)
    lab.explain()
    lab.own_number(percent=percent)
