"""What `glass doctor` is asked for."""

from __future__ import annotations

from pydantic import Field

from glasscluster.base.requests import Request


class DoctorRequest(Request):
    """Asks what this machine has, or what of a model from outside is recognised."""

    model: str | None = Field(
        None,
        description="a config.json or its folder: its parameters, what is recognised in it, what is refused, "
        "and why [default: look at this machine]",
    )
