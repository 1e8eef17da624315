"""What is attacked, and how: for every kind of input a sound sheet, and what may be done to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, NamedTuple

from . import values
from .case import BAD_ROW, ENDLESS, FIFO, HARMLESS, NONSENSE, UNKNOWN, Mutation, Sheet
from .samples import PREDICTED, SHAPE, samples

Mutator = Callable[[Random, Sheet], Mutation]


class Kind(NamedTuple):
    """A kind of case: how often, a sound sheet, and mutators."""

    share: int
    sound: Callable[[Random], Sheet]
    mutators: tuple[Mutator, ...]


def taken(words: str, *names: str) -> Sheet:
    """Words, and samples by path."""
    return Sheet(words.split(), {name: samples()[name] for name in names})


def of_file(name: str, *mutators: Callable[[Random, bytes], Any]) -> tuple[Mutator, ...]:
    """Mutators of a file's content as mutators of a sheet."""

    def made(mutate: Callable[[Random, bytes], Any]) -> Mutator:
        def change(draw: Random, sheet: Sheet) -> Mutation:
            content = sheet.files[name]
            if isinstance(content, str):
                return Mutation("nothing", HARMLESS)
            try:
                sheet.files[name], mutation = mutate(draw, content)
            except Exception:  # an earlier one broke the format, which fails in many ways
                if content == samples().get(name):
                    raise
                sheet.files[name], mutation = values.bytes_mutation(draw, content)
            return Mutation(f"{name}: {mutation.says}", mutation.nature)

        return change

    return tuple(map(made, mutators))


def missing(name: str) -> Mutator:
    """A file that is not there."""

    def change(_draw: Random, sheet: Sheet) -> Mutation:
        sheet.files.pop(name, None)
        return Mutation(f"{name} is not there", NONSENSE)

    return change


JSON_FILE = (values.json_mutation, values.json_mutation, values.json_mutation, values.json_mutation)
JSON_FILE += (values.no_json, values.json_spelling, values.no_file, values.bytes_mutation)


# ---- command lines -----------------------------------------------------------------------------------------
class Option(NamedTuple):
    """An option of a command, as its request declares it."""

    name: str
    kind: str  # int, float, bool, str, words (of a fixed list), other (a size, a time, a list)
    words: tuple[Any, ...]


@cache
def options(command: str) -> list[Option]:
    """The options of a command."""
    from typing import Literal, get_args, get_origin

    from pydantic import BeforeValidator

    from glasscluster.commands.options import kind_of
    from glasscluster.scenarios.requests import collective, evaluate, generate, predict, serve, stored, train

    request: Any = {
        "train": train.TrainRequest,
        "predict": predict.PredictRequest,
        "generate": generate.GenerateRequest,
        "serve": serve.ServeRequest,
        "evaluate": evaluate.EvaluateRequest,
        "replay": stored.ReplayRequest,
        "schedule": stored.ScheduleRequest,
        "collective": collective.CollectiveRequest,
    }[command]
    found = []
    for name, field, _ in request.options():
        kind, notes = kind_of(field)
        if (field.json_schema_extra or {}).get("argument"):
            continue
        if any(isinstance(n, BeforeValidator) for n in notes):
            found.append(Option(name, "other", ()))
        elif get_origin(kind) is Literal:
            found.append(Option(name, "words", get_args(kind)))
        else:
            found.append(Option(name, getattr(kind, "__name__", "other"), ()))
    return found


SHAPED = " ".join(SHAPE)
SOUND = {  # command -> words that work, and are quick
    "predict": f"predict {SHAPED}",
    "train": f"train {SHAPED} --steps 1 --backend threads --no-check",
    "generate": f"generate {SHAPED} --tokens 1 --prompt-length 2 --no-check",
    "serve": f"serve {SHAPED} --count 1 --tokens 1 --no-check",
    "evaluate": "evaluate --layers 2 --hidden 16 --heads 2 --seq 64 --items 2 --no-check",
    "replay": "replay run",
    "schedule": "schedule 1f1b --pp 2 --micro-batches 4",
    "collective": "collective all-reduce --gpus 4 --size 1MiB",
}
QUICK = ["predict"] * 6 + ["schedule"] * 3 + ["collective"] * 4 + ["replay"] * 2


