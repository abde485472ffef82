"""relay/upstream.py through proxies: plain HTTP, a tunnel to HTTPS, SOCKS5; and what a proxy that refuses is called."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp.connector
import pytest
from asgiref.sync import async_to_sync
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.errors import UpstreamUnreachable
from relay.providers.base import UpstreamRequest
from relay.upstream import Timers, UpstreamClient
from tests.listening import Serve, listening

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
BASIC = b"proxy-authorization: basic dtpw"  # u:p


class Seen(list[bytes]):
    """What arrived: at the upstream, and at the proxy in front of it."""


def upstream(seen: Seen) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
            writer.write(ANSWER)

    return serve


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection(host, port)
    await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))


def http_proxy(seen: Seen, *, to: int) -> Serve:
    """Answers as the upstream would, or opens a tunnel to port `to`; wants u:p."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head)
            if BASIC not in head.lower():
                writer.write(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            if head.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await joined(reader, writer, "127.0.0.1", to)
                return
            await reader.readexactly(2)
            writer.write(ANSWER)

    return serve


def socks_proxy(seen: Seen, *, to: int) -> Serve:
    """RFC 1928 with the user and password of RFC 1929; connects to port `to` whatever is asked for."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        methods = await reader.readexactly(2)
        await reader.readexactly(methods[1])
        writer.write(b"\x05\x02")
        user = await reader.readexactly((await reader.readexactly(2))[1])
        password = await reader.readexactly((await reader.readexactly(1))[0])
        seen.append(user + b":" + password)
        writer.write(b"\x01\x00")
        kind = (await reader.readexactly(4))[3]
        host = await reader.readexactly((await reader.readexactly(1))[0]) if kind == 3 else await reader.readexactly(4)
        seen.append(host)
        await reader.readexactly(2)
        writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        await joined(reader, writer, "127.0.0.1", to)

    return serve


async def ask(client: UpstreamClient, url: str, *, proxy: str = "") -> tuple[int, bytes]:
    answer = await client.open(UpstreamRequest("POST", url, ((b"x-a", b"1"),), b"{}"), proxy=proxy)
    try:
        return answer.status, await answer.read(limit=100)
    finally:
        await answer.close()


def run(story: Callable[[UpstreamClient], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        client = UpstreamClient(timers=Timers(connect=2))
        try:
            await story(client)
        finally:
            await client.close()

    async_to_sync(whole)()


def test_a_plain_upstream_behind_an_http_proxy_is_asked_for_by_its_whole_address_twice_on_one_connection() -> None:
    async def story(client: UpstreamClient) -> None:
        seen = Seen()
        async with listening(http_proxy(seen, to=0)) as port:
            for _ in range(2):
                assert await ask(client, "http://api.test/v1/x?b=%2F", proxy=f"http://u:p@127.0.0.1:{port}") == (
                    200,
                    b"hi",
                )
        assert [head.split(b"\r\n")[0] for head in seen] == [b"POST http://api.test/v1/x?b=%2F HTTP/1.1"] * 2
        assert b"\r\nhost: api.test\r\n" in seen[0].lower()

    run(story)


def test_a_proxy_that_does_not_know_us_is_named_and_not_taken_for_the_upstream(tls: ssl.SSLContext) -> None:
    async def story(client: UpstreamClient) -> None:
        seen = Seen()
        async with listening(http_proxy(seen, to=0)) as port:
            with pytest.raises(UpstreamUnreachable) as caught:
                await ask(client, "https://api.test/v1/x", proxy=f"http://u:wrong@127.0.0.1:{port}")
        assert caught.value.reason == "proxy"
        assert seen[0].startswith(b"CONNECT api.test:443 HTTP/1.1\r\n")

    run(story)


def test_an_https_upstream_behind_an_http_proxy_is_asked_through_a_tunnel_and_never_told_of_the_proxy(
    tls: ssl.SSLContext,
) -> None:
    async def story(client: UpstreamClient) -> None:
        at_proxy, at_upstream = Seen(), Seen()
        async with listening(upstream(at_upstream), tls) as there, listening(http_proxy(at_proxy, to=there)) as port:
            for _ in range(2):
                proxy = f"http://u:p@127.0.0.1:{port}"
                assert await ask(client, f"https://127.0.0.1:{there}/v1/x", proxy=proxy) == (200, b"hi")
        assert [head.split(b" ")[0] for head in at_proxy] == [b"CONNECT"]
        assert [head.split(b"\r\n")[0] for head in at_upstream] == [b"POST /v1/x HTTP/1.1"] * 2
        assert b"proxy-authorization" not in b"".join(at_upstream).lower()

    run(story)


@pytest.mark.parametrize("host", ["127.0.0.1", "api.test"])
def test_a_socks_proxy_gets_the_name_and_the_upstream_the_request(host: str) -> None:
    async def story(client: UpstreamClient) -> None:
        at_proxy, at_upstream = Seen(), Seen()
        async with listening(upstream(at_upstream)) as there, listening(socks_proxy(at_proxy, to=there)) as port:
            assert await ask(client, f"http://{host}:{there}/v1/x", proxy=f"socks5://u:p@127.0.0.1:{port}") == (
                200,
                b"hi",
            )
        assert at_proxy == [b"u:p", b"api.test" if host == "api.test" else b"\x7f\x00\x00\x01"]
        assert at_upstream[0].startswith(f"POST /v1/x HTTP/1.1\r\nHost: {host}:{there}\r\n".encode())

    run(story)


def test_an_https_upstream_is_asked_directly_and_its_certificate_is_looked_at(tls: ssl.SSLContext) -> None:
    async def story(client: UpstreamClient) -> None:
        seen = Seen()
        async with listening(upstream(seen), tls) as port:
            assert await ask(client, f"https://127.0.0.1:{port}/v1/x") == (200, b"hi")
            with pytest.raises(UpstreamUnreachable) as caught:
                await ask(client, f"https://localhost:{port}/v1/x")
        assert (caught.value.reason, len(seen)) == ("tls", 1)

    run(story)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The context of an upstream whose certificate, for 127.0.0.1 alone, this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream.test")])
    now = datetime.datetime.now(tz=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    (tmp_path / "both.pem").write_bytes(pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "both.pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "both.pem"))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    return context
