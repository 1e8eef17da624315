"""Number formats by the names that plans use: what torch calls them, how wide they are. Needs no torch."""

from __future__ import annotations

TORCH = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
WIDTH = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}  # bytes of an element
