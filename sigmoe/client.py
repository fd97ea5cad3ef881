"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import grpc

from sigmoe import messages, results
from sigmoe.sampling import Sampling
from sigmoe.security import Security
from sigmoe.status import Attempts, RetryPolicy
from sigmoe.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:50051"
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 64 * 1024 * 1024),)


class Stream:
    """The chunks of one request as they come. Iterate it, or call `result` for the whole.

    Nothing is sent before the first chunk is asked for. Leaving it early cancels the request on the server.
    """

    def __init__(self, start: Callable[[float | None], Any], attempts: Callable[[], Attempts]) -> None:
        self._start = start
        self._attempts = attempts
        self._call: Any = None

    def __iter__(self) -> Iterator[results.Chunk]:
        attempts = self._attempts()
        while True:
            has_answered = False
            self._call = self._start(attempts.timeout_s())
            try:
                for response in self._call:
                    has_answered = True
                    yield messages.chunk(response)
                return
            except grpc.RpcError as error:
                wait_s = attempts.wait_s(error, has_answered=has_answered)
            finally:
                self._call.cancel()
            time.sleep(wait_s)

    def result(self) -> results.Completion:
        """Wait for the end and join everything."""
        return messages.completion(self)

    def cancel(self) -> None:
        """Cancel the request; the iterator then raises `Cancelled`."""
        if self._call is not None:
            self._call.cancel()


class Client:
    """Talks to one gateway. Safe to use from several threads; close it, or use it as a context manager.

    `timeout_s` is the deadline of each call, retries included; None waits for ever.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        security: Security | None = None,
    ) -> None:
        """Without `security` the connection is in clear. Raises ValueError for files of it that are wrong."""
        self._channel = (
            grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
            if security is None
            else grpc.secure_channel(address, security.credentials(), options=CHANNEL_OPTIONS)
        )
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        self._admin = admin_service_pb2_grpc.AdminServiceStub(self._channel)
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()

    def generate(
        self,
        prompt: messages.Prompt,
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        return_token_ids: bool = False,
        whole: bool = False,
    ) -> Stream:
        """Continue a text or a list of token ids."""
        request = messages.generate_request(
            prompt, sampling or Sampling(), priority=priority, return_token_ids=return_token_ids, whole=whole
        )
        return Stream(lambda timeout_s: self._inference.Generate(request, timeout=timeout_s), self._attempts)

    def chat(
        self,
        turns: Iterable[messages.Message],
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        return_token_ids: bool = False,
        whole: bool = False,
    ) -> Stream:
        """Answer a conversation: `[{"role": "user", "content": "What is asthma?"}]`."""
        request = messages.chat_request(
            turns, sampling or Sampling(), priority=priority, return_token_ids=return_token_ids, whole=whole
        )
        return Stream(lambda timeout_s: self._inference.Chat(request, timeout=timeout_s), self._attempts)

    def score(self, prompt: messages.Prompt, *, top_logprobs: int = 0) -> results.Score:
        """Log-probabilities of a text of at least two tokens."""
        request = messages.score_request(prompt, top_logprobs=top_logprobs)
        return messages.score(self._unary(self._inference.Score, request))

    def tokenize(self, text: str | Iterable[messages.Message]) -> results.Tokens:
        """Token ids of a text, or of a conversation as the model will see it."""
        return messages.tokens(self._unary(self._inference.Tokenize, messages.tokenize_request(text)))

    def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        request = inference_service_pb2.DetokenizeRequest(ids=ids, skip_special_tokens=skip_special_tokens)
        return str(self._unary(self._inference.Detokenize, request).text)

    def model(self) -> results.Model:
        """Facts of the served model."""
        return messages.model(self._unary(self._inference.GetModel, inference_service_pb2.GetModelRequest()))

    def cluster(self) -> results.Cluster:
        """A snapshot of the cluster."""
        return messages.cluster(self._unary(self._admin.GetCluster, admin_service_pb2.GetClusterRequest()))

    def events(self, *, after_id: int = 0, follow: bool = False) -> Iterator[results.FleetEvent]:
        """What happened to the fleet after an event; with `follow` for ever, as it happens."""
        attempts = self._attempts()
        while True:
            request = admin_service_pb2.ListEventsRequest(after_id=after_id, follow=follow)
            call = self._admin.ListEvents(request, timeout=attempts.timeout_s())
            try:
                for response in call:
                    for event in response.events:
                        after_id = event.id
                        attempts = self._attempts() if follow else attempts
                        yield messages.fleet_event(event)
                return
            except grpc.RpcError as error:
                wait_s = attempts.wait_s(error)  # the next call goes on where this one broke off
            finally:
                call.cancel()
            time.sleep(wait_s)

    def close(self) -> None:
        """Close the connection; calls under way end with `Cancelled`."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unary(self, method: Callable[..., Any], request: Any) -> Any:
        attempts = self._attempts()
        while True:
            try:
                return method(request, timeout=attempts.timeout_s())
            except grpc.RpcError as error:
                wait_s = attempts.wait_s(error)
            time.sleep(wait_s)

    def _attempts(self) -> Attempts:
        return Attempts(self._retry, self._timeout_s)
