"""The `glass` command: options in, one call below, words or JSON out. No logic of its own.

Heavy imports happen inside the commands, after the first line of progress.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from glasscluster import __version__
from glasscluster.base.errors import Deadlock, GlassError, InputError
from glasscluster.base.quantities import parse_size, parse_time
from glasscluster.commands import console, evaluate, serve, tokenize
from glasscluster.commands.console import (
    Json,
    default_backend,
    emit,
    is_leader,
    progress,
    show_checks,
    verdict,
)
from glasscluster.commands.options import (
    SIZES,
    AlsoDry,
    Device,
    Hardware,
    Precision,
    Preset,
    Seed,
    TensorParallel,
    Weights,
    planned,
    shaped,
)
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.pipeline.schedules import SCHEDULES
from glasscluster.strategies.plan import Plan

app = typer.Typer(
    name="glass",
    help="A GPU cluster you can see through: real training strategies on simulated GPUs, exact, counted and drawn.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(tokenize.app, name="tokenize")
app.command()(serve.serve)
app.command()(evaluate.evaluate)

Backend = Annotated[str | None, typer.Option(help="ray | threads | torchrun")]
Out = Annotated[str | None, typer.Option(help="folder to write to [default: runs/NAME-N]")]
Timeout = Annotated[str | None, typer.Option(help="of one operation, as 30s")]


def plan_and_model(given: dict[str, Any], preset: str, runs: bool = True, weights: str | None = None) -> tuple[Plan, ModelConfig]:
    """What was asked for, validated; InputError otherwise. `runs` False: for a prediction. `weights`: a folder that has the model."""
    from glasscluster.strategies.plan import make_model, make_plan

    values = dict(given)
    for name in SIZES.keys() & values.keys():
        values[name] = parse_size(name, str(values[name]))
    if "layers_per_stage" in values:
        text = str(values["layers_per_stage"])
        try:
            values["layers_per_stage"] = tuple(int(n) for n in text.split(","))
        except ValueError:
            raise InputError("layers_per_stage", text, "must be whole numbers with commas between, as 1,1,1,1") from None
    shape = {k: v for k, v in values.items() if k in ModelConfig.model_fields}
    if weights is not None:
        from glasscluster.scenarios.jobs.generation import read_model

        model = read_model(weights, **shape)
    else:
        model = make_model(preset, **shape)
    plan = make_plan(**{k: v for k, v in values.items() if k in Plan.model_fields})
    plan.check(model, runs)
    return plan, model


# ---- commands ----------------------------------------------------------------------------------------------------
@app.command()
@planned
def train(
    given: dict,
    model: Preset = "tiny",
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps; figures are of the last")] = 3,
    data: Annotated[
        list[str] | None,
        typer.Option(help="any text file; or several SOURCE:WEIGHT (file, folder, python, english, chinese) [default: standard library]"),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="a tokenizer.json of `glass tokenize train` [default: bytes]")] = None,
    pack: Annotated[bool, typer.Option("--pack", help="documents whole in rows, none of which sees another")] = False,
    weights: Annotated[str | None, typer.Option(help="folder in Hugging Face's layout to start from")] = None,
    save: Annotated[str | None, typer.Option(help="folder for the trained weights, in Hugging Face's layout")] = None,
    check: Annotated[bool, typer.Option(help="compare with one device in float64")] = True,
    backend: Backend = None,
    device: Device = "cpu",
    seed: Seed = 0,
    hardware: Hardware = "classroom",
    timeout: Timeout = None,
    memory: Annotated[str | None, typer.Option(help="capacity of a virtual GPU, as 16GB [default: the hardware's]")] = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """Train a GPT with a plan, check it against one device, count it, draw it."""
    plan, shape = plan_and_model(given, model, weights=weights)
    with progress() as say:
        say(f"glass train: {plan.gpus} GPUs, {shape.parameters():,} parameters")
        from glasscluster.scenarios.jobs import training
        from glasscluster.scenarios.jobs.sources import parse_data

        trained = training.train_command(
            plan,
            shape,
            steps=steps,
            data=parse_data(data or [], tokenizer, pack),
            checked=check,
            backend=backend or default_backend(),
            device=device,
            seed=seed,
            hardware=hardware,
            timeout_s=parse_time("timeout", timeout) if timeout else None,
            memory_bytes=parse_size("memory", memory) if memory else "hardware",
            out=out,
            weights=weights,
            save=save,
            say=say,
        )
    if not is_leader():
        return 0
    if json_:
        emit(trained.as_json())
        return 0 if trained.ok else 1
    losses = ", ".join(f"{float(x):.4f}" for x in trained.run.results[-1].losses[-5:])
    t = trained.timeline
    print(f"loss {losses}")
    for source in (trained.read or {}).get("sources", []):
        print(f"{source['source']}: {source['epochs']:.3g} epochs of {source['tokens']:,} tokens")
    print(f"{t.makespan * 1e3:.3f} ms a step on {t.hardware.name} (virtual), bubble {t.bubble()['bubble_fraction']:.1%}")
    show_checks(trained.checks)
    return verdict(trained.checks, trained.report, not_checked=trained.not_checked)


@app.command()
@shaped
def generate(
    given: dict,
    prompt: Annotated[list[str] | None, typer.Option(help="a text, taken as bytes; may be repeated")] = None,
    prompt_length: Annotated[int, typer.Option(min=0, help="a prompt of so many random tokens instead")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="how often each prompt is in the batch")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="new tokens of each sequence")] = 16,
    model: Preset = "tiny",
    weights: Weights = None,
    cache: Annotated[str, typer.Option(help="static | paged | sliding | none")] = "static",
    block: Annotated[int, typer.Option(min=1, help="tokens in a block of a paged cache")] = 16,
    window: Annotated[int, typer.Option(min=0, help="tokens that attention looks back, with cache sliding or none; 0: all")] = 0,
    chunk: Annotated[int, typer.Option(min=0, help="tokens of a prompt taken in at a time; 0: all")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="of sampling; 0: the likeliest token")] = 0.0,
    sample_top_k: Annotated[int, typer.Option(min=0, help="draw from the k likeliest tokens; 0: from all")] = 0,
    sample_top_p: Annotated[float, typer.Option(min=0, max=1, help="draw from the likeliest tokens of this probability")] = 1.0,
    tp: TensorParallel = 1,
    precision: Precision = "fp32",
    check: Annotated[bool, typer.Option(help="compare with one device without a cache in float64")] = True,
    backend: AlsoDry = "threads",
    device: Device = "cpu",
    seed: Seed = 0,
    hardware: Hardware = "classroom",
    json_: Json = False,
) -> int:
    """Generate tokens with a cache of keys and values; count the cache, prefill and decode, and time them."""
    with progress() as say:
        say("glass generate: making the model")
        from glasscluster.model.decoding.generate import Sampling
        from glasscluster.scenarios.jobs import generation
        from glasscluster.strategies.plan import make_model

        shape = generation.read_model(weights, **given) if weights else make_model(model, **given)
        made = generation.generate_command(
            shape,
            prompts=prompt or ([] if prompt_length else ["def "]),
            prompt_length=prompt_length,
            batch=batch,
            tokens=tokens,
            cache=cache,
            block=block,
            window=window,
            chunk=chunk,
            tp=tp,
            precision=precision,
            sampling=Sampling(temperature, sample_top_k, sample_top_p, seed),
            weights=weights,
            checked=check,
            backend=backend,
            device=device,
            seed=seed,
            hardware=hardware,
            say=say,
        )
    if not is_leader():
        return 0
    content = made.as_json()
    if json_:
        emit(content)
        return 0 if made.ok else 1
    for words, numbers in zip(content["text"], content["tokens"], strict=False):
        print(repr(words) if words is not None else numbers)
    for name in ("prefill", "decode"):
        if phase := content[name]:
            print(f"{name:8} {phase['time_s'] * 1e3:10.4g} ms on {content['hardware']} (virtual), {phase['flops']:.4g} FLOPs, "
                  f"{phase['memory_traffic_bytes']:.4g} bytes: {phase['intensity_flops_per_byte']:.3g} a byte, "
                  f"bound by {phase['bound']}")  # fmt: skip
    show_checks(made.checks)
    return verdict(made.checks, None, not_checked=made.not_checked)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(
    context: typer.Context,
    scenario: Annotated[str, typer.Argument(help="a name from `glass list`, or FILE.py")],
    backend: Backend = None,
    device: Device = "cpu",
    seed: Seed = 0,
    hardware: Annotated[str | None, typer.Option(help="virtual clock [default: the scenario's]")] = None,
    timeout: Timeout = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """Run a scenario: `glass run tour`, `glass run my_lesson.py`. Its own options: `glass run NAME --help`."""
    from glasscluster.scenarios import play

    asked_for_help = scenario in ("--help", "-h") or any(a in ("--help", "-h") for a in context.args)
    if asked_for_help:
        print(context.get_help() if scenario.startswith("-") else play.help_text(scenario))
        return 0
    with progress() as say:
        say(f"glass run {scenario}")
        lab, report, wall = play.play(
            scenario,
            context.args,
            backend=backend or ("torchrun" if default_backend() == "torchrun" else None),
            device=device,
            seed=seed,
            hardware=hardware,
            timeout_s=parse_time("timeout", timeout) if timeout else None,
            out=out,
            say=say,
        )
    if not is_leader():
        return 0
    if json_:
        emit(lab.as_json(report))
        return 0 if lab.ok else 1
    for text, _ in lab.story:
        print(f"- {text.en}\n  {text.zh}")
    print(f"\n{lab.finding.en}\n{lab.finding.zh}")
    return verdict(lab.all_checks, report, wall)


@app.command("list")
def list_(json_: Json = False) -> int:
    """Scenarios, model presets, hardware, schedules and backends."""
    from glasscluster.scenarios import play

    found = play.inventory()
    if json_:
        emit(found)
        return 0
    for heading, names in found.items():
        if isinstance(names, dict):
            print(f"{heading}:")
            for name, text in names.items():
                print(f"  {name:16} {text}")
    return 0


@app.command()
def lessons(
    plan: Annotated[str | None, typer.Option("--plan", help="the 50-minute plan of a lesson, for a teacher")] = None,
    new: Annotated[str | None, typer.Option("--new", help="write the skeleton of a lesson, such as c8_my_subject")] = None,
    out: Annotated[str, typer.Option("--out", help="the folder that --new writes it in")] = ".",
    json_: Json = False,
) -> int:
    """The lessons in order; `glass run LESSON` runs one, `--plan LESSON` says how to teach it."""
    from glasscluster.scenarios import play

    if new is not None:
        content = play.lesson_skeleton(new, out)
        if json_:
            emit(content)
        else:
            print(f"{content['folder']}: program.py and text.toml; glass run {content['folder']}")
        return 0
    content = play.lesson_plan(plan) if plan is not None else play.lesson_list()
    if json_:
        emit(content)
        return 0
    for row in content["plan"] if plan is not None else content["lessons"]:
        print(
            f"{row['minutes']:6} {row['en']}\n       {row['zh']}"
            if plan is not None
            else f"{row['id']:3} {row['title']} · {row['title_zh']}"
        )
    return 0


@app.command()
def gallery(
    out: Annotated[str, typer.Option(help="folder to write to")] = "site",
    backend: Backend = None,
    only: Annotated[str | None, typer.Option(help="lessons, as L0,E4 [default: all]")] = None,
    json_: Json = False,
) -> int:
    """Run every lesson and write an index of their reports that opens from disk."""
    with progress() as say:
        say("glass gallery: running the lessons")
        from glasscluster.scenarios.gallery import build

        index, rows = build(out, backend or "threads", only.split(",") if only else None, say)
    if json_:
        emit({"schema": "glass.gallery/1", "index": str(index), "cards": rows})
    else:
        for r in rows:
            counts = f"{r['held']} held, {r['failed']} failed, {r['not_applicable']} not applicable"
            print(f"{r['status']:8} {r['id']:4} {counts}")
        print(f"{len(rows)} lessons: {index}")
    return 1 if any(r["status"] == "FAIL" for r in rows) else 0


@app.command()
def doctor(json_: Json = False) -> int:
    """What this machine has: Python, torch, Ray, GPUs, a browser; and what to do where something is missing."""
    with progress() as say:
        say("glass doctor: looking at this machine")
        from glasscluster.scenarios.jobs import checkup

        rows: list[dict[str, Any]] = checkup.examine()
    ok = all(r["ok"] for r in rows if r["needed"])
    if json_:
        emit({"schema": "glass.doctor/1", "version": __version__, "ok": ok, "items": rows})
    else:
        for r in rows:
            print(
                f"{'ok     ' if r['ok'] else 'MISSING' if r['needed'] else 'without'} {r['name']:16} {r['found']}"
                + (f"\n        {r['advice']}" if r["advice"] else "")
            )
    return 0 if ok else 3


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="a run folder or a graph.npz")],
    hardware: Hardware = "classroom",
    slow_rank: Annotated[list[str] | None, typer.Option(help="R:FACTOR, a straggler; may be repeated")] = None,
    rendezvous: Annotated[bool, typer.Option("--rendezvous", help="a message starts when its receiver is there")] = False,
    contention: Annotated[bool, typer.Option("--contention/--no-contention", help="messages share ports and links")] = False,
    out: Out = None,
    json_: Json = False,
) -> int:
    """Put a recorded run on other hardware: no torch, no ranks, milliseconds."""
    from glasscluster.scenarios.jobs import stored

    content = stored.replay_stored(run, hardware, stored.slow_ranks(slow_rank or []), rendezvous, contention, out)
    if json_:
        emit(content)
    else:
        print(f"{content['makespan_s'] * 1e3:.4f} ms on {content['hardware']} (virtual); bubble {content['bubble_fraction']:.1%}, "
              f"exposed communication {content['exposed_comm_s'] * 1e3:.4f} ms")  # fmt: skip
        if content["report"]:
            print(f"report: {content['report']}")
    return 0


@app.command()
@planned
def predict(
    given: dict,
    model: Preset = "tiny",
    hardware: Hardware = "classroom",
    rank: Annotated[str, typer.Option(help="whose memory: max | last | a rank")] = "max",
    slow_rank: Annotated[list[str] | None, typer.Option(help="R:FACTOR, a straggler; may be repeated")] = None,
    expand: Annotated[bool, typer.Option("--expand", help="replay every GPU (this version always does)")] = False,
    csv: Annotated[str | None, typer.Option(help="a file of rows, option names with _ as header")] = None,
    out: Annotated[str | None, typer.Option(help="with --csv: the file to write")] = None,
    json_: Json = False,
) -> int:
    """What a plan will cost on some hardware, recorded dry: shapes only, no partners, the strategies' own code."""
    if csv is not None:
        with progress() as say:
            say(f"glass predict: rows of {csv}")
            from glasscluster.scenarios.jobs import prediction

            done, bad, path = prediction.predict_csv(
                csv, out, {"model": model, "hardware": hardware, **given}, partial(plan_and_model, runs=False), say
            )
        if json_:
            emit({"schema": "glass.predict-csv/1", "rows": done, "errors": bad, "out": str(path)})
        else:
            print(f"{done} rows, {bad} with an error: {path}")
        return 0
    plan, shape = plan_and_model(given, model, runs=False)
    with progress() as say:
        say(f"glass predict: {plan.gpus} GPUs, {shape.parameters():,} parameters")
        from glasscluster.scenarios.jobs import prediction, stored

        slow = stored.slow_ranks(slow_rank or [])
        content = prediction.predict(plan, shape, hardware, rank=rank, slow=slow, advised=True, say=say)
    if json_:
        emit(content)
        return 0
    print(f"{content['iteration_time_s'] * 1e3:.4g} ms a step on {content['hardware']} (virtual), MFU {content['mfu']:.1%}, "
          f"bubble {content['bubble_fraction']:.1%}, peak memory {content['peak_memory_gib']:.3f} GiB"
          + ("" if content["fits"] else ": DOES NOT FIT"))  # fmt: skip
    if not content["fits"]:
        for held in content["residents"]:
            many = f" (x {held['count']})" if held["count"] > 1 else ""
            print(f"  {held['bytes'] / 2**30:8.3f} GiB  {held['category']}, {held['called']}{many}")
        for fit in content["would_fit"]:
            gib, ms = fit["peak_memory_bytes"] / 2**30, fit["iteration_time_s"] * 1e3
            print(f"would fit: {fit['options']}  ({gib:.3f} GiB, {ms:.4g} ms a step)")
    return 0


