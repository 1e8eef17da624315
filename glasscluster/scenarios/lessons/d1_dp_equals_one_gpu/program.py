"""D1: what to divide by when ranks hold different numbers of tokens."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import bars


def program(gpu: Any, lengths: list[int]) -> dict[str, Any]:
    """Whole-number gradients, one a token; two ways to average them over ranks."""

    mine = torch.arange(1, lengths[gpu.rank] + 1, dtype=torch.float64) * (gpu.rank + 1)
    totals = torch.tensor([float(mine.sum()), float(len(mine))], dtype=torch.float64)
    gpu.comm.all_reduce(totals, purpose="gradients")  # sum and count travel together; one division at the end
    means = torch.tensor([float(mine.mean())], dtype=torch.float64)
    gpu.comm.all_reduce(means, op="avg", purpose="gradients")
    return {"token_weighted": totals.tolist(), "mean_of_means": float(means)}


@lesson
def dp_equals_one_gpu(lab: Lab) -> None:
    """Four ranks with 2 to 16 tokens average whole-number gradients in two ways; then a GPT trains and is compared tensor by tensor."""

    lengths = [2, 4, 8, 16]
    run = lab.run("averages", lab.text("two_ways_average"), program, lengths, gpus=4)
    values = [i * (r + 1) for r, n in enumerate(lengths) for i in range(1, n + 1)]
    true = sum(values) / len(values)
    total, count = run.results[0]["token_weighted"]
    means = run.results[0]["mean_of_means"]
    lab.ask("number", 100 * (means / true - 1), "%")
    lab.row("sum_over_all_tokens", sum(values), total, "F13", unit="gradient")
    lab.row("tokens_over_all_ranks", sum(lengths), count, "F13", unit="tokens")
    trained = lab.train("dp", lab.text("gpt_data_parallel"), dp=4, global_batch=8)
    lab.row(
        "largest_gradient_difference_gpt_device",
        0,
        trained.comparison["max_rel_grad_diff"],
        "F13",
        unit="relative",
        tolerance=1e-10,
    )
    lab.figure(
        "three_averages",
        lambda lang: bars(
            [lab.word("device", lang), lab.word("token_weighted", lang), lab.word("mean_means", lang)],
            {lab.word("mean_gradient", lang): [true, total / count, means]},
            lab.word("mean_gradient", lang),
        ),
    )
    lab.tell("summing_dividing_once_gives", loss=total / count, means=means)
    lab.tell(
        "gpt_gradients_differ_device",
        view="tab=checks&run=dp",
        difference=trained.comparison["max_rel_grad_diff"],
    )
    lab.conclude(percent=100 * (means / true - 1))
    lab.explain()
    lab.own_number(percent=100 * (means / true - 1))
