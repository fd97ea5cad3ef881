"""How a client makes sure of the server, and the server of the client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """PEM files for TLS, and a token.

    ca: authorities, one of which the server's certificate must come from; cert and key: the client's own, where the
    server asks for one (mutual TLS); token: a file with the token that the server asks for; it is never sent in clear.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    token: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes. Raises ValueError naming what is wrong with which file."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls: a certificate and its key belong together")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.ca)
        except OSError as error:  # also what ssl raises
            raise ValueError(f"tls: {self.ca} holds no certificate: {error}") from None
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=lambda: b"")
            except OSError as error:
                raise ValueError(f"tls: {self.cert} and {self.key} are no certificate and its key: {error}") from None
        ours = grpc.ssl_channel_credentials(
            self.ca.read_bytes(),
            None if self.key is None else self.key.read_bytes(),
            None if self.cert is None else self.cert.read_bytes(),
        )
        if self.token is None:
            return ours
        return grpc.composite_channel_credentials(ours, grpc.access_token_call_credentials(self._token()))

    def _token(self) -> str:
        assert self.token is not None
        try:
            text = self.token.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token: {self.token} can not be read: {error}") from None
        if not text or not text.isascii() or not text.isprintable():
            raise ValueError(f"token: {self.token} holds no token: one line of ASCII is")
        return text
