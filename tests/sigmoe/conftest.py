"""A scripted server: it answers as told, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sigmoe.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
    types_pb2,
)


def rich_status(code: int, message: str, detail: Any) -> Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code, message=message, details=[packed]))


def bad_request(field: str, description: str) -> Any:
    detail = error_details_pb2.BadRequest()
    detail.field_violations.add(field=field, description=description)
    return rich_status(code_pb2.INVALID_ARGUMENT, "invalid request", detail)


def overloaded(retry_after_s: float) -> Any:
    delay = duration_pb2.Duration(nanos=int(retry_after_s * 1e9))
    return rich_status(code_pb2.RESOURCE_EXHAUSTED, "full", error_details_pb2.RetryInfo(retry_delay=delay))


class ScriptedServer(inference_service_pb2_grpc.InferenceServiceServicer, admin_service_pb2_grpc.AdminServiceServicer):
    """`failures` are consumed first, one a call; then every call answers."""

    def __init__(self) -> None:
        self.failures: list[Any] = []
        self.fail_after_first_chunk = False
        self.requests: list[Any] = []
        self.cancelled = threading.Event()
        self.address = ""

    def _begin(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, grpc.StatusCode):
                context.abort(failure, "scripted")
            context.abort_with_status(failure)

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._stream(request, context, inference_service_pb2.GenerateResponse)

    def Chat(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._stream(request, context, inference_service_pb2.ChatResponse)

    def _stream(self, request: Any, context: grpc.ServicerContext, kind: Any) -> Iterator[Any]:
        context.add_callback(self.cancelled.set)
        self._begin(request, context)
        for index in range(max(1, request.sampling.n)):
            yield kind(request_id="r1", index=index, text="Hello ")
            if self.fail_after_first_chunk:
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        for index in range(max(1, request.sampling.n)):
            yield kind(
                request_id="r1",
                index=index,
                text="world",
                finish_reason=types_pb2.FINISH_REASON_LENGTH,
                usage=types_pb2.Usage(prompt_tokens=3, output_tokens=2),
            )

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._begin(request, context)
        return inference_service_pb2.TokenizeResponse(ids=[1, 2], pieces=["He", "llo"])

    def Detokenize(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._begin(request, context)
        return inference_service_pb2.DetokenizeResponse(text="Hello")

    def Score(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._begin(request, context)
        entry = types_pb2.TokenLogprob(token=types_pb2.Candidate(token_id=2, text="llo", logprob=-0.5))
        return inference_service_pb2.ScoreResponse(token_ids=[1, 2], logprobs=[entry], total_logprob=-0.5)

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._begin(request, context)
        return inference_service_pb2.GetModelResponse(name="scripted", vocab_size=10, eos_token_ids=[0])

    def GetCluster(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._begin(request, context)
        ranks = [
            admin_service_pb2.RankStatus(
                rank=r,
                state=admin_service_pb2.RANK_STATE_SERVING,
                experts=[2 * r, 2 * r + 1],
                kv_blocks=10,
                kv_blocks_free=4,
                expert_tokens=[1, 2, 3, 10],
            )
            for r in range(2)
        ]
        fleet = admin_service_pb2.FleetStatus(
            replicas=[admin_service_pb2.ReplicaStatus(replica=0, state=admin_service_pb2.REPLICA_STATE_SERVING)],
            wanted=2,
            min_replicas=1,
            max_replicas=4,
            reason="3 sequences waiting",
            load=admin_service_pb2.FleetLoad(serving_replicas=1, sequences=300, waiting_sequences=3, kv_use=0.5),
        )
        fleet.load.queue_time.FromMilliseconds(2500)
        return admin_service_pb2.GetClusterResponse(model="scripted", epoch=1, ranks=ranks, fleet=fleet)

    def ListEvents(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._begin(request, context)
        for number in range(request.after_id + 1, 5):
            event = admin_service_pb2.FleetEvent(id=number, kind="scale", reason=f"reason {number}")
            event.numbers["wanted"] = number
            if number % 2 == 0:
                event.replica = 0
            yield admin_service_pb2.ListEventsResponse(events=[event])
            if self.fail_after_first_chunk:
                self.fail_after_first_chunk = False
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    grpc_server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(scripted, grpc_server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(scripted, grpc_server)
    scripted.address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
    grpc_server.start()
    yield scripted
    grpc_server.stop(grace=None).wait()
