"""TLS and tokens: who is let in, who is not, and what wrong files lead to."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.gateway import CannotListen, Gateway
from cluster.gateway_config import GatewayConfig
from cluster.gateway_security import GatewaySecurity
from sigmoe import AsyncClient, Client, RetryPolicy, Sampling, Security, SigmoeError
from sigmoe.cli import main
from tests.cluster.certificates import Authority
from tests.cluster.checkpoint_folder import END, ROLE_END
from tests.cluster.simulated_executor import SimulatedExecutor

TOKEN = "let-me-in"
GREEDY = Sampling(max_tokens=4, temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Files:
    """A server's files, its authority, and one that nobody knows."""

    ours: Authority
    stranger: Authority
    security: GatewaySecurity

    @property
    def ca(self) -> Path:
        return self.ours.ca


@pytest.fixture
def files(tmp_path: Path) -> Files:
    ours, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    cert, key = ours.certificate("server")
    return Files(ours, stranger, GatewaySecurity(cert=str(cert), key=str(key)))


@asynccontextmanager
async def listening(model_dir: Path, security: GatewaySecurity) -> AsyncIterator[str]:
    executor = SimulatedExecutor(eos=(END, ROLE_END))
    async for _ in executor.start():
        pass
    gateway = Gateway(GatewayConfig(port=0, security=security), executor, model_dir)
    try:
        yield f"127.0.0.1:{await gateway.start()}"
    finally:
        await gateway.stop(grace_s=0.0)
        await executor.stop()


async def ask(address: str, security: Security | None) -> int:
    """Tokens of an answer."""
    async with AsyncClient(address, timeout_s=20.0, security=security, retry=RetryPolicy(max_attempts=1)) as client:
        done = await client.generate([5, 6, 7], GREEDY, return_token_ids=True).result()
        return len(done.choices[0].token_ids)


async def test_whoever_knows_the_authority_talks_to_the_server(model_dir: Path, files: Files) -> None:
    async with listening(model_dir, files.security) as address:
        assert await ask(address, Security(ca=files.ca)) == 4
        for wrong in (None, Security(ca=files.stranger.ca)):
            with pytest.raises(SigmoeError):
                await ask(address, wrong)


async def test_a_server_may_ask_its_clients_for_a_certificate(model_dir: Path, files: Files) -> None:
    security = dataclasses.replace(files.security, client_ca=str(files.ca))
    cert, key = files.ours.certificate("client")
    strange_cert, strange_key = files.stranger.certificate("other-client")
    async with listening(model_dir, security) as address:
        assert await ask(address, Security(ca=files.ca, cert=cert, key=key)) == 4
        for wrong in (Security(ca=files.ca), Security(ca=files.ca, cert=strange_cert, key=strange_key)):
            with pytest.raises(SigmoeError):
                await ask(address, wrong)


async def test_a_token_is_asked_for_in_every_call_but_those_of_health(
    model_dir: Path, files: Files, tmp_path: Path
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"{TOKEN}\n")
    wrong.write_text(f"{TOKEN}2")
    async with listening(model_dir, dataclasses.replace(files.security, token=str(right))) as address:
        assert await ask(address, Security(ca=files.ca, token=right)) == 4
        for token, message in ((wrong, "not this server's"), (None, "there is none")):
            with pytest.raises(SigmoeError, match=f"UNAUTHENTICATED.*{message}"):
                await ask(address, Security(ca=files.ca, token=token))
            async with AsyncClient(address, security=Security(ca=files.ca, token=token)) as client:
                for call in (client.model, client.cluster):
                    with pytest.raises(SigmoeError, match="UNAUTHENTICATED"):
                        await call()
        async with grpc.aio.secure_channel(address, Security(ca=files.ca).credentials()) as channel:
            found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert found.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cert": "/nowhere/cert.pem"}, r"gateway\.tls_cert: /nowhere/cert\.pem: No such file"),
        ({"key": "/nowhere/key.pem"}, r"gateway\.tls_key: /nowhere/key\.pem: No such file"),
        ({"cert": "JUNK"}, r"gateway\.tls_cert, gateway\.tls_key: .* are no certificate and its key"),
        ({"key": "OTHER"}, r"gateway\.tls_cert, gateway\.tls_key: .* are no certificate and its key"),
        ({"client_ca": "JUNK"}, r"gateway\.tls_client_ca: .* holds no certificate"),
        ({"client_ca": "/nowhere/ca.pem"}, r"gateway\.tls_client_ca: /nowhere/ca\.pem: No such file"),
        ({"token": "/nowhere/token"}, r"gateway\.token_path: /nowhere/token: No such file"),
        ({"token": "EMPTY"}, r"gateway\.token_path: .* holds no token"),
    ],
)
async def test_a_server_with_wrong_files_says_which(
    model_dir: Path, files: Files, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    (tmp_path / "JUNK").write_text("no PEM at all")
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "OTHER").write_bytes(files.stranger.certificate("other")[1].read_bytes())
    given = {name: path if path.startswith("/") else str(tmp_path / path) for name, path in changes.items()}
    gateway = Gateway(
        GatewayConfig(port=0, security=dataclasses.replace(files.security, **given)), SimulatedExecutor(), model_dir
    )
    with pytest.raises(CannotListen, match=message):
        await gateway.listen()


def test_a_client_with_wrong_files_says_which(files: Files, tmp_path: Path) -> None:
    junk, empty = tmp_path / "junk", tmp_path / "empty"
    junk.write_text("no PEM")
    empty.write_text("")
    cert, key = files.ours.certificate("client")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ca": tmp_path / "none"}, "none holds no certificate"),
        ({"ca": junk}, "junk holds no certificate"),
        ({"ca": files.ca, "cert": cert}, "belong together"),
        ({"ca": files.ca, "cert": cert, "key": junk}, "no certificate and its key"),
        ({"ca": files.ca, "token": tmp_path / "none"}, "can not be read"),
        ({"ca": files.ca, "token": empty}, "holds no token"),
    ]
    assert Security(ca=files.ca, cert=cert, key=key).credentials() is not None
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            Client("127.0.0.1:1", security=Security(**given))


def test_flags_that_need_tls_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--token-file", "token"]) == 2
    assert "--token-file: needs --tls-ca" in capsys.readouterr().err
