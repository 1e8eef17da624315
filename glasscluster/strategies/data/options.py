"""The options of data parallelism: ZeRO and its buckets, and what takes the place of an all-reduce."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options, Size
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout, divisors

MIB = 1024**2


class DataOptions(Options):
    """dp replicas; with ZeRO they share out optimizer states (1), gradients (2) and parameters (3)."""

    model_config = ConfigDict(title="Data parallelism and ZeRO")

    dp: int = Field(1, ge=1, description="data-parallel replicas")
    zero: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage")
    shard: int = Field(
        0, ge=0, description="neighbours on dp that share out the ZeRO states; 0 means all of dp"
    )
    accumulate: Literal["sharded", "whole"] = Field(
        "sharded", description="gradients of ZeRO-2 and 3 between micro-batches"
    )
    reshard: bool = Field(True, description="ZeRO-3 frees a unit's parameters between forward and backward")
    offload: Literal["none", "optimizer"] = Field("none", description="states kept in host memory")
    bucket: Size = Field(25 * MIB, ge=1, description="size of a gradient bucket, as 25MiB")
    first_bucket: Size = Field(
        MIB,
        ge=1,
        description="size of the first bucket, if smaller than the others, as 1MiB",
    )
    unused: Literal["error", "zero"] = Field("error", description="a parameter that got no gradient")
    overlap: bool = Field(True, description="launch the data-parallel reduction during backward")
    prefetch: int = Field(1, ge=0, description="units ZeRO-3 gathers ahead of use")

    @property
    def bucket_limits(self) -> tuple[int, int]:
        """Bytes at which the first bucket and the others are full."""
        return min(self.first_bucket, self.bucket), self.bucket

    def rules(self, _model: ModelConfig, layout: Layout) -> None:
        """The groups of --shard divide the data ranks evenly, and need a ZeRO stage that shards something."""
        if self.shard and layout.data_ranks % self.shard:
            axes = f"dp = {layout.dp}" if layout.cp == 1 else f"dp x cp = {layout.data_ranks}"
            raise InputError("shard", self.shard, f"must divide {axes}", [0, *divisors(layout.data_ranks)])
        if self.shard and not self.zero:
            raise InputError(
                "shard", self.shard, "needs a ZeRO stage of 1, 2 or 3: stage 0 shards nothing", [0]
            )


class ExchangeOptions(Options):
    """How ranks come to new weights: an all-reduce of gradients, or servers that hold the weights."""

    model_config = ConfigDict(title="Parameter servers")

    exchange: Literal["all-reduce", "parameter-server", "async-server"] = Field(
        "all-reduce", description="how ranks come to new weights"
    )
    servers: int = Field(
        0,
        ge=0,
        description="shards of the parameter server, on the first workers; 0 means one on every worker",
    )
    staleness: int = Field(
        0, ge=0, description="clocks a worker of the async-server may be ahead of the slowest"
    )
    jitter: float = Field(
        0.0,
        ge=0,
        description="async-server: a gradient takes 1 + jitter x Exp(1) times as long when the order is "
        "drawn",
    )

    def rules(self, _model: ModelConfig, layout: Layout) -> None:
        """Servers run on workers' ranks; only asynchronous workers can be ahead of each other."""
        if self.exchange == "all-reduce":
            for field in ("servers", "staleness", "jitter"):
                if getattr(self, field):
                    rule = "needs --exchange parameter-server or async-server"
                    raise InputError(field, getattr(self, field), rule, [0])
            return
        if self.servers > layout.dp:
            rule = f"shards stand on the {layout.dp} workers"
            raise InputError("servers", self.servers, rule, range(layout.dp + 1))
        for field in ("staleness", "jitter"):
            if self.exchange == "parameter-server" and getattr(self, field):
                rule = "the synchronous server waits for everybody; ask for async-server"
                raise InputError(field, getattr(self, field), rule, [0])