def some_command(draw: Random) -> Sheet:
    command = draw.choice([*QUICK, *SOUND])
    return taken(SOUND[command], *(["run/graph.npz"] if command == "replay" else []))


def bad_value(draw: Random, sheet: Sheet) -> Mutation:
    """An option with a value that is none of its kind."""
    choices = [o for o in options(sheet.words[0]) if o.kind in ("int", "float", "words", "other")]
    if not choices:  # replay has names and flags alone
        return bad_words(draw, sheet)
    option = draw.choice(choices)
    pool = {
        "int": values.NO_WHOLE,
        "float": values.NO_NUMBER,
        "words": values.NO_NAME,
        "other": values.NO_NUMBER[:1] + values.NO_NUMBER[3:],
    }[option.kind]
    return put(draw, sheet, option.name, draw.choice(pool), NONSENSE)


def odd_value(draw: Random, sheet: Sheet) -> Mutation:
    """An option with a value that may be."""
    option = draw.choice(options(sheet.words[0]))
    if option.kind == "bool":
        flag = option.name.replace("_", "-")
        sheet.words.append(draw.choice([f"--{flag}", f"--no-{flag}", f"--{flag}=true", f"--{flag}="]))
        return Mutation(sheet.words[-1], UNKNOWN)
    pool = {"int": values.NUMBERS, "float": values.FLOATS, "words": list(map(str, option.words))}
    anything = [*values.NO_NAME, *values.NUMBERS, "", "/dev/null", "/", ".", "1KiB", "-5s", "1e400GB"]
    return put(draw, sheet, option.name, draw.choice(pool.get(option.kind, anything)), UNKNOWN)


def put(draw: Random, sheet: Sheet, name: str, value: str, nature: str) -> Mutation:
    flag = "--" + name.replace("_", "-")
    sheet.words += [f"{flag}={value}"] if draw.random() < 0.5 or value.startswith("-") else [flag, value]
    return Mutation(f"{flag} {value[:80]!r}", nature)


def bad_words(draw: Random, sheet: Sheet) -> Mutation:
    """Words that are no command line."""
    act = draw.choice(["unknown", "command", "value", "extra", "short", "long"])
    if act == "unknown":
        sheet.words.append(draw.choice(["--nosuch", "--hiden=3", "--" + "x" * 5000, "-q", "--\udcff", "--é"]))
    elif act == "command":
        sheet.words[0] = draw.choice(["pedict", "", "x" * 5000, "\udcff", "..", "train.py", "-1", "0"])
    elif act == "value":
        sheet.words.append("--hardware" if sheet.words[0] != "schedule" else "--pp")
    elif act == "extra":
        sheet.words.append(draw.choice(["extra", "", "1", "x" * 5000, "\udcff"]))
    elif act == "short":
        del sheet.words[1:]
        if sheet.words[0] not in ("replay", "schedule", "collective"):
            sheet.words.append("--dp")
    else:
        sheet.words += ["--nosuch", "1"] * 300
    return Mutation(f"words: {act}", NONSENSE)


def same_words(draw: Random, sheet: Sheet) -> Mutation:
    """The same command line, said otherwise."""
    act = draw.choice(["json", "twice", "seed"])
    if act == "seed" and sheet.words[0] in ("train", "generate", "serve", "evaluate"):
        sheet.words += ["--seed", "0"]
    elif act == "twice":
        names = [w for w in sheet.words if w.startswith("--") and w not in ("--no-check", "--json")]
        if names:
            at = sheet.words.index(draw.choice(names))
            if "=" not in sheet.words[at]:
                sheet.words += sheet.words[at : at + 2]
    else:
        sheet.words.append("--json")
    return Mutation(f"the same words: {act}", HARMLESS)


