"""The shape of the model that a command's request describes."""

from __future__ import annotations

from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.limits import check_bytes
from glasscluster.model.config import ModelConfig
from glasscluster.model.presets import PRESETS
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError, is_path
from glasscluster.model.weights.families.base import alike, meant
from glasscluster.scenarios.requests.parts import ModelRequest
from glasscluster.sim.run import Cluster
from glasscluster.strategies.numerics.widths import WIDTH
from glasscluster.strategies.plan import make_model


def model_of(request: ModelRequest) -> ModelConfig:
    """The shape of the request's model: a preset with the given fields, or the shape in a folder of
    weights.
    """
    if request.shape is not None:
        return request.shape
    config = read_model(str(request.given["weights"]), **request.shape_given)
    model = str(request.given.get("model", ""))
    if model and model not in PRESETS and is_path(model):
        check_same(make_model(model, **request.shape_given), config, model)
    return config


def read_model(weights: str, **given: Any) -> ModelConfig:
    """The shape in a folder of weights; InputError says what is wrong with the folder."""
    try:
        with hugging_face.Weights(weights, **given) as folder:
            return folder.config
    except WeightsError as problem:
        raise InputError("weights", weights, str(problem)) from None


def check_room(model: ModelConfig, precision: str, cluster: Cluster) -> None:
    """Refuse a model whose weights alone are more than this machine's memory, where they would lie there."""
    if cluster.backend_name != "dry" and cluster.options.get("device", "cpu") == "cpu":
        size = model.parameters()
        check_bytes("model", f"{size:,} parameters", size * WIDTH[precision])


def check_same(requested: ModelConfig, loaded: ModelConfig, path: str) -> None:
    """Refuse a --model that is another shape than the weights have."""
    mine, theirs = meant(requested), meant(loaded)
    for name, value in mine.items():
        if not alike(theirs.get(name), value):
            rule = f"says {name} = {value}, the config.json of the weights {theirs.get(name)}"
            raise InputError("model", path, rule)
