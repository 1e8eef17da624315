"""Train a small GPT on two Ray actors for some minutes and write trained.md and trained.png anew: `python
docs/trained.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from glasscluster.model.decoding.generate import Sampling, generate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.mixture import Mixture
from glasscluster.model.text.tasks import TASKS, make_task, practice
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs.evaluation import flagged, summary
from glasscluster.scenarios.jobs.tokenizing import learned
from glasscluster.sim.run import Cluster
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.whole import assemble
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.serving.evaluation import EvaluationJob, evaluate_rank
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.figures.picture import plotly_figure
from glasscluster.visualize.figures.plots import lines

HERE = Path(__file__).resolve().parent
PROMPTS = ("def ", "class ", "    def __init__(self", "import ")
ITEMS = 100
PAGE = """# A GPT that was trained here

Made by `python docs/trained.py`: {parameters:,} parameters (4 layers, hidden 128), a byte-level BPE \
tokenizer of {vocab} tokens
learned here, {steps} steps of {size} tokens on two data-parallel Ray actors, warm-up and cosine. Text: four \
parts of Python's
standard library, one of practice (sums, brackets, copies; the sums that are asked are left out).

![loss](trained.png)

The loss falls from {first:.2f} (ln {vocab} = 6.93) to {last:.2f} nats a token.

## Scores of the built-in tasks, {items} items each

| task | score | before | after |
|---|---|---|---|
{table}

Bits a byte are the loss of the scored tokens over the bytes of these tokens: a text's first token has
nothing before it and is not scored.

Guessing is 0.25 where there are four choices. Held-out text is of packages that the training text does not \
have; {seen} of the
next-line items share a piece of 50 characters with it all the same. The text has no refusals to learn from.

## What it writes

Drawn at temperature 0.7 after `{prompts}`:

{blocks}"""
SHOWN = {
    "arithmetic": "acc",
    "brackets": "acc",
    "next-line": "acc_norm",
    "copying": "exact_match",
    "perplexity": "bits_per_byte",
}


def scored(model: Any, folder: Path, tokenizer: Path) -> list[dict[str, Any]]:
    """Every built-in task, its items shared out over two ranks."""
    tasks = tuple(make_task(name, ITEMS) for name in TASKS)
    job = EvaluationJob(model, tasks, dp=2, weights=str(folder), tokenizer=str(tokenizer))
    result = (
        Cluster("classroom", 2, "threads", memory_bytes=None).run(evaluate_rank, job, record=False).results[0]
    )
    return [summary(task, i, result) for i, task in enumerate(tasks)]


def samples(stage: GPTStage, tokenizer: Tokenizer, tokens: int = 60) -> list[tuple[str, str]]:
    """What it writes after each prompt, drawn at temperature 0.7."""
    said = []
    for number, prompt in enumerate(PROMPTS):
        made = generate(
            stage, [tokenizer.encode(prompt)], tokens, sampling=Sampling(0.7, top_k=40, seed=number)
        )
        said.append((prompt, prompt + tokenizer.decode(made.tokens[0])))
    return said


def picture(losses: list[float]) -> None:
    """The loss curve, through a headless browser."""
    from playwright.sync_api import sync_playwright

    figure = lines(
        {"": (list(range(1, len(losses) + 1)), losses)}, "step", "loss a token (nats)"
    ).update_traces(mode="lines")
    last = sum(losses[-10:]) / 10
    answer = f"{len(losses):,} steps bring the loss from {losses[0]:.2f} to {last:.2f} nats a token"
    figure.update_layout(showlegend=False, title={"text": answer, "x": 0.02, "y": 0.97}, margin_t=48)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as play:
        page_file = Path(home) / "page.html"
        plotly_figure(figure).write_html(page_file, include_plotlyjs=True)
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 420})
        page.goto(page_file.as_uri())
        page.wait_for_timeout(1500)
        page.screenshot(path=str(HERE / "trained.png"))
        browser.close()


def row(before: dict[str, Any], after: dict[str, Any]) -> str:
    """A task's line of the table."""
    key = SHOWN.get(before["task"], "refused_fraction")
    error = f" ± {after[f'{key}_stderr']:.2f}" if f"{key}_stderr" in after else ""
    return f"| {before['task']} | {key} | {before[key]:.2f} | {after[key]:.2f}{error} |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--steps", type=int, default=1500)
    asked.add_argument("--backend", default="ray")
    steps, backend = (options := asked.parse_args()).steps, options.backend
    model = make_model("tiny", layers=4, hidden=128, heads=4, seq=96, vocab=1024, activation="gelu-tanh")
    more: dict[str, Any] = {
        "lr": 3e-3,
        "warmup": 30,
        "decay": "cosine",
        "decay_until": steps,
        "lr_floor": 0.1,
    }
    plan = make_plan(dp=2, global_batch=16, micro_batch=8, **more)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        words, rules = home / "tokenizer.json", home / "practice.txt"
        learned(["python"], model.vocab, ["<|endoftext|>"], str(words), print)
        rules.write_bytes(practice(0, 20_000))
        text = Mixture((("python", 0.8), (str(rules), 0.2)), str(words))
        hugging_face.save(GPTStage(model), home / "before")
        with Cluster("classroom", 2, backend, timeout_s=900, memory_bytes=None) as cluster:
            results = cluster.run(train_rank, Job(plan, model, steps, text, keep=True), record=False).results
        stage = assemble(plan, model, [r.weights[-1] for r in results])
        hugging_face.save(stage, home / "after")
        losses, tokenizer = [float(x) for x in results[-1].losses], Tokenizer.load(words)
        torch.set_num_threads(1)
        before, after = (scored(model, home / name, words) for name in ("before", "after"))
        seen = {
            name: len(found) for name, found in flagged([make_task("next-line", ITEMS)], ["python"]).items()
        }
        picture(losses)
        blocks = "\n".join(f"```text\n{text}\n```\n" for _, text in samples(stage, tokenizer))
        size = f"{plan.global_batch} x {model.seq}"
        text_ = PAGE.format(
            parameters=model.parameters(),
            vocab=model.vocab,
            steps=steps,
            size=size,
            first=losses[0],
            last=sum(losses[-10:]) / 10,
            items=ITEMS,
            table="\n".join(map(row, before, after)),
            seen=seen["next-line"],
            blocks=blocks,
            prompts="`, `".join(PROMPTS),
        )
        (HERE / "trained.md").write_text(text_)
    print(f"{HERE / 'trained.md'}")


if __name__ == "__main__":
    main()