# ---- plans: options that can be, in combinations that perhaps cannot ---------------------------------------
PLAUSIBLE: dict[str, list[str]] = {
    **{key: ["1", "2", "2", "3", "4", "8"] for key in ("dp", "tp", "pp", "cp", "ep")},
    "zero": ["0", "1", "2", "3"],
    "experts": ["0", "2", "4", "5"],
    "top_k": ["1", "2", "4"],
    "heads": ["1", "2", "4", "3"],
    "kv_heads": ["1", "2", "3"],
    "hidden": ["8", "16", "18", "32"],
    "layers": ["1", "2", "4", "7"],
    "seq": ["8", "16", "15", "32"],
    "virtual_stages": ["1", "2", "3"],
    "micro_batch": ["1", "2", "3"],
    "global_batch": ["0", "1", "4", "6", "8"],
    "schedule": (
        "gpipe 1f1b eager-1f1b interleaved looped-bfs zb-h1 zb-h2 interleaved-zb zb-v dualpipe-v"
    ).split(),
    "layers_per_stage": ["1,1", "2,0", "1,2,1", "1"],
    "precision": ["fp64", "fp32", "bf16", "fp16", "fp8"],
    "hardware": ["classroom", "laptop", "dgx-h100", "pcie-4090", "dgx-v100"],
    "algorithm": (
        "ring tree recursive-doubling halving-doubling hierarchical direct nccl parameter-server"
    ).split(),
    "bucket": ["1", "1KiB", "25MiB", "0"],
    "model": ["tiny", "gpt2-small", "llama3-8b", "mixtral-8x7b", "bert-base", "nosuch"],
    "rank": ["max", "last", "0", "1", "99", "-1"],
    "slow_rank": ["0:2", "1:0.5", "9:2", "0", "0:0", "0:nan"],
    "servers": ["0", "1", "2", "9"],
    "ulysses": ["0", "1", "2", "4"],
    "shard": ["0", "1", "2", "4"],
    "rope_dim": ["2", "4", "8", "3"],
    "kv_latent": ["0", "4", "8"],
    "dropout": ["0", "0.5", "1", "0.1"],
    "recompute_every": ["1", "2", "9"],
    "recompute_nth": ["1", "2", "9"],
    "recompute_modules": [
        "core_attn",
        "layernorm",
        "mlp,layernorm",
        "moe_act,shared_experts",
        "moe,layernorm",
    ],
    "prefetch": ["0", "1", "5"],
    "router_groups": ["1", "2", "3"],
    "dense_layers": ["0", "1", "2", "9"],
}


def some_plan(draw: Random) -> Sheet:
    return taken(SOUND["train" if draw.random() < 0.06 else "predict"])


def plausible(draw: Random, sheet: Sheet) -> Mutation:
    """A few options that could be."""
    known = {o.name: o for o in options(sheet.words[0])}
    says = []
    for _ in range(draw.choice([1, 2, 3, 4, 6])):
        option = known[draw.choice(sorted(known))]
        if draw.random() < 0.6:
            option = known[draw.choice([n for n in PLAUSIBLE if n in known])]
        flag = "--" + option.name.replace("_", "-")
        if option.kind == "bool":
            words = [draw.choice([flag, "--no-" + flag[2:]])]
            if option.name in ("check", "tied", "expand"):
                continue
        elif option.name in PLAUSIBLE:
            words = [flag, draw.choice(PLAUSIBLE[option.name])]
        elif option.words:
            words = [flag, str(draw.choice(option.words))]
        elif option.kind in ("int", "float") and option.name != "steps":
            words = [flag, draw.choice(["0", "1", "2", "3", "5"])]
        else:
            continue
        sheet.words += words
        says += words
    return Mutation(" ".join(says) or "no options", UNKNOWN if says else HARMLESS)


def huge(draw: Random, sheet: Sheet) -> Mutation:
    """One number that is far too large, or only large. (What lies between is only slow, and allowed.)"""
    names = "dp tp pp cp layers hidden heads seq vocab experts micro_batch global_batch virtual_stages steps"
    names += " ffn servers bucket seed shard count tokens gpus nodes micro_batches"
    known = {o.name for o in options(sheet.words[0])}
    there = [n for n in names.split() if n in known]
    if not there:  # replay has no sizes
        return Mutation("nothing", HARMLESS)
    name = draw.choice(there)
    return put(draw, sheet, name, str(10 ** draw.choice([1, 9, 12, 15, 18, 19, 30, 300])), UNKNOWN)


