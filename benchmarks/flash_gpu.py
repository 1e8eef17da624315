"""The Triton kernel on a GPU beside torch's flash and cuDNN attention.

    python -m benchmarks.flash_gpu [--out docs/attention-gpu.md]

Goals: at least 1.0 times the TFLOP/s of torch's flash backend forward and 0.9 times backward. Needs torch,
triton and this repository alone. Times are medians of `triton.testing.do_bench`, all kernels in one process,
bfloat16, 16,384 tokens in all; FLOPs are Eq 30's 4 N n d a head forward and 2.5 times that backward, half of
it under a causal mask, whoever computes more. Before a shape is timed, our errors are held against a float64
reference: at most twice those of plain torch in bfloat16.

    --interpret    no GPU: walk the same path at tiny sizes under Triton's interpreter; figures mean nothing
    --compile 90   no GPU: compile every variant for that compute capability; registers, stack (spills) and
                   shared memory of each
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

LENGTHS, HEADS, TOKENS, WIDTH = (512, 1024, 2048, 4096, 8192, 16384), (64, 128), 16384, 2048
GOALS = {"forward": 1.0, "backward": 0.9}
OTHERS = {"torch flash": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
CHECKED = 2048  # tokens of the longest sequence that is held against float64


def flops(b: int, a: int, n: int, d: int, causal: bool, way: str) -> float:
    """Of the products of one pass."""
    return 4 * b * a * n * n * d * (0.5 if causal else 1) * (1 if way == "forward" else 2.5)


def clock(interpret: bool) -> Callable[[Callable[[], Any]], float]:
    """Milliseconds of a call."""
    if not interpret:
        import triton

        return lambda call: triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median")

    def once(call: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        call()
        return (time.perf_counter() - begun) * 1e3

    return once


def ours(q: Any, k: Any, v: Any, d_out: Any, causal: bool) -> tuple[Callable, Callable]:
    """Our two passes, ready to be called."""
    from glasscluster.model.kernels.flash import triton as flash_triton

    out, lse = flash_triton.forward(q, k, v, causal)
    backward = partial(flash_triton.backward, d_out, q, k, v, out, lse, causal)
    return partial(flash_triton.forward, q, k, v, causal), backward


def torchs(
    backend: str | None,
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    causal: bool,
) -> tuple[Callable, Callable]:
    """The two passes of one of torch's backends; backward alone is timed on a graph that is kept."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def forward() -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)) if backend else nullcontext():
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)

    out = forward()
    return forward, lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True)


def worst(q: Any, k: Any, v: Any, d_out: Any, causal: bool) -> float:
    """Largest of our errors over plain torch's in the same type: of the output and of three gradients."""
    import torch

    from glasscluster.model.kernels.flash import triton as flash_triton
    from glasscluster.model.layers.attention import unfused_attention

    def plain(*tensors: Any) -> list[Any]:
        leaves = [x.detach().requires_grad_() for x in tensors[:3]]
        out = unfused_attention(*leaves, causal)
        return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]

    part = [x[:1, :2] for x in (q, k, v, d_out)]
    out, lse = flash_triton.forward(*part[:3], causal)
    found = [out, *flash_triton.backward(part[3], *part[:3], out, lse, causal)]
    truth = plain(*(x.double() for x in part))
    triples = zip(found, plain(*part), truth, strict=True)
    return max(((x - t).abs().max() / (y - t).abs().max()).item() for x, y, t in triples)


def measured(interpret: bool) -> Iterator[dict[str, Any]]:
    """A row for each head size, mask and length, the longest first: its tiles are tuned for all."""
    import torch

    device, timed = ("cpu" if interpret else "cuda"), clock(interpret)
    lengths, tokens, width = ((32, 16), 32, 128) if interpret else (LENGTHS[::-1], TOKENS, WIDTH)
    others: dict[str, str | None] = {"torch math": None} if interpret else dict(OTHERS)
    for d in HEADS:
        for causal in (False, True):
            for n in lengths:
                b, a = tokens // n, width // d
                shape = (b, a, n, d)
                q, k, v, d_out = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(4))
                row: dict[str, Any] = {"head": d, "causal": causal, "n": n, "b": b, "a": a, "errors": None}
                if n <= CHECKED:
                    row["errors"] = worst(q, k, v, d_out, causal)
                variants: dict[str, Callable] = {"ours": lambda *x: ours(*x)}
                variants |= {name: partial(torchs, backend) for name, backend in others.items()}
                for name, make in variants.items():
                    try:
                        passes = make(q, k, v, d_out, causal)
                        ms = [timed(each) for each in passes]
                    except RuntimeError as error:  # this GPU or this build of torch lacks the backend
                        print(f"{name} at {row}: {str(error).splitlines()[0]}", file=sys.stderr)
                        continue
                    for way, t in zip(("forward", "backward"), ms, strict=True):
                        row[f"{name} {way}"] = flops(b, a, n, d, causal, way) / t / 1e9
                yield row


