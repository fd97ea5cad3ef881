"""The sigmoe client: SDK and command line. Imports neither torch nor ray.

>>> from sigmoe import Client
>>> with Client() as client:
...     print(client.chat([{"role": "user", "content": "What is asthma?"}]).result().text)
"""

from sigmoe.async_client import AsyncClient, AsyncStream
from sigmoe.client import Client, Stream
from sigmoe.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerFailure,
    SigmoeError,
    Unavailable,
    Violation,
)
from sigmoe.results import Choice, Chunk, Cluster, Completion, FleetEvent, Model, Score, Tokens, Usage
from sigmoe.sampling import Sampling
from sigmoe.security import Security
from sigmoe.status import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Choice",
    "Chunk",
    "Client",
    "Cluster",
    "Completion",
    "DeadlineExceeded",
    "FleetEvent",
    "InvalidRequest",
    "Model",
    "Overloaded",
    "RetryPolicy",
    "Sampling",
    "Score",
    "Security",
    "ServerFailure",
    "SigmoeError",
    "Stream",
    "Tokens",
    "Unavailable",
    "Usage",
    "Violation",
]