# ---- the rest ----------------------------------------------------------------------------------------------
def csv_cells(draw: Random, data: bytes) -> Any:
    """A table with another cell, column or line."""
    lines = [line.split(",") for line in data.decode("utf-8", "replace").splitlines()]
    row = draw.randrange(len(lines))
    act = draw.choice(["cell", "cell", "bad", "more", "less", "column", "quote", "twice", "blank"])
    nature = UNKNOWN
    if act == "bad" and row and len(lines) > 1:
        lines[row][draw.randrange(len(lines[row]))] = draw.choice(
            [v for v in values.NO_WHOLE if v not in ("", "1e3")]
        )  # a table's 1e3 is 1000
        nature = BAD_ROW
    elif act in ("cell", "bad"):
        pool = [*values.NO_WHOLE, *values.NUMBERS, *values.FLOATS, *values.NO_NAME[:-1], '=HYPERLINK("x")']
        lines[row][draw.randrange(len(lines[row]))] = draw.choice(pool)
    elif act == "more":
        lines[row] += ["1"] * draw.choice([1, 2, 1000])
    elif act == "less":
        del lines[row][draw.randrange(len(lines[row])) :]
    elif act == "column":
        lines[0][draw.randrange(len(lines[0]))] = draw.choice(
            ["nosuch", "dp", "csv", "out", "rank", "slow_rank", "hardware", "model", "error", "", "x" * 5000]
        )
    elif act == "quote":
        lines[row][0] = '"' + lines[row][0]
    elif act == "twice":
        lines.insert(row, lines[row])
    else:
        lines.insert(row, [draw.choice(["", " ", ",", "\t", "#"])])
    text = "\n".join(map(",".join, lines)) + "\n"
    return text.encode("utf-8", "replace"), Mutation(f"CSV: {act} in line {row}", nature)


def csv_spelling(draw: Random, data: bytes) -> Any:
    act = draw.choice(["bom", "lines", "blanks", "end"])
    text = data.decode()
    made = {
        "bom": "\ufeff" + text.removeprefix("\ufeff"),
        "lines": text.replace("\n", "\r\n"),
        "blanks": text.replace(",", " , "),
        "end": text.rstrip("\n"),
    }[act]
    return made.encode(), Mutation(f"the same CSV: {act}", HARMLESS)


def no_csv(draw: Random, data: bytes) -> Any:
    act = draw.choice(["empty", "utf-16", "zero", "binary"])
    made = {
        "empty": b"",
        "utf-16": data.decode().encode("utf-16"),
        "zero": b"\xff\0" * 50,
        "binary": b"\x80" * 99,
    }
    return made[act], Mutation(f"no CSV: {act}", NONSENSE)


def profile_value(draw: Random, data: bytes) -> Any:
    """A number of a profile that is none, or cannot be."""
    content = json.loads(data)
    numbers = [p for p in values.places(content) if type(values.at(content, p)) in (int, float)]
    path = draw.choice(numbers)
    wrong = draw.choice(["a", [1], {}, float("nan"), -1, "", True, {"a": 1}, values.DIGITS, "1e", [None]])
    values.at(content, path[:-1])[path[-1]] = wrong
    return values.written(content), Mutation(f"{path} = {str(wrong)[:40]!r}", NONSENSE)


def profile_key(draw: Random, data: bytes) -> Any:
    """A field that no profile has."""
    content = json.loads(data)
    objects = [p for p in values.places(content) if isinstance(values.at(content, p), dict)]
    path = draw.choice([p for p in objects if "peak_flops" not in p])
    values.at(content, path)[draw.choice(["extra", "lauch_s", "", "x" * 5000, "__init__", "self"])] = 1
    return values.written(content), Mutation(f"a field at {path} that is none", NONSENSE)


def with_profile(draw: Random) -> Sheet:
    names = ["predict", "predict", "replay", "collective"]
    sheet = taken(SOUND[draw.choice(names)] + " --hardware hw.json", "hw.json")
    if sheet.words[0] == "replay":
        sheet.files["run/graph.npz"] = samples()["run/graph.npz"]
    return sheet


