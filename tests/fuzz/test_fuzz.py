"""Wrong inputs of every kind end in a named error, soon, without a traceback; and the fuzzer can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import judge
from .campaign import Worker, campaign, judged, shrink
from .case import BAD_ROW, HARMLESS, NONSENSE, UNKNOWN, Case, Mutation, Sheet
from .cases import draw_of, kind_of, make
from .judge import Ending, faults
from .kinds import KINDS
from .sound import unsound, unsound_rows

ROOT = Path(__file__).parents[2]
SEED, CASES, PARTS = 21, 500, 2  # two workers share them, and each pays once for the imports
FAILURES = ROOT / "build" / "fuzz"


@pytest.fixture(scope="module")
def worker():
    with Worker() as one:
        yield one


@pytest.mark.parametrize("part", range(PARTS))
def test_no_traceback_no_hang_no_crash_and_no_nonsense_taken(part):
    tally = campaign(range(part, CASES, PARTS), SEED, FAILURES)
    print(tally.words())
    assert sum(tally.ran.values()) == CASES // PARTS
    assert not tally.failed, tally.words()
    # what is refused at its first word would find nothing
    assert tally.codes["0"] > CASES // PARTS / 10
    assert tally.codes["2"] > CASES // PARTS / 3


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_cases(part):
    tally = campaign(range(part * 1000, (part + 1) * 1000), SEED + 1, FAILURES)
    print(tally.words())
    assert not tally.failed, tally.words()


def test_every_kind_has_its_share_of_the_suite():
    drawn = [kind_of(number, SEED) for number in range(CASES)]
    assert {kind for kind in KINDS if drawn.count(kind) >= 3} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sound_is_taken(kind, worker):
    """Else every mutation would be refused, and nobody would know why."""
    for number in range(4):
        sheet = KINDS[kind].sound(draw_of("sheet", number, SEED, kind))
        case = Case(kind, number, SEED, sheet, [Mutation("nothing", HARMLESS)])
        assert faults(case, worker.run(sheet)) == []


def test_a_number_and_a_seed_make_the_same_case():
    for number in range(40):
        one, other = make(number, 5), make(number, 5)
        assert one.as_json() == other.as_json()
    assert make(0, 5).as_json() != make(0, 6).as_json()


def test_a_case_comes_back_from_its_file(tmp_path):
    case = make(7, SEED, "weights")
    (tmp_path / "case.json").write_text(json.dumps(case.as_json()))
    assert Case.read(tmp_path / "case.json") == case


# ---- the judge, and what it judges -------------------------------------------------------------------------
PLANTED = {  # what a broken command would do -> what the judge must say
    "print('Traceback (most recent call last):', file=sys.stderr)": "traceback",
    "raise ValueError('no word of ours')": "a fault of ours",
    "os.kill(os.getpid(), 11)": "crash",
    "while True: pass": "hang: more than",
    "import time; time.sleep(100)": "hang: waits",
    "sys.exit(7)": "exit code",
    "print('InputError: it is wrong', file=sys.stderr); sys.exit(2)": "names no field",
    "print('InputError: dp = 1: ' + 'x' * 3000, file=sys.stderr); sys.exit(2)": "a message of",
    "import time; kept = bytearray(3 << 30); time.sleep(100)": "memory",
    "kept = bytearray(3 << 30); del kept": "GiB",
    "for i in range(10**9): i % 10**5 or print('12 of 2,000 ranks', file=sys.stderr)": "hang: more than",
    "import itertools\nfor i in itertools.count(): i % 10**5 or print(f'1 of {i} ranks', file=sys.stderr)": (
        "hang: more than"
    ),
    "pass": "nonsense was taken",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A worker whose `glass collective` does what the file planted.txt says."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "def run(_request, _say):\n    exec(Path('planted.txt').read_text())\n"
        "    return {'schema': 'x', 'result': 'nonsense'}\n"
    )
    (folder / "sitecustomize.py").write_text(
        "import glasscluster.commands.bodies as bodies\nbodies.BODIES['collective'] = 'planted:run'\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(judge, "MOST_CPU_S", 1.0)
        patch.setattr(judge, "MOST_WAIT_S", 3.0)
        patch.setattr(judge, "MOST_SLOW_S", 4.0)
        with Worker() as one:
            yield one


def planted_case(code: str) -> Case:
    words = "collective all-reduce --gpus 4 --size 1MiB --json".split()
    sheet = Sheet(words, {"planted.txt": code.encode()})
    return Case("command line", 0, 0, sheet, [Mutation("planted", NONSENSE)])


@pytest.mark.parametrize("planted", PLANTED, ids=[f"{i}-{said}" for i, said in enumerate(PLANTED.values())])
def test_the_judge_sees_a_planted_fault(planted, broken, monkeypatch):
    if "bytearray" in planted:  # how long a machine takes to fill memory must not matter
        monkeypatch.setattr(judge, "MOST_CPU_S", 600.0)
        monkeypatch.setattr(judge, "MOST_SLOW_S", 600.0)
        monkeypatch.setattr(judge, "MOST_WAIT_S", 600.0)
    case = planted_case(planted)
    said = faults(case, broken.run(case.sheet))
    assert any(PLANTED[planted] in text for text in said), said


def test_what_is_large_and_says_how_far_it_is_is_no_hang(broken):
    code = "for i in range(10**9): i % 10**5 or print(f'{i} of 1,000,000,000 ranks', file=sys.stderr)"
    case = planted_case(code)
    ending = broken.run(case.sheet)
    assert faults(case, ending) == []
    assert "of 1,000,000,000 ranks" in (ending.slow or "")
    assert 0 < ending.silent_s < judge.MOST_CPU_S


def test_silence_is_what_counts():
    case = planted_case("")
    assert any(
        "without a word" in text
        for text in faults(case, Ending(0, "", cpu_s=6.0, silent_s=judge.MOST_CPU_S + 1))
    )
    assert not any(
        "without a word" in text
        for text in faults(case, Ending(0, "", cpu_s=14.0, silent_s=judge.MOST_CPU_S / 2))
    )


SUM = {"compute": 2.0, "bubble": 1.0}
HELD = {"key": "x", "verdict": "held", "match": "exact", "tolerance": 0, "predicted": 1, "counted": 1}
HELD |= {"simulated": None, "measured": None}
UNSOUND = {
    "mfu, a share, is 1.5": {"mfu": 1.5},
    "wait_fraction, a share, is -0.1": {"of": [{"wait_fraction": -0.1}]},
    "time_s is inf": {"steps": [{"time_s": float("inf")}]},
    "sent_bytes is -8": {"sent_bytes": [1, -8]},
    "breakdown_s adds up to 3": {"iteration_time_s": 4.0, "breakdown_s": SUM},
    "memory_gib adds up to 3": {"peak_memory_gib": 2.0, "memory_gib": SUM},
    "fits is True, and memory_margin_gib -1": {"fits": True, "memory_margin_gib": -1.0},
    "1 losses in 2 steps": {"losses": [1.0], "steps": 2},
    "do not agree": {"bubble_fraction": 0.5, "bubble_over_ideal": 0.5},
    "exit 0 with FAIL": {"status": "FAIL"},
    "exit 0 though x failed": {"checks": [HELD | {"verdict": "failed"}]},
    "x is held with": {"checks": [HELD | {"counted": 2}]},
    "nothing to compare": {"checks": [HELD | {"counted": None}]},
    "PASS though not checked": {"status": "PASS", "not_checked": ["weights"]},
}


@pytest.mark.parametrize("said", UNSOUND)
def test_an_answer_that_cannot_be_is_seen(said):
    assert any(said in text for text in unsound({"schema": "glass.x/1", **UNSOUND[said]}))


def test_an_answer_that_can_be_passes():
    sound = {"iteration_time_s": 3.0, "breakdown_s": SUM, "bubble_fraction": 0.5, "bubble_over_ideal": 1.0}
    assert unsound({"mfu": 1.0, "status": "PASS", "checks": [HELD], "model": {"x_s": -1}, **sound}) == []


def test_a_table_s_row_that_cannot_be_is_seen():
    header = "iteration_time_s,tokens_per_s_per_gpu,mfu,hfu,bubble_fraction,peak_memory_gib,error\n"
    assert unsound_rows(header + "1,1,0.5,0.5,0,1,\n,,,,,,wrong\n") == []
    for row in ("0,1,0.5,0.5,0,1,", "1,1,2,0.5,0,1,", "1,1,nan,0.5,0,1,", ",1,0.5,0.5,0,1,"):
        assert unsound_rows(header + row), row


def test_a_bad_row_that_was_taken_is_seen():
    case = Case("csv", 0, 0, Sheet(["predict", "--csv", "rows.csv"]), [Mutation("abc", BAD_ROW)])
    assert faults(case, Ending(0, "3 rows, 0 with an error: rows.predicted.csv"))
    assert not faults(case, Ending(0, "3 rows, 1 with an error: rows.predicted.csv"))


def test_what_is_taken_is_asked_for_again_in_numbers():
    class Lies:
        """Says nothing wrong to people."""

        def run(self, sheet: Sheet) -> Ending:
            return Ending(0, '{"schema": "glass.x/1", "mfu": 7}' if "--json" in sheet.words else "MFU 7")

    case = Case("plan", 0, 0, Sheet(["predict"]), [Mutation("odd", UNKNOWN)])
    assert "mfu, a share, is 7" in judged(Lies(), case)[1][0]  # type: ignore[arg-type]


def test_what_fails_is_made_small():
    class Broken:
        """Takes everything that has --dp in it."""

        def run(self, sheet: Sheet) -> Ending:
            return Ending(code=9 if "--dp" in sheet.words else 0)

    words = "predict --layers 2 --hidden 16 --dp 3 --json --tp 4".split()
    sheet = Sheet(words, {"a.json": b"{}", "b": b"x"})
    case = Case("plan", 0, 0, sheet, [Mutation("many words", UNKNOWN)])
    small = shrink(Broken(), case, ["exit code 9"])  # type: ignore[arg-type]
    assert small.sheet.words == ["predict", "--dp"]
    assert small.sheet.files == {}
