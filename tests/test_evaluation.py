"""Scores do not depend on how items are shared out, and are what likelihoods, rules and statistics say."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from glasscluster.base.errors import InputError
from glasscluster.commands.app import app
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.tasks import (
    ANSWER,
    HELD_OUT,
    PAIRS,
    REFUSE,
    TASKS,
    Choice,
    Prompt,
    Task,
    Text,
    contaminated,
    held_out,
    learned_sum,
    make_task,
    plain,
    practice,
)
from glasscluster.model.text.texts import documents
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.model.weights import hugging_face
from glasscluster.scenarios.jobs import evaluation as scenario
from glasscluster.sim.run import Cluster
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving import evaluation, scores
from glasscluster.strategies.serving.evaluation import EvaluationJob, evaluate_rank, predict_traffic

MODEL = make_model("tiny", layers=2, hidden=32, heads=4)
FEW = tuple(make_task(name, 5) for name in ("arithmetic", "next-line", "copying", "perplexity"))
JOB = EvaluationJob(MODEL, FEW, precision="fp64", batch=4)


def run(job: EvaluationJob, record: bool = False):
    return Cluster("classroom", job.dp * job.tp, "threads", memory_bytes=None).run(
        evaluate_rank, job, record=record
    )


@pytest.fixture(scope="module")
def alone():
    return run(JOB).results[0]


# ---- sharing out -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dp", "tp", "batch"), [(3, 1, 4), (2, 2, 16), (1, 4, 1), (7, 1, 2)])
def test_every_score_of_every_rank_is_that_of_one_device_and_the_scores_bytes_are_counted(
    dp, tp, batch, alone
):
    job = replace(JOB, dp=dp, tp=tp, batch=batch)
    done = run(job, record=True)
    rows = scenario.equality_rows(done.results, alone) + scenario.counted_rows(job, done)
    assert {r.verdict for r in rows} == {"held"}, rows
    assert (predict_traffic(job) > 0) == (dp > 1)
    assert sum(len(r.answers) for r in done.results) == tp * sum(
        isinstance(i, Prompt) for t in FEW for i in t.items
    )


def test_an_item_left_out_or_scored_twice_fails_its_rows(monkeypatch, alone):
    honest = evaluation.loglikelihoods
    with monkeypatch.context() as patch:
        patch.setattr(
            evaluation, "loglikelihoods", lambda stage, rows: honest(stage, [(r, n - 1) for r, n in rows])
        )
        (row,) = scenario.equality_rows(run(replace(JOB, dp=2)).results, alone)
        assert row.verdict == "failed"
    job = replace(JOB, dp=2)
    done = run(job, record=True)
    for result in done.results:
        result.scored[0][1] = 2
    assert [r.verdict for r in scenario.counted_rows(job, done)] == ["failed", "held"]
    done = run(replace(job, tasks=FEW[:3]), record=True)
    assert [r.verdict for r in scenario.counted_rows(job, done)] == ["held", "failed"]


def test_a_drawn_answer_depends_on_seed_and_item_alone():
    job = replace(JOB, tasks=FEW[2:3], samples=3, sampling=replace(JOB.sampling, temperature=1.0))
    answers = [
        {k: v for r in run(replace(job, dp=dp)).results for k, v in r.answers.items()} for dp in (1, 4)
    ]
    assert answers[0] == answers[1]
    assert len(set(itertools.chain(*answers[0].values()))) > 5


# ---- likelihood --------------------------------------------------------------------------------------------
def test_a_score_is_the_sum_of_log_probabilities_of_the_continuation_and_nothing_else(alone):
    stage = GPTStage(MODEL, dtype=torch.float64)
    item, found = FEW[0].items[2], alone.scores[0][2]
    for choice, value in zip(item.choices, found, strict=True):
        text = list(item.context + choice)
        x = stage.embedding(torch.tensor([text[:-1]]))
        for block in stage.layers.values():
            x = block(x)
        logp = stage.head.logits(x)[0].log_softmax(-1).detach()
        right = sum(float(logp[i - 1, text[i]]) for i in range(len(item.context), len(text)))
        assert value == pytest.approx(right, rel=1e-12)


def test_a_long_context_loses_its_beginning_and_a_text_s_first_token_is_given():
    item = Choice(b"x" * 100, (b"yes", b"no"), 0)
    row, scored = evaluation.row_of(item, 0, None, 16)
    assert (bytes(row), scored) == (b"x" * 14 + b"yes", 3)
    assert evaluation.row_of(Text(b"abcd"), 0, None, 16) == ([97, 98, 99, 100], 3)


# ---- statistics --------------------------------------------------------------------------------------------
def test_the_error_of_an_accuracy_is_f41_and_that_of_many_samples():
    draw = np.random.default_rng(0)
    for n, k in ((5, 2), (100, 37), (1000, 712)):
        right = [1.0] * k + [0.0] * (n - k)
        assert scores.spread(right) == pytest.approx(scores.predict_error(k / n, n), rel=1e-12)
    means = draw.binomial(1000, 0.712, 20_000) / 1000
    assert scores.predict_error(0.712, 1000) == pytest.approx(means.std(), rel=0.03)


def test_a_paired_test_is_the_coin_s_and_sees_what_two_accuracies_hide():
    first = [1.0] * 700 + [0.0] * 300
    second = [1.0] * 692 + [0.0] * 8 + [1.0] * 24 + [0.0] * 276  # eight lost, twenty-four won
    told = scores.paired(first, second)
    assert (told.better, told.worse, told.difference) == (24, 8, pytest.approx(0.016))
    by_hand = sum(math.comb(32, k) for k in range(33) if abs(k - 16) >= 8) / 2**32
    assert told.p == pytest.approx(by_hand, rel=1e-12)
    assert told.error < 0.3 * scores.predict_unpaired(0.7, 0.716, 1000)
    assert scores.paired(first, first).p == 1.0


def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples():
    for n, c, k in ((5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 2)):
        tries = [any(i < c for i in picked) for picked in itertools.combinations(range(n), k)]
        assert scores.pass_at_k(n, c, k) == pytest.approx(sum(tries) / len(tries), rel=1e-12)
    with pytest.raises(ValueError, match="k = 6"):
        scores.pass_at_k(5, 1, 6)


def test_the_likeliest_continuation_and_the_likeliest_a_byte_may_differ():
    assert scores.chosen([-4.0, -6.0]) == 0
    assert scores.chosen([-4.0, -6.0], [2, 6]) == 1


def test_bits_a_byte_do_not_depend_on_the_tokens():
    assert scores.bits_per_byte(-8 * math.log(2), 4) == pytest.approx(2.0)
    assert scores.perplexity(-6.0, 3) == pytest.approx(math.e**2)


# ---- what is divided by ------------------------------------------------------------------------------------
def zero_model(folder, **shape) -> ModelConfig:
    """A model whose every token has probability 1/V, saved as weights."""
    model = make_model("tiny", **{"layers": 1, "hidden": 8, "heads": 2, "activation": "gelu-tanh", **shape})
    stage = GPTStage(model)
    for parameter in stage.parameters():
        torch.nn.init.zeros_(parameter)
    hugging_face.save(stage, folder)
    return model


@pytest.mark.parametrize("seq", [26, 32, 64, 96])
def test_a_model_that_knows_nothing_needs_eight_bits_a_byte_however_long_its_sequence(tmp_path, seq):
    model = zero_model(tmp_path, seq=seq)
    job = EvaluationJob(model, (make_task("perplexity", 10),), precision="fp64", weights=str(tmp_path))
    (task,), result = job.tasks, run(job).results[0]
    found = scenario.summary(task, 0, result)
    assert found["tokens"] == 10 * min(63, seq)
    assert found["bits_per_byte"] == pytest.approx(8, rel=1e-12)
    assert found["perplexity"] == pytest.approx(256, rel=1e-12)


@pytest.mark.parametrize("seq", [16, 64])
def test_with_a_tokenizer_the_bits_are_those_of_the_scored_tokens_over_their_bytes(tmp_path, seq):
    tokenizer = Tokenizer.train([text[:3000] for text in held_out()], 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    model = zero_model(tmp_path / "weights", seq=seq, vocab=300)
    task = make_task("perplexity", 10)
    files = {"weights": str(tmp_path / "weights"), "tokenizer": str(tmp_path / "tokenizer.json")}
    job = EvaluationJob(model, (task,), precision="fp64", **files)
    found = scenario.summary(task, 0, run(job).results[0])
    texts = [tokenizer.encode(item.text) for item in task.items]
    scored = [numbers[max(1, len(numbers) - seq) :] for numbers in texts]
    tokens, nbytes = sum(map(len, scored)), sum(len(tokenizer.decode_bytes(t)) for t in scored)
    assert found["tokens"] == tokens
    assert found["bits_per_byte"] == pytest.approx(math.log2(300) * tokens / nbytes, rel=1e-12)
    assert found["perplexity"] == pytest.approx(300, rel=1e-12)


def test_the_likeliest_a_byte_is_of_all_bytes_of_a_continuation_or_refused(tmp_path):
    """An all-zero model: every continuation has the same likelihood a byte, and the shortest is the
    likeliest.
    """
    task = Task("two", (Choice(b"x" * 30, (b"abcdefgh", b"abc"), 0), Choice(b"x", (b"abc", b"abcdefgh"), 0)))
    model = zero_model(tmp_path, seq=8)
    result = run(EvaluationJob(model, (task,), weights=str(tmp_path))).results[0]
    assert result.scores[0][0] == pytest.approx([-8 * math.log(256), -3 * math.log(256)], rel=1e-6)
    assert scenario.right(task, result.scores[0]) == [0, 1]
    assert scenario.right(task, result.scores[0], a_byte=True) == [1, 1]
    with pytest.raises(InputError) as said:
        evaluation.check_items(EvaluationJob(make_model("tiny", seq=7), (task,)))
    assert (said.value.field, said.value.nearest) == ("seq", 8)


# ---- what cannot be scored ---------------------------------------------------------------------------------
EMPTY = {
    "empty context": Choice(b"", (b"a", b"b"), 0),
    "empty continuation": Choice(b"a", (b"", b"b"), 0),
    "empty prompt": Prompt(b"", b"a"),
    "no text has a second token": Text(b"a"),
}


@pytest.mark.parametrize("rule", EMPTY)
def test_an_item_with_nothing_to_score_is_refused_by_its_task_and_number(rule):
    job = EvaluationJob(MODEL, (*FEW, Task("mine", (EMPTY[rule],), 2)))
    with pytest.raises(InputError, match=rule) as said:
        scenario.evaluate(Cluster("classroom", 1, "threads", memory_bytes=None), job)
    assert (said.value.field, said.value.value) == ("task", "mine")


def test_a_text_of_one_token_among_others_adds_neither_loss_nor_bytes():
    task = make_task("perplexity", 3)
    more = replace(task, items=(Text(b"a"), *task.items, Text(b"")))
    found, expected = (
        scenario.summary(t, 0, run(EvaluationJob(MODEL, (t,), dp=2, precision="fp64")).results[0])
        for t in (more, task)
    )
    assert found | {"items": 3} == pytest.approx(expected | {"items": 3}, rel=1e-12)


def test_a_row_without_a_token_before_those_scored_is_an_error():
    for row in ([5], [5, 6]):
        with pytest.raises(ValueError, match="at least one before it"):
            evaluation.loglikelihoods(GPTStage(MODEL), [(row, len(row))])


@pytest.mark.parametrize("command", [["evaluate", "--task", "copying"], ["train", "--data", "english"]])
def test_a_tokenizer_larger_than_the_vocabulary_is_refused_alike_by_every_command(tmp_path, command):
    Tokenizer.train([b"abcabcabd" * 20], 260, ["<|endoftext|>"]).save(tmp_path / "t.json")
    words = [*command, "--tokenizer", str(tmp_path / "t.json"), "--vocab", "256", "--seq", "32"]
    failed = CliRunner().invoke(app, words)
    assert isinstance(failed.exception, InputError), failed.output
    assert (failed.exception.field, failed.exception.nearest) == ("vocab", 260)
    nothing = CliRunner().invoke(app, [*command, "--tokenizer", str(tmp_path / "none.json")])
    assert isinstance(nothing.exception, InputError), nothing.output
    assert nothing.exception.field == "tokenizer"


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_an_answer_of_tokens_that_no_text_has_is_wrong_and_no_crash(tmp_path, with_tokenizer):
    """A vocabulary is often padded: the model can say numbers that the tokenizer does not know."""
    tokenizer = Tokenizer.train([b"abcabcabd" * 20], 258)
    tokenizer.save(tmp_path / "t.json")
    path = str(tmp_path / "t.json") if with_tokenizer else None
    model = make_model("tiny", layers=1, hidden=8, heads=2, seq=16, vocab=4000)
    job = EvaluationJob(model, (make_task("copying", 4),), tokenizer=path)
    result = run(job).results[0]
    assert any("\ufffd".encode() in text for texts in result.answers.values() for text in texts)
    (letter,) = tokenizer.encode(b"a") if with_tokenizer else b"a"
    assert evaluation.text_of([letter, 3999], tokenizer if with_tokenizer else None) == b"a\xef\xbf\xbd"


# ---- tasks -------------------------------------------------------------------------------------------------
def test_items_follow_from_task_and_seed_and_their_answers_are_right():
    for name in TASKS:
        assert make_task(name, 6, 1) == make_task(name, 6, 1)
        assert make_task(name, 6, 1) != make_task(name, 6, 2) or name == "refusals"
    for item in make_task("arithmetic", 40).items:
        a, b = (int(x) for x in item.context[:-1].split(b"+"))
        assert int(item.choices[item.answer]) == a + b
        assert not learned_sum(a, b)
        assert len(set(item.choices)) == 4
    for item in make_task("brackets", 40).items:
        text = (item.context + item.choices[item.answer]).decode().strip()
        while any(pair in text for pair in ("()", "[]", "{}")):
            text = text.replace("()", "").replace("[]", "").replace("{}", "")
        assert text == ""
    for item in make_task("next-line", 20).items:
        assert any(item.context + item.choices[item.answer] in text for text in held_out())
    taught = practice(0, 500)
    assert not any(
        item.context + item.choices[item.answer] in b"\n" + taught
        for item in make_task("arithmetic", 40).items
    )
    assert PAIRS.keys() == set("([{")
    assert len(HELD_OUT) > 2


def test_a_rule_tells_a_refusal_from_an_answer():
    refuse, answer = make_task("refusals", 2).items
    assert (refuse.request, answer.request) == ("refuse", "answer")
    for said, refused in (
        (b" Sorry, no.\nSure", True),
        (b" I can't help with that", True),
        (b" Sure\nI can't", False),
        (b" I cannot", True),
    ):
        assert refuse.right(said) == refused
        assert answer.right(said) != refused
    assert len(REFUSE) == len(ANSWER)


def test_items_of_the_training_text_are_flagged_and_others_are_not():
    training = documents("python")
    seen, clean = plain(b"\n".join(training)), make_task("next-line", 20)
    planted = Task("planted", tuple(Text(training[i][100:300]) for i in range(10)))
    assert all(contaminated(item, seen) for item in planted.items)
    assert sum(contaminated(item, seen) for item in clean.items) <= 3
    assert contaminated(Text(b"def   __init__ (self):"), seen)  # spaces and symbols do not hide it


# ---- the command -------------------------------------------------------------------------------------------
def test_the_command_says_scores_errors_checks_and_what_is_wrong():
    words = [
        "evaluate",
        "--layers",
        "1",
        "--hidden",
        "16",
        "--heads",
        "2",
        "--items",
        "4",
        "--dp",
        "2",
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    told = json.loads(done.stdout)
    assert done.exit_code in (0, None), done.output
    assert told["schema"] == "glass.evaluate/1"
    assert [s["task"] for s in told["scores"]] == list(TASKS)
    assert {"acc", "acc_norm", "acc_stderr"} <= set(told["scores"][0])
    assert told["scores"][-1]["bits_per_byte"] == pytest.approx(8, abs=0.4)  # it knows nothing yet
    assert {"refused_fraction", "answered_fraction"} <= set(told["scores"][4])
    for wrong, field in (
        (["--task", "arithmetik"], "task"),
        (["--samples", "3"], "temperature"),
        (["--vocab", "64"], "vocab"),
    ):
        failed = CliRunner().invoke(app, [*words, *wrong])
        assert isinstance(failed.exception, InputError)
        assert failed.exception.field == field


UNFIT = {"objective": "masked", "patches": "4", "tp": "3", "dropout": "0.1", "precision": "fp8"}


@pytest.mark.parametrize("command", ["generate", "serve", "evaluate"])
@pytest.mark.parametrize("field", UNFIT)
def test_a_model_that_does_not_go_on_with_a_text_is_an_input_error_of_every_command(command, field):
    failed = CliRunner().invoke(app, [command, f"--{field}", UNFIT[field]])
    assert isinstance(failed.exception, InputError), failed.output
    assert failed.exception.field == field