def run_folder(draw: Random, sheet: Sheet) -> Mutation:
    """A folder of a run that is not whole."""
    graph = samples()["run/graph.npz"]
    sheet.files = {name: c for name, c in sheet.files.items() if not name.startswith("run")}
    act = draw.choice(["empty", "two", "writing", "complete", "folder", "removed", "only run.json"])
    if act == "empty":
        sheet.files["run"] = "a folder"
    elif act == "two":
        sheet.files |= {"run/train-1/graph.npz": graph, "run/train-2/graph.npz": graph}
    elif act == "writing":
        sheet.files["run/.glass-writing-1/graph.npz"] = graph
    elif act == "complete":
        sheet.files |= {"run/.glass-complete/graph.npz": graph, "run/.glass-complete/.removed": b"[]"}
        return Mutation("run folder: a writer died in the middle", HARMLESS)
    elif act == "folder":
        sheet.files["run/graph.npz"] = "a folder"
    elif act == "removed":
        bad = draw.choice(
            [b"", b"{", b"7", b'["../../x"]', b"[1]", b'"ab"', b"null", b"\xff", b'["a\\u0000"]']
        )
        sheet.files |= {"run/.glass-complete/graph.npz": graph, "run/.glass-complete/.removed": bad}
        return Mutation(f"run folder: a list of removals that says {bad!r}", UNKNOWN)
    else:
        sheet.files["run/run.json"] = b"{}"
    return Mutation(f"run folder: {act}", NONSENSE)


def packed_columns(draw: Random, data: bytes) -> Any:
    """A report's graph with other columns, or another stream."""
    import base64
    import zlib

    content = json.loads(data)
    act = draw.choice(["count", "width", "name", "stream", "bomb", "base64", "numbers", "numbers", "numbers"])
    column = draw.choice(content["columns"])
    if act == "count":
        column[2] = draw.choice([0, -1, 1, 10**6, 10**12, 2**63, "a", None, 1.5])
    elif act == "width":
        column[1] = draw.choice([0, 1, 2, 3, 4, 8, 16, -1, "a"])
    elif act == "name":
        column[0] = draw.choice(["rank", "nosuch", "", 1, None, []])
    elif act == "stream":
        content["data"] = base64.b64encode(draw.randbytes(100)).decode()
    elif act == "bomb":
        content["data"] = base64.b64encode(zlib.compress(b"\0" * 50_000_000)).decode()
    elif act == "base64":
        content["data"] = draw.choice(["", "é", "=", 1, None, content["data"][:-7]])
    else:
        raw = bytearray(zlib.decompress(base64.b64decode(content["data"])))
        for _ in range(draw.choice([1, 1, 1, 20])):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        content["data"] = base64.b64encode(zlib.compress(bytes(raw))).decode()
    return values.written(content), Mutation(f"packed graph: {act} of {column}"[:100], UNKNOWN)


def some_tokenizer(draw: Random) -> Sheet:
    words = ["tokenize encode abc", "tokenize encode abc", "tokenize decode 97 98"]
    words.append(
        f"train {SHAPED} --vocab 260 --steps 1 --no-check --backend threads --data data.txt "
        "--tokenizer tok.json"
    )
    chosen = draw.choices(words, [8, 8, 8, 1])[0]
    if chosen.startswith("train"):
        return taken(chosen, "tok.json", "data.txt")
    return taken(f"{chosen} --tokenizer tok.json", "tok.json")


def tokenizer_words(draw: Random, sheet: Sheet) -> Mutation:
    """Another text, other numbers, another option."""
    if sheet.words[1] == "decode":
        sheet.words.append(draw.choice(["999999", "-1", "a", "1.5", "9" * 5000, "2147483648"]))
        return Mutation(f"token {sheet.words[-1][:40]}", NONSENSE)
    if sheet.words[1] == "encode":
        sheet.words[2] = draw.choice(["", "\udcff", "é" * 5000, "<|endoftext|>", "\n", "-1", "日本"])
        return Mutation(f"text {sheet.words[2][:40]!r}", UNKNOWN)
    sheet.words += ["--vocab", draw.choice(["1", "259", "abc", "-1"])]
    return Mutation(f"--vocab {sheet.words[-1]}", UNKNOWN)


