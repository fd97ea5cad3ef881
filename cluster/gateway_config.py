"""What the gateway needs to know; `cluster/config.py` makes it from the user's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.gateway_security import GatewaySecurity


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Fixed for the life of a gateway."""

    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one
    security: GatewaySecurity = field(default_factory=GatewaySecurity)
    metrics_port: int | None = None  # of GET /metrics over HTTP; None: it is not served; 0: any free one
    max_requests: int = 2048  # calls admitted at the same time
    resume_timeout_s: float = 60.0  # how long a stream whose rank died waits for one that serves
    wait_s: float = 0.0  # how long a new call waits where no rank serves; 0: it is refused at once
    slo_first_token_s: float | None = None  # what a good first token takes at most; None: any is good
    slo_token_s: float | None = None  # and a good answer's further tokens, each on average
    background_counts: bool = False  # whether requests of negative priority ask for replicas, too
    model_name: str = ""  # "": the checkpoint folder's name
    dtype: str = ""  # of the computation, as GetModel shows it; "": the checkpoint's
    configuration: str = ""  # the whole of the user's, as JSON, for GetCluster to show