@app.command()
def collective(
    operation: Annotated[
        str, typer.Argument(help="all-reduce | reduce-scatter | all-gather | broadcast | reduce | scatter | gather | all-to-all | barrier")
    ],
    gpus: Annotated[int, typer.Option(help="ranks")],
    size: Annotated[str, typer.Option(help="the full buffer of a rank, such as 64MiB (a barrier has none)")] = "",
    algorithm: Annotated[
        str,
        typer.Option(
            help="ring | tree | double-tree | recursive-doubling | halving-doubling | hierarchical | direct | parameter-server | nccl, ..."
        ),
    ] = "ring",
    hardware: Annotated[str, typer.Option(help="whose links")] = "classroom",
    nodes: Annotated[int | None, typer.Option(help="spread the GPUs over this many nodes")] = None,
    topology: Annotated[
        str | None,
        typer.Option(
            help="instead of hardware: ring | switch | fully-connected | line | mesh2d | torus2d | torus3d | hypercube | fat-tree | rail | "
            "nvlink-mesh | pcie-tree | FILE.json (networkx node-link, with bandwidth and latency on its edges)"
        ),
    ] = None,
    bandwidth: Annotated[str | None, typer.Option(help="of every link of the topology, such as 25GB/s")] = None,
    latency: Annotated[str | None, typer.Option(help="of a cable between GPUs, or of passing one switch, such as 2us")] = None,
    overhead: Annotated[str | None, typer.Option(help="on the sender's port, such as 1us")] = None,
    dims: Annotated[str | None, typer.Option(help="of a mesh or torus, such as 4x8 [default: as square as can be]")] = None,
    leaf: Annotated[int | None, typer.Option(help="GPUs under a leaf switch of a fat tree [default: about √N]")] = None,
    oversubscription: Annotated[float | None, typer.Option(help="of a fat tree's uplinks: 2 = half the bandwidth up")] = None,
    placement: Annotated[str | None, typer.Option(help="rank r stands on GPU ...: identity | reversed | random:SEED | 0,2,1,3")] = None,
    contention: Annotated[
        bool | None, typer.Option("--contention/--no-contention", help="messages share links [default: where links are shared]")
    ] = None,
    servers: Annotated[int | None, typer.Option(help="shards of a parameter server [default: one a GPU]")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="also time sizes LOW:HIGH, each four times the one before, or gpus=LOW:HIGH; may be repeated")
    ] = None,
    against: Annotated[str | None, typer.Option(help="other algorithms in the sweeps, as tree,nccl")] = None,
    out: Annotated[str | None, typer.Option(help="write a report here: stepper, traffic, load of the links, sweeps")] = None,
    json_: Json = False,
) -> int:
    """One collective on some wires: time, bytes, steps, bus bandwidth, busiest link. Recorded dry: no data moves."""
    with progress() as say:
        say(f"glass collective: {operation} by {algorithm} on {gpus} GPUs")
        from glasscluster.scenarios.jobs import collective as lab
        from glasscluster.scenarios.jobs.wires import wires

        def make(n: int) -> Any:
            shape = {"dims": dims, "leaf": leaf, "oversubscription": oversubscription}
            return wires(n, hardware, nodes, topology, bandwidth, latency, overhead, placement, **shape)

        asked = lab.Asked(operation, algorithm, gpus, lab.parse_buffer(operation, size), make(gpus), servers, contention)
        others = [name for name in (against or "").split(",") if name]
        content = lab.collective(asked, make, nodes=nodes, sweeps=sweep or [], against=others, out=out, say=say)
    if json_:
        emit(content)
        return 0
    print(f"{content['time_s'] * 1e3:.5g} ms (virtual, {content['hardware']}), "
          f"bus bandwidth {content['bus_bandwidth_bytes_per_s'] / 1e9:.4g} GB/s")  # fmt: skip
    if "nccl" in content:
        chosen = content["nccl"]
        print(f"NCCL would choose {chosen['algorithm']} with {chosen['protocol']} on {chosen['channels']} channels")
    else:
        link = content["busiest_link"]
        shared = "messages share links" if content["contention"] else "no link is shared" if contention is None else "without contention"
        print(f"{content['steps']} steps, {content['messages']} messages, busiest GPU sends {max(content['bytes_sent_per_gpu']):,} bytes; "
              f"busiest link {link['from']} → {link['to']}, {link['utilisation_fraction']:.0%} ({shared})")  # fmt: skip
    for row in content.get("sweep", []):
        print(f"{row['algorithm']:20} {row['gpus']:6} GPUs {row['size_bytes']:>16,} B  {row['time_s'] * 1e6:12.5g} µs  "
              f"{row['bus_bandwidth_bytes_per_s'] / 1e9:10.4g} GB/s bus")  # fmt: skip
    if "report" in content:
        print(f"report: {content['report']}")
    return 0