def with_weights(draw: Random) -> Sheet:
    words = draw.choices(
        [
            "generate --tokens 1 --prompt-length 2 --no-check --weights W",
            "serve --count 1 --tokens 1 --prompt-length 2 --no-check --weights W",
        ],
        [8, 1],
    )[0]
    parts = ["W/model.safetensors"]
    if draw.random() < 0.4:
        parts = ["W/model.safetensors.index.json", "W/one.safetensors", "W/two.safetensors"]
    return taken(words, "W/config.json", *parts)


def with_config(draw: Random) -> Sheet:
    name = draw.choice(sorted(n for n in samples() if n.startswith("configs/")))
    return Sheet(["doctor", "--model", "config.json"], {"config.json": samples()[name]})


def config_type(draw: Random, data: bytes) -> Any:
    """A number of a config.json of another type, or one that cannot be."""
    content = json.loads(data)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "n_embd", "n_layer", "n_head")
    key = draw.choice([k for k in sizes if k in content])
    content[key] = wrong = draw.choice(["a", [], {}, [1], -1, float("nan"), "", values.DIGITS, 0.5, True])
    return values.written(content), Mutation(f"{key} = {str(wrong)[:40]!r}", NONSENSE)


def weights_file(draw: Random, sheet: Sheet) -> Mutation:
    """One of the files of a folder of weights."""
    name = draw.choice(["W/config.json", "W/config.json", *sheet.files])
    if name not in sheet.files:
        return Mutation("nothing", HARMLESS)
    if name.endswith(".json"):
        return draw.choice(of_file(name, *JSON_FILE))(draw, sheet)
    if draw.random() < 0.1:
        return missing(name)(draw, sheet)
    tensors = (values.safetensors_mutation,) * 4
    return draw.choice(of_file(name, *tensors, values.bytes_mutation, values.no_file))(draw, sheet)


def config_key(draw: Random, sheet: Sheet) -> Mutation:
    """A key of config.json with a value of another type, or one that cannot be."""
    content = json.loads(sheet.files["W/config.json"])
    key = draw.choice(["n_layer", "n_embd", "n_head", "vocab_size", "n_positions", "layer_norm_epsilon"])
    wrong = draw.choice(
        ["a", [], {}, [1], -1, float("nan"), "", {"a": 1}, values.DIGITS, values.DEEP, 10**18]
    )
    content[key] = wrong
    sheet.files["W/config.json"] = values.written(content)
    return Mutation(f"config.json: {key} = {str(wrong)[:40]!r}", NONSENSE)


def index_entry(draw: Random, sheet: Sheet) -> Mutation:
    """An index that points elsewhere."""
    name = "W/model.safetensors.index.json"
    if name not in sheet.files:
        return Mutation("nothing", HARMLESS)
    content = json.loads(sheet.files[name])
    wrong = draw.choice(
        ["../one.safetensors", "/dev/zero", "nosuch.safetensors", "", ".", 1, None, "a\u0000b"]
    )
    content["weight_map"][draw.choice(sorted(content["weight_map"]))] = wrong
    sheet.files[name] = values.written(content)
    return Mutation(f"index: {wrong!r}", NONSENSE)


def schedule_text(draw: Random, data: bytes) -> Any:
    """A schedule with another action."""
    lines = [line.split() for line in data.decode("utf-8", "replace").splitlines()]
    row = draw.randrange(len(lines))
    at = draw.randrange(len(lines[row])) if lines[row] else 0
    act = draw.choice(["word", "word", "swap", "drop", "line", "long", "bad"])
    nature = UNKNOWN
    if act == "word":
        words = ["2F5", "0F0", "1W9", "0F99999999999", "7B0", "(0F1;1B0)OVERLAP_F_B", "0I0", "-", "0BW0"]
        lines[row].insert(at, draw.choice(words))
    elif act == "bad":
        lines[row].insert(
            at, draw.choice(["x", "F0", "-1F0", "0f0", "0F", "é", "0F0F0", "9" * 5000 + "F0", "\0"])
        )
        nature = NONSENSE
    elif act == "swap":
        draw.shuffle(lines[row])
    elif act == "drop":
        del lines[row][at : at + 1]
    elif act == "line":
        lines.insert(row, lines[row])
        nature = NONSENSE
    else:
        lines[row] += ["0F0"] * 5000
        nature = NONSENSE
    return "\n".join(map(" ".join, lines)).encode() + b"\n", Mutation(f"schedule: {act}", nature)


