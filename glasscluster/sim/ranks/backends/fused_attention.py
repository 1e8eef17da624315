"""torch's scaled_dot_product_attention on `meta` tensors: the same operators as on a CPU.

Otherwise a dry run would count textbook attention where a run on CPUs counts a fused kernel.

    torch on a CPU       one fused kernel (..._flash_attention_for_cpu), where its rules allow it
    torch on `meta`      always the textbook: two products, a softmax, N x N scores
    here on `meta`       the fused kernel where a CPU takes it, else the textbook

Registered with torch for this process when the dry backend is first imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.sim.recording.operator_rules import composites

_attention = torch.ops.aten.scaled_dot_product_attention.default
_library = Library("aten", "IMPL")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def fused_on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    gqa: bool,
) -> bool:
    """Whether torch's CPU kernel accepts these inputs; the rules are those of `use_flash_attention_cpp` in
    torch 2.13.
    """
    tensors = (q, k, v)
    if dropout or any(x.dim() != 4 or x.stride(-1) != 1 or x.shape[2] == 0 for x in tensors):
        return False
    (b, a, n, d), (_, heads, m, _) = q.shape, k.shape
    if k.shape != v.shape or k.shape[0] != b or k.shape[3] != d:
        return False
    if a != heads and not (gqa and a % heads == 0):
        return False
    if len({x.dtype for x in tensors}) > 1 or q.dtype not in DTYPES:
        return False
    if mask is None:
        return True
    sides = zip(mask.shape[::-1], (m, n, a, b), strict=False)
    fits = mask.dim() in (2, 4) and all(have in (1, want) for have, want in sides)
    return fits and not causal and not mask.requires_grad and mask.dtype in (torch.bool, q.dtype)


def _on_meta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if not q.is_meta or not fused_on_cpu(q, k, v, attn_mask, dropout_p, is_causal, enable_gqa):
        more = {"scale": scale, "enable_gqa": enable_gqa}
        return _attention.decompose(q, k, v, attn_mask, dropout_p, is_causal, **more)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = torch.scalar_tensor(float("-inf"), dtype=q.dtype, device=q.device)
        attn_mask = torch.where(attn_mask, 0.0, hidden)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


_library.impl("scaled_dot_product_attention", _on_meta, "AutogradMeta")
composites[_attention] = _on_meta  # under torch.inference_mode
