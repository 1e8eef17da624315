"""The request of `glass evaluate`."""

from __future__ import annotations

from pydantic import Field

from glasscluster.scenarios.requests.names import BACKENDS, one_of
from glasscluster.scenarios.requests.parts import DecodingRequest


class EvaluateRequest(DecodingRequest):
    """Asks for a model's scores on tasks."""

    task: list[str] = Field([], description="a built-in task; may be repeated [default: all]")
    items: int = Field(100, ge=2, description="of each task")
    samples: int = Field(1, ge=1, description="answers to each prompt, for pass@k")
    temperature: float = Field(0.0, ge=0, description="of answers; 0: the likeliest token")
    against: list[str] = Field(
        [],
        description="training text to look for items in: a file, folder or built-in text",
    )
    tokenizer: str | None = Field(None, description="a tokenizer.json [default: bytes]")
    dp: int = Field(1, ge=1, description="ranks that share out the items")
    backend: str = one_of(BACKENDS, "threads", "where ranks run")
