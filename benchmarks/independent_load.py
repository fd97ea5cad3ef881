r"""The same load from another load generator, locust (https://locust.io), to check `sigmoe loadtest` against.

    pip install locust            # in an environment of its own; nothing here needs it
    locust -f benchmarks/independent_load.py --headless --users 4 --spawn-rate 100 --run-time 41s \
        --host 127.0.0.1:50051 --skip-log
    sigmoe loadtest --address 127.0.0.1:50051 --concurrency 4 --warmup 10 --duration 30 \
        --workload random --input-tokens 32 --output-tokens 64 --temperature 0

Run both at the same time against one server, so that they meet the same machine. This one times calls of the plain gRPC
stubs in greenlets, and prints the figures of the requests that began in the 30 seconds after the first 10 as JSON.
"""

import json
import random
import statistics
import time
from typing import Any

import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import User, events, task  # type: ignore[import-not-found, unused-ignore]

from sigmoe.v1 import inference_service_pb2, inference_service_pb2_grpc, types_pb2

grpc_gevent.init_gevent()

WARMUP_S, MEASURED_S = 10.0, 30.0
INPUT_TOKENS, OUTPUT_TOKENS, VOCABULARY = 32, 64, 4096
_begun_s = 0.0
_seen: list[tuple[float, float, float, int]] = []  # beginning, first response, end, tokens


class Asker(User):  # type: ignore[misc, unused-ignore]
    """Asks again as soon as it has its answer."""

    def on_start(self) -> None:
        """A channel of its own."""
        self.stub = inference_service_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(self.host))

    @task  # type: ignore[untyped-decorator, unused-ignore]
    def ask(self) -> None:
        """One answer of a given length to random tokens."""
        ids = [random.randrange(3, VOCABULARY) for _ in range(INPUT_TOKENS)]
        sampling = types_pb2.SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
        request = inference_service_pb2.GenerateRequest(
            tokens=types_pb2.TokenIds(ids=ids), sampling=sampling, return_token_ids=True
        )
        begun_s, first_s, tokens = time.perf_counter(), 0.0, 0
        for response in self.stub.Generate(request):
            first_s = first_s or time.perf_counter()
            tokens += len(response.token_ids)
        ended_s = time.perf_counter()
        _seen.append((begun_s, first_s, ended_s, tokens))
        self.environment.events.request.fire(
            request_type="grpc",
            name="Generate",
            response_time=1000 * (ended_s - begun_s),
            response_length=tokens,
            exception=None,
        )


@events.test_start.add_listener  # type: ignore[untyped-decorator, unused-ignore]
def _begin(**_: Any) -> None:
    global _begun_s
    _begun_s = time.perf_counter()


@events.quitting.add_listener  # type: ignore[untyped-decorator, unused-ignore]
def _report(**_: Any) -> None:
    start_s = _begun_s + WARMUP_S
    inside = [one for one in _seen if start_s <= one[0] < start_s + MEASURED_S]
    ended = [one for one in _seen if start_s <= one[2] < start_s + MEASURED_S]
    ttft = sorted(one[1] - one[0] for one in inside)
    e2e = sorted(one[2] - one[0] for one in inside)
    figures = {
        "requests": len(inside),
        "requests_per_s": len(ended) / MEASURED_S,
        "output_tokens_per_s": sum(one[3] for one in ended) / MEASURED_S,
        "ttft_p50_ms": 1000 * statistics.median(ttft),
        "ttft_mean_ms": 1000 * statistics.fmean(ttft),
        "e2e_p50_ms": 1000 * statistics.median(e2e),
        "e2e_mean_ms": 1000 * statistics.fmean(e2e),
    }
    print(json.dumps(figures))