def some_schedule(draw: Random) -> Sheet:
    return taken("schedule mine --pp 2 --micro-batches 2 --validate schedule.txt", "schedule.txt")


def schedule_size(draw: Random, sheet: Sheet) -> Mutation:
    """Other ranks, micro-batches, costs."""
    name, pool = draw.choice(
        [
            ("pp", ["1", "3", "0", "100", "5000", "1000000000"]),
            ("micro_batches", ["1", "3", "0", "100000", "1000000000000"]),
            ("virtual_stages", ["1", "2", "3", "1000000", "0"]),
            (
                "costs",
                [
                    "f=1",
                    "f=-1",
                    "f=nan",
                    "f=1e308,b=1e308",
                    "x=1",
                    "",
                    "f=1,f=2",
                    "f",
                    "f=0,b=0,w=0",
                    "f=1e-320",
                ],
            ),
        ]
    )
    return put(draw, sheet, name, draw.choice(pool), UNKNOWN)


def some_schedule_name(draw: Random) -> Sheet:
    names = [*PLAUSIBLE["schedule"], "nosuch"]
    pp, m = draw.choice(["1", "2", "3", "4", "8"]), draw.choice(["1", "2", "3", "4", "8", "16"])
    return Sheet(["schedule", draw.choice(names), "--pp", pp, "--micro-batches", m])


def some_requests(draw: Random) -> Sheet:
    return taken(f"serve {SHAPED} --no-check --requests requests.json", "requests.json")


def request_value(draw: Random, data: bytes) -> Any:
    """A request that nobody can serve."""
    content = json.loads(data)
    entry = draw.choice(content)
    key, wrong = draw.choice(
        [
            (
                "prompt",
                [[], "", [-1], [256], ["a"], [None], 5, None, {}, [1.5], [[1]], "x" * 5000, [1e300], [True]],
            ),
            ("tokens", [0, -1, "a", None, [], 1e300, float("nan"), 10**9, 1.5, {}, values.DIGITS]),
            ("arrival_s", [-1, float("nan"), float("inf"), "a", None, [], {}, "1e400", values.DEEP]),
        ]
    )
    entry[key] = draw.choice(wrong)
    return values.written(content), Mutation(f"{key} = {str(entry[key])[:40]!r}", NONSENSE)


REQUESTED = {  # command with words that a request cannot hold -> a request
    "predict": PREDICTED,
    "schedule": {"name": "1f1b", "pp": 2, "micro_batches": 4},
    "collective": {"operation": "all-reduce", "gpus": 4, "size": "1MiB", "algorithm": "ring"},
    "replay": {"run": "run", "hardware": "classroom"},
}


def with_request(draw: Random) -> Sheet:
    command = draw.choice(sorted(REQUESTED))
    content = json.dumps(REQUESTED[command]).encode()
    sheet = Sheet([command, "--request", "request.json"], {"request.json": content})
    if command == "replay":
        sheet.files["run/graph.npz"] = samples()["run/graph.npz"]
    return sheet


def request_key(draw: Random, data: bytes) -> Any:
    """A name that is no option."""
    content = json.loads(data)
    content[
        draw.choice(["nosuch", "", "request", "x" * 5000, "a\u0000", "json_", "given", "plan", "shape"])
    ] = 1
    return values.written(content), Mutation("a name that is no option", NONSENSE)


def request_type(draw: Random, data: bytes) -> Any:
    """A value of another type."""
    content = json.loads(data)
    content[draw.choice(sorted(content))] = draw.choice([{}, {"a": 1}, [[]], [{}], {"": []}])
    return values.written(content), Mutation("a value of another type", NONSENSE)


