"""A server without a model: it answers at once, or at a given pace. What a client costs is measured against it.

    python -m benchmarks.null_server --port 25000 [--interval-ms 150] [--tokens 5] [--first-ms 0]

It speaks as much of sigmoe.v1 as a load test needs. A request for `max_tokens` gets that many, `--tokens` in each
response, the first response after `--first-ms`, the others `--interval-ms` apart. Responses are serialised once, so
that little of a shared machine's time is the server's.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from sigmoe.v1 import admin_service_pb2 as admin
from sigmoe.v1 import inference_service_pb2 as inference
from sigmoe.v1 import types_pb2

DEFAULT_TOKENS = 128  # of a request that names no max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How answers come; 0 seconds is at once."""

    first_s: float = 0.0
    interval_s: float = 0.0
    tokens_per_response: int = 1


def handlers(pace: Pace) -> list[grpc.GenericRpcHandler]:
    """Both services, as far as they answer."""
    streams = {
        "Generate": _stream(inference.GenerateRequest, pace),
        "Chat": _stream(inference.ChatRequest, pace),
        "GetModel": _constant(inference.GetModelResponse(name="null", vocab_size=4096, max_context=1 << 20)),
    }
    snapshot = {"GetCluster": _constant(admin.GetClusterResponse(model="null", server_version="null"))}
    return [
        grpc.method_handlers_generic_handler("sigmoe.v1.InferenceService", streams),
        grpc.method_handlers_generic_handler("sigmoe.v1.AdminService", snapshot),
    ]


def _constant(message: Any) -> grpc.RpcMethodHandler:
    answer = message.SerializeToString()

    async def behaviour(_: bytes, __: Any) -> bytes:
        return bytes(answer)

    return grpc.unary_unary_rpc_method_handler(behaviour)


def _stream(kind: Any, pace: Pace) -> grpc.RpcMethodHandler:
    body = _response(pace.tokens_per_response).SerializeToString()
    ends: dict[tuple[int, int], bytes] = {}

    async def behaviour(request: Any, context: Any) -> None:
        num_tokens = request.sampling.max_tokens or DEFAULT_TOKENS
        full, rest = divmod(num_tokens - 1, pace.tokens_per_response)
        last = ends.setdefault((num_tokens, rest + 1), _end(num_tokens, rest + 1))
        if pace.first_s:
            await asyncio.sleep(pace.first_s)
        for index in range(full + 1):
            if index and pace.interval_s:
                await asyncio.sleep(pace.interval_s)
            await context.write(body if index < full else last)

    return grpc.unary_stream_rpc_method_handler(behaviour, request_deserializer=kind.FromString)


def _response(num_tokens: int) -> inference.GenerateResponse:
    """Chat's responses have the same fields under the same numbers."""
    return inference.GenerateResponse(request_id="0" * 16, text=" word" * num_tokens, token_ids=range(num_tokens))


def _end(num_tokens: int, num_last: int) -> bytes:
    usage = types_pb2.Usage(prompt_tokens=16, output_tokens=num_tokens)
    response = _response(num_last)
    response.finish_reason = types_pb2.FINISH_REASON_LENGTH
    response.usage.CopyFrom(usage)
    return bytes(response.SerializeToString())


async def serve(pace: Pace, port: int, on_port: Callable[[int], None]) -> None:
    """Serve until cancelled; `on_port` hears where."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers(handlers(pace))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    on_port(bound)
    await server.wait_for_termination()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--first-ms", type=float, default=0.0)
    parser.add_argument("--interval-ms", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=1)
    options = parser.parse_args()
    pace = Pace(
        first_s=options.first_ms / 1000, interval_s=options.interval_ms / 1000, tokens_per_response=options.tokens
    )
    asyncio.run(serve(pace, options.port, lambda port: print(f"listening on {port}", flush=True)))


if __name__ == "__main__":
    main()
