"""The shape of the model that a command's request describes."""

from __future__ import annotations

from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import counted
from glasscluster.model.config import ModelConfig
from glasscluster.model.presets import PRESETS
from glasscluster.model.weights import hugging_face
from glasscluster.model.weights.families import WeightsError, is_path
from glasscluster.model.weights.families.base import alike, meant
from glasscluster.scenarios.requests.parts import ModelRequest
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
    """The shape in a folder of weights, with some fields otherwise.

    Raises:
        InputError: for a field that the tensors do not have, with the value that they have; or for `weights`,
            with what is wrong with the folder.
    """
    try:
        return _shape_in(weights, given)
    except WeightsError as problem:
        said = str(problem)
    try:
        own = _shape_in(weights, {})
    except WeightsError:
        own = None
    for name, value in given.items() if own is not None else ():
        try:
            _shape_in(weights, {name: value})
        except WeightsError:
            rule = f"the tensors of {weights} are of a model with {name} = {getattr(own, name)}"
            raise InputError(name, value, rule, [getattr(own, name)]) from None
    raise InputError("weights", weights, said)


def _shape_in(weights: str, given: dict[str, Any]) -> ModelConfig:
    with hugging_face.Weights(weights, **given) as folder:
        return folder.config


def passed_over(weights: str | None, model: ModelConfig) -> str | None:
    """A sentence about tensors of a folder that the model has no use for; None where there are none."""
    if weights is None:
        return None
    with hugging_face.Weights(weights, model) as folder:
        names = folder.passed_over
        more = [name for name in names if folder.predicts_more(name)]
    if not names:
        return None
    said = (
        f"{weights}: {counted(len(names), 'tensor')} passed over, which the model has no use for: {names[0]}"
    )
    said += ", ..." if names[1:] else ""
    if more:
        said += f"; {len(more)} of the layers that predict more tokens at once (num_nextn_predict_layers)"
    return said


def check_same(requested: ModelConfig, loaded: ModelConfig, path: str) -> None:
    """Refuse a --model that is another shape than the weights have."""
    mine, theirs = meant(requested), meant(loaded)
    for name, value in mine.items():
        if not alike(theirs.get(name), value):
            rule = f"says {name} = {value}, the config.json of the weights {theirs.get(name)}"
            raise InputError("model", path, rule)
