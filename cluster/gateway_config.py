"""What the gateway needs to know; `cluster/config.py` makes it from the user's configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Fixed for the life of a gateway."""

    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one
    max_requests: int = 2048  # calls admitted at the same time
    resume_timeout_s: float = 60.0  # how long a stream whose rank died waits for one that serves
    model_name: str = ""  # "": the checkpoint folder's name
    dtype: str = ""  # of the computation, as GetModel shows it; "": the checkpoint's
