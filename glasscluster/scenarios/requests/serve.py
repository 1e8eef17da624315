"""The request of `glass serve`."""

from __future__ import annotations

from pydantic import Field

from glasscluster.base.requests import choice
from glasscluster.scenarios.requests.parts import DecodingRequest

POLICIES = ("continuous", "static")


class ServeRequest(DecodingRequest):
    """Asks for requests to be served: drawn ones, or those of a file."""

    requests: str | None = Field(
        None,
        description='file: a JSON list of {"prompt", "tokens", "arrival_s"} [default: drawn]',
    )
    count: int = Field(12, ge=1, description="requests to draw")
    prompt_length: int = Field(8, ge=1, description="of drawn requests, on average; exponential")
    tokens: int = Field(12, ge=1, description="new tokens of drawn requests, on average; exponential")
    rate: float = Field(
        0.0,
        ge=0,
        description="drawn requests a virtual second; 0: all are there at the start",
    )
    policy: str = choice("continuous", "who joins a batch, and when", POLICIES)
    slots: int = Field(4, ge=1, description="requests that run at once")
    block: int = Field(8, ge=1, description="tokens in a block of the paged cache (continuous)")
    blocks: int = Field(0, ge=0, description="blocks of the pool; 0: the longest request in every slot")
    out: str | None = Field(None, description="folder for a report [default: none is written]")
