"""The shape of the model that a request asks for."""

from __future__ import annotations

from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError, is_path
from glasscluster.model.weights.families.base import alike, meant
from glasscluster.scenarios.requests.parts import ModelRequest
from glasscluster.strategies.plan import make_model


def model_of(request: ModelRequest) -> ModelConfig:
    """A preset with what was given otherwise, or the shape in the folder of weights that was named."""
    if request.shape is not None:
        return request.shape
    found = read_model(str(request.given["weights"]), **request.shape_given)
    model = str(request.given.get("model", ""))
    if model and is_path(model):
        check_same(make_model(model, **request.shape_given), found, model)
    return found


def read_model(weights: str, **given: Any) -> ModelConfig:
    """The shape in a folder; InputError naming what is wrong with it."""
    try:
        with hugging_face.Weights(weights, **given) as found:
            return found.config
    except WeightsError as problem:
        raise InputError("weights", weights, str(problem)) from None


def check_same(asked: ModelConfig, found: ModelConfig, path: str) -> None:
    """InputError where --model names another shape than the weights have."""
    mine, theirs = meant(asked), meant(found)
    for name, value in mine.items():
        if not alike(theirs.get(name), value):
            rule = f"says {name} = {value}, the config.json of the weights {theirs.get(name)}"
            raise InputError("model", path, rule)