def table(rows: list[dict[str, Any]], machine: str, names: list[str]) -> str:
    """Markdown: TFLOP/s, ours over torch's flash backend, errors."""
    cells = [f"{name} {way}" for way in GOALS for name in names]
    reference = names[1]
    ratio_names = [f"ours / {reference}, {way}" for way in GOALS]
    head = ["d", "mask", "N", *cells, *ratio_names, "error / plain torch's"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    ratios: dict[str, list[float]] = {way: [] for way in GOALS}
    for row in rows:
        figures = [f"{row[c]:.1f}" if c in row else "none" for c in cells]
        for way in GOALS:
            known = f"{reference} {way}" in row and f"ours {way}" in row
            ratios[way] += [row[f"ours {way}"] / row[f"{reference} {way}"]] if known else []
            figures.append(f"{ratios[way][-1]:.2f}" if known else "none")
        figures.append("not held" if row["errors"] is None else f"{row['errors']:.2f}")
        shape = [str(row["head"]), "causal" if row["causal"] else "none", f"{row['n']:,}"]
        lines.append("| " + " | ".join([*shape, *figures]) + " |")
    said = [
        f"{way}: median {median(r):.2f}, least {min(r):.2f} (goal {GOALS[way]:.1f})"  # of all shapes
        for way, r in ratios.items()
        if r
    ]
    what = "bfloat16, TFLOP/s of the mathematics' products, by `python -m benchmarks.flash_gpu`"
    title = f"# Attention on a GPU\n\n{machine}. {what}.\n"
    return "\n".join([title, *lines, "", f"Ours over {reference}, " + "; ".join(said) + "."]) + "\n"


def compiled(arch: int, heads: list[int], first: bool, window_and_cap: bool) -> Iterator[str]:
    """A line for each kernel, head size, mask and tile size, compiled for `sm_<arch>`.

    first: only the causal kernels with the first of their tile sizes; window_and_cap: those that have both.
    """
    from glasscluster.model.kernels.flash import triton as flash_triton

    for way, kernel in flash_triton.KERNELS.items():
        for d in heads:
            for causal in (True,) if first else (True, False):
                for config in flash_triton.NARROW[way][: 1 if first else None]:
                    fixed = {"HEAD": d, "WIDTH": d, "GROUP": 1, "CAUSAL": causal, "PRECISION": "tf32"}
                    fixed |= {"WINDOW": window_and_cap, "CAP": window_and_cap, **config.kwargs}
                    mask = ("causal" if causal else "all pairs") + ", window, cap" * window_and_cap
                    tiles = f"{fixed['ROWS']}x{fixed['COLS']}"
                    tiles += f" {config.num_warps} warps {config.num_stages} stages"
                    yield f"sm_{arch} {way} d {d} {mask} {tiles}: {binary(kernel, fixed, config, arch)}"


def binary(kernel: Any, fixed: dict[str, Any], config: Any, arch: int) -> str:
    """Compile a kernel of bfloat16 tensors; what a thread and a program of it take."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    kinds = dict.fromkeys(kernel.arg_names, "i32") | {"scale": "fp32", "cap": "fp32"}
    kinds |= dict.fromkeys(fixed, "constexpr")
    kinds |= {name: "*bf16" for name in ("q", "k", "v", "out", "d_out", "dq", "dk", "dv") if name in kinds}
    kinds |= {name: "*fp32" for name in ("lse", "delta") if name in kinds}
    whole = [i for i, name in enumerate(kernel.arg_names) if kinds[name] in ("i32", "*bf16", "*fp32")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in whole}
    source = ASTSource(kernel, kinds, constexprs=fixed, attrs=aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        call = [dump, "--dump-resource-usage", file.name]
        used = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    registers, stack = (used.partition(f"{what}:")[2].split()[0] for what in ("REG", "STACK"))
    wgmma = ", wgmma" if "wgmma" in made.asm["ptx"] else ""
    return f"{registers} registers, {stack} B stack, {made.metadata.shared} B shared{wgmma}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="also write the table to this Markdown file")
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--compile", type=int, nargs="*", metavar="CAPABILITY")
    parser.add_argument("--head", type=int, nargs="+", default=list(HEADS), help="with --compile: head sizes")
    parser.add_argument("--first", action="store_true", help="with --compile: causal, first tile size")
    parser.add_argument(
        "--window-and-cap", action="store_true", help="with --compile: kernels that have both"
    )
    asked = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1" if asked.interpret else "0"  # before triton is imported
    import torch

    if asked.compile is not None:
        for arch in asked.compile or [80, 90]:
            for line in compiled(arch, asked.head, asked.first, asked.window_and_cap):
                print(line, flush=True)
        return
    if not asked.interpret and not torch.cuda.is_available():
        instead = "--interpret walks the path without one, --compile 90 compiles for one"
        print(f"torch sees no GPU: {instead}", file=sys.stderr)
        sys.exit(2)
    import triton

    pretended = "the interpreter on a CPU, figures mean nothing"
    machine = pretended if asked.interpret else torch.cuda.get_device_name()
    machine += f"; torch {torch.__version__}, Triton {triton.__version__}"
    rows = []
    for row in measured(asked.interpret):
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    page = table(rows, machine, ["ours", "torch math"] if asked.interpret else ["ours", *OTHERS])
    print(page)
    if asked.out:
        Path(asked.out).write_text(page)
    if any(row["errors"] is not None and row["errors"] > 2 for row in rows):
        sys.exit("an error is more than twice plain torch's")


if __name__ == "__main__":
    main()
