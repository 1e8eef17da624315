"""The shape of the model that a command's request describes."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from glasscluster.base.errors import InputError
from glasscluster.base.limits import check_bytes
from glasscluster.base.requests import rule_of
from glasscluster.base.text import shown
from glasscluster.model.config import ModelConfig
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError
from glasscluster.scenarios.requests.parts import ModelRequest
from glasscluster.sim.run import Cluster
from glasscluster.strategies.numerics.widths import WIDTH


def model_of(request: ModelRequest) -> ModelConfig:
    """The shape of the request's model: a preset with the given fields, or the shape in a folder of
    weights.
    """
    if request.shape is not None:
        return request.shape
    return read_model(str(request.given["weights"]), **request.shape_given)


def read_model(weights: str, **given: Any) -> ModelConfig:
    """The shape in a folder of weights; InputError says what is wrong with the folder."""
    try:
        with hugging_face.Weights(weights, **given) as folder:
            return folder.config
    except WeightsError as problem:
        raise InputError("weights", weights, str(problem)) from None
    except ValidationError as problem:
        raise InputError("weights", weights, f"config.json makes no model: {_first(problem)}") from None


def _first(problem: ValidationError) -> str:
    """The first mistake that was found in a shape: field, value, rule."""
    first = problem.errors()[0]
    said = first.get("ctx", {}).get("error")
    if isinstance(said, InputError):  # a rule of ours
        return said.message
    field = ".".join(map(str, first["loc"])) or "the shape"
    return f"{field} = {shown(repr(first.get('input')))}: {rule_of(first)}"


def check_room(model: ModelConfig, precision: str, cluster: Cluster) -> None:
    """Refuse a model whose weights alone are more than this machine's memory, where they would lie there."""
    if cluster.backend_name != "dry" and cluster.options.get("device", "cpu") == "cpu":
        size = model.parameters()
        check_bytes("model", f"{size:,} parameters", size * WIDTH[precision])