@app.command()
def schedule(
    name: Annotated[str, typer.Argument(help=f"{' | '.join(SCHEDULES)}; with --validate any name")],
    pp: Annotated[int, typer.Option(min=1, help="pipeline ranks")],
    micro_batches: Annotated[int, typer.Option(min=1, help="micro-batches")],
    virtual_stages: Annotated[int | None, typer.Option(min=1, help="chunks of the model on a rank (1; 2 where folded)")] = None,
    costs: Annotated[str, typer.Option(help="of a chunk: f forward, b whole backward, w its weight part; c a hop")] = "f=1,b=2,w=1,c=0",
    validate: Annotated[str | None, typer.Option(help="a schedule file to judge instead: one line a rank")] = None,
    json_: Json = False,
) -> int:
    """A pipeline schedule as data: its actions, makespan, bubbles and live micro-batches."""
    from glasscluster.scenarios.jobs import stored

    try:
        content = stored.schedule_content(name, pp, micro_batches, costs, validate, virtual_stages)
    except (Deadlock, InputError) as problem:
        if validate is not None and (isinstance(problem, Deadlock) or problem.field == "schedule"):
            problem.exit_code = 1  # the file was read and judged, and did not pass
        raise
    if json_:
        emit(content)
        return 0
    for number, actions in enumerate(content["ranks"]):
        print(f"rank {number}: {' '.join(actions)}")
    share, over = content["bubble_fraction"], content["bubble_over_ideal"]
    span = content["stage_span_bubble_fraction"]
    print(f"makespan {content['makespan']:g}, bubble {share:.1%} of total, {over:.1%} over ideal, {span:.1%} of the largest stage's span")
    print(f"chunks live at most {content['peak_live']}, messages {content['messages']}")
    return 0


