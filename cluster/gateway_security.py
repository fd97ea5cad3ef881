"""TLS and tokens of the gateway's port: files are read once, at the start; the last lines say who may call."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

_OPEN = "/grpc.health.v1.Health/"  # probes carry no token, and learn nothing but whether it serves


class SecurityMistake(OSError):
    """A file is missing or wrong; the message names its key in the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySecurity:
    """Paths of PEM files and of the token's file, on the gateway's machine; "": there is none."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""  # clients must show a certificate of these authorities
    token: str = ""

    def credentials(self) -> grpc.ServerCredentials | None:
        """What gRPC takes; None: the port is in clear. Raises SecurityMistake."""
        if not self.cert:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert, key = _read("gateway.tls_cert", self.cert), _read("gateway.tls_key", self.key)
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except OSError as error:  # also what ssl raises
            names = f"gateway.tls_cert, gateway.tls_key: {self.cert} and {self.key}"
            raise SecurityMistake(f"{names} are no certificate and its key: {error}") from None
        authorities = None
        if self.client_ca:
            authorities = _read("gateway.tls_client_ca", self.client_ca)
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                message = f"gateway.tls_client_ca: {self.client_ca} holds no certificate: {error}"
                raise SecurityMistake(message) from None
        return grpc.ssl_server_credentials([(key, cert)], authorities, authorities is not None)

    def interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        """What asks callers for the token, if there is one. Raises SecurityMistake."""
        if not self.token:
            return ()
        token = _read("gateway.token_path", self.token).strip()
        if not token or not token.isascii() or not token.decode().isprintable():
            raise SecurityMistake(f"gateway.token_path: {self.token} holds no token: one line of ASCII is")
        return (_TokenGuard(token),)


class _TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    def __init__(self, token: bytes) -> None:
        self._wanted = b"Bearer " + token

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """Let a call pass that has the token; a handler that refuses it otherwise."""
        handler = await continuation(details)
        given = [value for name, value in details.invocation_metadata if name == "authorization"]
        # The comparison takes as long for a token that is nearly right as for any other.
        is_right = any(hmac.compare_digest(_bytes(value), self._wanted) for value in given)
        if handler is None or is_right or details.method.startswith(_OPEN):
            return handler
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        message = "the token is not this server's" if given else "this server asks for a token, and there is none"

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)

        return make(refuse, handler.request_deserializer, handler.response_serializer)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _read(key: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SecurityMistake(f"{key}: {path}: {error.strerror}") from None
