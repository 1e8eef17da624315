"""The request of `glass generate`."""

from __future__ import annotations

from pydantic import Field

from glasscluster.base.requests import choice
from glasscluster.scenarios.requests.parts import DecodingRequest

CACHES = ("static", "paged", "sliding", "none")


class GenerateRequest(DecodingRequest):
    """Asks a model to go on with prompts."""

    prompt: list[str] = Field([], description="a text, taken as bytes; may be repeated")
    prompt_length: int = Field(0, ge=0, description="a prompt of so many random tokens instead")
    batch: int = Field(1, ge=1, description="how often each prompt is in the batch")
    tokens: int = Field(16, ge=1, description="new tokens of each sequence")
    cache: str = choice("static", "of keys and values", CACHES)
    block: int = Field(16, ge=1, description="tokens in a block of a paged cache")
    chunk: int = Field(0, ge=0, description="tokens of a prompt taken in at a time; 0: all")
    temperature: float = Field(0.0, ge=0, description="of sampling; 0: the likeliest token")
    sample_top_k: int = Field(0, ge=0, description="draw from the k likeliest tokens; 0: from all")
    sample_top_p: float = Field(
        1.0,
        ge=0,
        le=1,
        description="draw from the likeliest tokens of this probability",
    )

    @property
    def prompts(self) -> list[str]:
        """The texts; one of ours where none was given."""
        return self.prompt or ([] if self.prompt_length else ["def "])
