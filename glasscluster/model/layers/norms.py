"""Which norm a model has: its parameters, and its use by name. The norms are kernels/layer_norm.py and
rms_norm.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from glasscluster.model.kernels.layer_norm import layer_norm
from glasscluster.model.kernels.rms_norm import rms_norm, scale_norm


def declare(module: Any, name: str, width: int, partial: bool = False) -> None:
    """A norm of `width` elements. partial: it is used on a tensor rank's own heads, so each rank has a part
    of its gradient.
    """
    config, std = module.config, module.config.init_std
    one = config.norm == "scalenorm"
    module.weight(
        f"{name}_weight", 1 if one else width, std=std, mean=width**0.5 if one else 1.0, partial=partial
    )
    if config.norm == "layernorm" and config.bias:
        module.weight(f"{name}_bias", width, std=std, partial=partial)


def norm(module: Any, name: str, x: Tensor) -> Tensor:
    """Over the last dimension of x."""
    config, weight = module.config, getattr(module, f"{name}_weight")
    if config.norm == "layernorm":
        return layer_norm(x, weight, module.get(f"{name}_bias"), config.norm_eps)
    return (rms_norm if config.norm == "rmsnorm" else scale_norm)(x, weight, config.norm_eps)