def from_stdin(_draw: Random, sheet: Sheet) -> Mutation:
    """The request comes from standard input."""
    content = sheet.files.pop("request.json", b"{}")
    if "request.json" in sheet.words and isinstance(content, bytes):
        sheet.words[sheet.words.index("request.json")], sheet.stdin = "-", content
        return Mutation("from standard input", HARMLESS)
    return Mutation("no request", UNKNOWN)


def bad_stdin(draw: Random, sheet: Sheet) -> Mutation:
    """Standard input that is no JSON."""
    sheet.words = [sheet.words[0], "--request", "-"]
    sheet.stdin = draw.choice(
        [b"", b"\xff\xfe{}", b"[" * 100_000, b"{", b"\0", b"9" * 5000, b"null", b'{"a":1']
    )
    return Mutation(f"standard input {sheet.stdin[:10]!r}", NONSENSE)


def with_topology(draw: Random) -> Sheet:
    return taken("collective all-reduce --gpus 2 --size 1MiB --topology topology.json", "topology.json")


def with_data(draw: Random) -> Sheet:
    if draw.random() < 0.8:
        return taken("tokenize train data.txt --vocab 260", "data.txt")
    return taken(f"train {SHAPED} --steps 1 --no-check --backend threads --data data.txt", "data.txt")


def no_data(draw: Random, _data: bytes) -> Any:
    """Something that never ends; a folder would be one of texts."""
    kind = draw.choice([FIFO, ENDLESS])
    return kind, Mutation(kind, NONSENSE)


def data_content(draw: Random, data: bytes) -> Any:
    made = draw.choice([b"", b"\xff" * 300, b"\0" * 300, data.decode().encode("utf-16"), b"a", b" " * 300])
    return made, Mutation(f"data {made[:10]!r}", UNKNOWN)


COMMAND_LINE = (bad_value, bad_value, odd_value, odd_value, bad_words, same_words, huge)
KINDS: dict[str, Kind] = {
    "command line": Kind(20, some_command, COMMAND_LINE),
    "plan": Kind(16, some_plan, (plausible, plausible, plausible, plausible, huge)),
    "csv": Kind(
        6,
        lambda draw: taken("predict --csv rows.csv", "rows.csv"),
        of_file("rows.csv", csv_cells, csv_cells, csv_cells, csv_spelling, no_csv, values.no_file),
    ),
    "profile": Kind(
        8, with_profile, of_file("hw.json", *JSON_FILE, profile_value, profile_value, profile_key)
    ),
    "graph.npz": Kind(
        9,
        lambda draw: taken("replay run", "run/graph.npz"),
        of_file(
            "run/graph.npz",
            *(values.npz_mutation,) * 6,
            values.npz_foreign,
            values.bytes_mutation,
            values.no_file,
        ),
    ),
    "graph.json": Kind(
        6,
        lambda draw: taken("replay graph.json", "graph.json"),
        of_file("graph.json", *JSON_FILE, packed_columns, packed_columns, packed_columns),
    ),
    "run folder": Kind(3, lambda draw: taken("replay run", "run/graph.npz"), (run_folder,)),
    "tokenizer": Kind(7, some_tokenizer, (*of_file("tok.json", *JSON_FILE), tokenizer_words)),
    "weights": Kind(8, with_weights, (weights_file, weights_file, weights_file, config_key, index_entry)),
    "config": Kind(6, with_config, of_file("config.json", *JSON_FILE, config_type)),
    "schedule": Kind(
        6,
        some_schedule,
        (
            *of_file("schedule.txt", *(schedule_text,) * 4, values.no_file, values.bytes_mutation),
            schedule_size,
        ),
    ),
    "schedule by name": Kind(2, some_schedule_name, (schedule_size,)),
    "serve requests": Kind(
        4, some_requests, of_file("requests.json", *JSON_FILE, request_value, request_value, request_value)
    ),
    "request": Kind(
        8,
        with_request,
        (*of_file("request.json", *JSON_FILE, request_key, request_type), from_stdin, bad_stdin),
    ),
    "topology": Kind(5, with_topology, of_file("topology.json", *JSON_FILE)),
    "data": Kind(2, with_data, of_file("data.txt", data_content, values.bytes_mutation, no_data)),
}
