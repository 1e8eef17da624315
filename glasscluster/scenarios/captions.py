"""Images on the same blocks: a small GPT with patches learns to say what it sees, on tensor- and
pipeline-parallel ranks. `glass run captions`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glasscluster.base.text import Said
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.captions import caption, drawn
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.strategies.job import Job
from glasscluster.strategies.layout.whole import assemble
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.plots import lines


@torch.no_grad()
def describe(stage: Any, pixels: Tensor, tokens: int) -> list[bytes]:
    """Write a caption for each image of pixels [B, P·C], a list of B byte strings.

    Each next token is the likeliest one, up to the end of the line or `tokens` of them; there is no cache, so
    everything is computed again for each token.
    """
    model, written = stage.config, torch.zeros(len(pixels), 0, dtype=torch.int64)
    for n in range(tokens):
        x = stage.embedding(
            torch.nn.functional.pad(torch.cat([pixels, written], 1), (0, model.seq - model.patches - n))
        )
        for block in stage.layers.values():
            x = block(x)
        written = torch.cat(
            [written, stage.head.logits(x[:, model.patches + n - 1 : model.patches + n]).argmax(-1)], 1
        )
    return [bytes(row.tolist()).split(b"\n")[0] for row in written]


@scenario("captions")
def captions(lab: Lab, steps: int = 160, tp: int = 2, pp: int = 2, asked: int = 48) -> None:
    """An image is cut into patches, each becomes a token by one matrix, and the rest is the GPT that it was:
    prefix, tensor ranks and stages included. The first steps are held against one device; then it trains on,
    and describes images that it has not seen, before and after.
    """
    model = make_model("tiny", layers=2, hidden=48, heads=4, seq=18, patches=4, patch_size=16, prefix=4)
    layout: dict[str, Any] = {"tp": tp, "pp": pp, "global_batch": 16, "micro_batch": 8}
    lab.train(
        "first",
        ("The first steps, beside one device", "最初几步，与单卡对照"),
        model=model,
        steps=2,
        **layout,
    )
    lab.say(f"training {steps} steps on {tp * pp} ranks")
    job = Job(make_plan(**layout, lr=4e-3), model, steps, seed=lab.seed, keep=True)
    results = lab.cluster(tp * pp).run(train_rank, job, record=False).results
    if not lab.leader:
        return
    unseen = drawn(10**6, asked, model, lab.seed)
    right, pixels = (
        [caption(pattern, place)[:-1] for _, pattern, place in unseen],
        torch.tensor([p.tolist() for p, *_ in unseen]),
    )
    untrained = GPTStage(model, seed=lab.seed)
    described = {
        "before": describe(untrained, pixels, 14),
        "after": describe(assemble(job.plan, model, [r.weights[-1] for r in results]), pixels, 14),
    }
    share = {
        when: sum(a == b for a, b in zip(words, right, strict=True)) / asked
        for when, words in described.items()
    }
    name = Said("parameters, with the patches' matrix", "参数，含图块矩阵")
    held = sum(p.numel() for p in untrained.parameters())
    lab.check("parameters", model.parameters(), held, "Eq 1 and h·(C + 1)", name=name, unit="parameters")
    name = Said("captions of unseen images that are right, before", "没见过的图像中描述正确的条数，训练前")
    count = round(share["before"] * asked)
    lab.check("right_before", 0, count, "nothing is learned", name=name, unit="captions")
    name = Said("captions of unseen images that are right, after", "没见过的图像中描述正确的条数，训练后")
    loose: dict[str, Any] = {"match": "statistical", "tolerance": asked // 8}
    count = round(share["after"] * asked)
    lab.check("right_after", asked, count, "a rule", name=name, unit="captions", **loose)
    losses = [float(x) for x in results[-1].losses]

    def shown(lang: str) -> Any:
        tables = []
        for i in range(6):
            grid = pixels[i].view(2, 2, 4, 4).permute(0, 2, 1, 3).reshape(8, 8).tolist()
            fill = [[f"#{v:02x}{v:02x}{v:02x}" for v in row] for row in grid]
            text = described["after"][i].decode(errors="replace")
            tables.append(Table(text, [""] * 8, [""] * 8, [[""] * 8] * 8, fill))
        return cells_figure(tables, 3)

    axes = {
        "en": ("step", "loss a caption token (nats)", "loss"),
        "zh": ("步", "每个描述 token 的损失 (nat)", "损失"),
    }
    lab.figure(
        (
            "Unseen images, and what the model says of them; patches are numbered 0 to 3 row by row",
            "没见过的图像与模型的描述；图块逐行编号 0 到 3",
        ),
        shown,
    )
    lab.figure(
        ("Training on captions", "用图像描述训练"),
        lambda lang: lines(
            {axes[lang][2]: (list(range(1, steps + 1)), losses)}, *axes[lang][:2]
        ).update_traces(mode="lines"),
    )
    lab.tell(
        (
            f"Before training {share['before']:.0%} of {asked} captions are right, after {steps} steps "
            f"{share['after']:.0%}.",
            f"训练前 {asked} 条描述有 {share['before']:.0%} 正确，{steps} 步之后 {share['after']:.0%}。",
        )
    )
    lab.tell(
        (
            "Only the embedding knows of images: blocks, tensor ranks, stages and checks are those of text.",
            "只有嵌入层知道图像：模块、张量并行、流水线和检查都与文本相同。",
        ),
        view="tab=timeline&run=first",
    )
