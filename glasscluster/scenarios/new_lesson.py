"""`glass lessons --new NAME`: the skeleton of a lesson, a folder with a program and its texts, that runs as
it stands.

It holds every part that a lesson must have, each with a placeholder to write over, and passes what every
lesson is tested for. Standing in `scenarios/lessons/` it is one of the lessons; anywhere else `glass run
FOLDER` runs it.
"""

from __future__ import annotations

from pathlib import Path

from glasscluster.base.errors import InputError
from glasscluster.scenarios.lesson import NAME

PROGRAM = '''"""ID: one line that says what the lesson is about."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson


def program(gpu: Any, elements: int) -> float:
    """What every rank does; what it returns comes back in `run.results`, by rank."""
    x = torch.full((elements,), float(gpu.rank))
    gpu.comm.all_reduce(x, algorithm="ring")
    return float(x[0])


@lesson
def NAME(lab: Lab, gpus: int = 4, elements: int = 1200) -> None:
    """What runs, in a sentence or two: the story begins with it, and `glass run ID --help` shows it."""
    elements -= elements % gpus
    run = lab.run("sum", lab.text("sum"), program, elements, gpus=gpus)
    size, sent = 4 * elements, run.graph.bytes_sent()
    lab.ask("bytes_sent", sent[0] / size, "S", gpus=gpus)
    lab.row("sent_by_rank_0", 2 * (gpus - 1) * size // gpus, sent[0], "Patarasuk-Yuan 2009 (Eq 9)")
    lab.tell("sent", view="tab=timeline", sent=sent[0], size=size)
    lab.conclude(ratio=sent[0] / size)
    lab.explain()
    lab.own_number(ratio=sent[0] / size, gpus=gpus)
'''

TEXT = """\
# All that people read. Blanks such as {gpus} are filled by the program, with a format \
where it helps: {sent:,}
id = "ID"

[title]
en = "A new lesson"
zh = "新的一课"

[topic]
en = "communication"
zh = "通信"

[question]
en = "How much does a GPU send to sum a buffer?"
zh = "对一个缓冲区求和，一块 GPU 要发送多少？"

[kills]
en = "“The misconception, as people say it.” What is true instead."
zh = "“人们常说的误解。”事实是什么。"

[formula]
id = "Eq 9"
text = "2(N−1)/N·S sent per rank"
match = "X"
source = "Patarasuk-Yuan 2009"

[card.question]
en = "The question, as an interviewer asks it."
zh = "面试官会怎样问。"

[card.short]
en = "The answer in thirty seconds."
zh = "三十秒的回答。"

[card.long]
en = '''
The answer in two minutes. A long text is wrapped like this one; a line break is read as a space, and between
Chinese characters as nothing.'''
zh = "两分钟的回答。"

[[card.follow_ups]]
en = "What is asked next?"
zh = "接着会问什么？"

[[card.follow_ups]]
en = "And after that?"
zh = "再接着呢？"

[ask.bytes_sent]
en = "A buffer of S bytes on {gpus} GPUs: how many S does each GPU send?"
zh = "{gpus} 块 GPU，缓冲区 S 字节：每块发送几个 S？"

[tell.sent]
en = "Rank 0 sent {sent:,} bytes for a buffer of {size:,}."
zh = "缓冲区 {size:,} 字节，rank 0 发送了 {sent:,} 字节。"

[conclude]
en = "Each GPU sends {ratio:.3g} S."
zh = "每块 GPU 发送 {ratio:.3g} S。"

[explain]
en = "Why it came out so, in a sentence or two."
zh = "用一两句话解释结果为何如此。"

[[explain.points]]
en = "What a good explanation says."
zh = "好的解释会提到的一点。"

[[explain.points]]
en = "And what else it says."
zh = "还会提到的另一点。"

[own_number]
en = "{ratio:.3g} S at N = {gpus}."
zh = "N = {gpus} 时 {ratio:.3g} S。"

[text.sum]
en = "A sum over all ranks"
zh = "对所有 rank 求和"

[rows.sent_by_rank_0]
en = "sent by rank 0"
zh = "rank 0 发送量"
"""


def new_lesson(name: str, home: Path) -> Path:
    """Write the skeleton.

    Args:
        name: the folder's name: a letter and a number, then the subject, such as `c8_my_subject`.
        home: the folder to write it in.

    Returns:
        The lesson's folder.

    Raises:
        InputError: the name is not of that form, or there is such a folder already.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            "new", name, "must be a letter, a number and the subject in small letters, as c8_my_subject"
        )
    folder = home / name
    if folder.exists():
        raise InputError("new", name, f"there is such a folder already: {folder}")
    folder.mkdir(parents=True)
    id_, subject = name.split("_", 1)
    program = PROGRAM.replace("ID", id_.upper()).replace(
        "NAME", subject if subject.isidentifier() else f"lesson_{subject}"
    )
    (folder / "__init__.py").touch()
    (folder / "program.py").write_text(program, encoding="utf-8")
    (folder / "text.toml").write_text(TEXT.replace("ID", id_.upper()), encoding="utf-8")
    return folder