# ---- the way out -------------------------------------------------------------------------------------------------
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")  # typer brings click along, or within
_Aborts: Any = (typer.Abort, KeyboardInterrupt)


def fail(error: Any, arguments: list[str]) -> int:
    """Name the error on standard error (and as JSON on standard output when asked); no traceback."""
    named = error if isinstance(error, GlassError) else _usage(error, arguments)
    content, code = named.as_dict(), named.exit_code
    if "--json" in arguments:
        emit({"schema": "glass.error/1", **content, "exit_code": code})
    if is_leader() or code == 3:
        print(f"{content['error']}: {content['message']}", file=sys.stderr, flush=True)
    return code


def _usage(error: Any, arguments: list[str]) -> InputError:
    """What the option parser found, in our words: field, value, rule, nearest."""
    text = str(getattr(error, "message", "") or error)
    parameter = getattr(error, "param", None)
    spelled = list(getattr(parameter, "opts", None) or [getattr(error, "option_name", None) or "command"])
    field = spelled[0].lstrip("-").replace("-", "_")
    value = next((v for o, v in zip(arguments, [*arguments[1:], ""], strict=False) if o in spelled), "")
    value = value or next((a.partition("=")[2] for a in arguments if a.partition("=")[0] in spelled), "")
    if field == "command" and arguments:
        value = arguments[0]
    return InputError(field, value, text.rstrip("."), getattr(error, "possibilities", None))


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 the run failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    out = sys.stdout
    if "--json" in arguments:  # Ray's own helpers print to standard output, too
        console.answers, sys.stdout = out, sys.stderr
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="glass", standalone_mode=False)
    except _Aborts:
        print("interrupted", file=sys.stderr)
        code = 130
    except (GlassError, _UsageError) as problem:
        code = fail(problem, arguments)
    except typer.Exit as done:
        code = done.exit_code
    finally:
        console.answers, sys.stdout = None, out
    out.flush()
    sys.exit(code if isinstance(code, int) else 0)
