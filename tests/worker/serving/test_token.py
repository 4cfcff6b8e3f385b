"""A worker that cannot tell users apart asks for a token, and answers to nobody without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from wuwan_worker.shared import peers, protocol
from wuwan_worker.shared.protocol import (
    Fatal,
    FatalCode,
    Hello,
    LogsRequest,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN = "5e" * 32


def _said(client: Any, token: str, *, tagging: bool) -> Any:
    probe = protocol.probe_descriptor()
    protocol.send_frame(client.sock, Hello(token=token, tagging=tagging), [probe])
    return client.next()


@pytest.mark.parametrize("token", ["", "5e" * 31, TOKEN.upper(), TOKEN + "0", "é" * 64])
@pytest.mark.parametrize("tagging", [True, False])
def test_nobody_without_the_token(
    serve: Callable[..., Any], connect: Callable[[str], Any], token: str, tagging: bool
) -> None:
    """A wrong token is the end of the connection, before any answer, and the worker goes on."""
    server = serve(token=TOKEN)
    client = connect(server.name)
    answer = _said(client, token, tagging=tagging)
    assert isinstance(answer, Fatal)
    assert answer.code == FatalCode.FORBIDDEN
    assert client.ended() == []
    assert isinstance(_said(connect(server.name), TOKEN, tagging=True), Welcome)


@pytest.mark.parametrize("message", [StatusRequest(), LogsRequest(), Stop()])
def test_no_command_before_the_token(
    serve: Callable[..., Any], connect: Callable[[str], Any], message: Any
) -> None:
    """Who says no Hello gets no answer either."""
    server = serve(token=TOKEN)
    client = connect(server.name)
    protocol.send_frame(client.sock, message)
    answer = client.next()
    assert isinstance(answer, Fatal)
    assert server.join(0.1) is None


def test_the_owner_commands(serve: Callable[..., Any], connect: Callable[[str], Any]) -> None:
    """With the token all is as it is elsewhere."""
    server = serve(token=TOKEN)
    client = connect(server.name)
    welcome = _said(client, TOKEN, tagging=False)
    assert isinstance(welcome, Welcome)
    assert welcome.shared
    protocol.send_frame(client.sock, StatusRequest())
    assert isinstance(client.next(), Status)
    protocol.send_frame(client.sock, Stop())
    assert client.next() == Stopping(accepted=True)
    assert server.join() == 0


def test_one_that_is_not_shared_ends_with_its_client(
    serve: Callable[..., Any], connect: Callable[[str], Any]
) -> None:
    """Whatever TTL it is told: nobody else knows its token."""
    server = serve(token=TOKEN, shared=False, ttl=0.0)
    client = connect(server.name)
    probe = protocol.probe_descriptor()
    protocol.send_frame(client.sock, Hello(token=TOKEN, ttl=3600.0), [probe])
    welcome = client.next()
    assert isinstance(welcome, Welcome)
    assert not welcome.shared
    client.close()
    assert server.join() == 0


def test_whoever_is_silent_does_not_keep_it_alive(
    serve: Callable[..., Any], connect: Callable[[str], Any]
) -> None:
    """It may be anybody; an owner's client that comes so late looks for another worker."""
    server = serve(token=TOKEN, ttl=0.0, first_client_timeout=0.2)
    silent = connect(server.name)
    assert server.join(5.0) == 0
    assert silent.next() is None


def test_users_are_told_apart_where_all_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the id that stands for all others is ambiguous, and only in a namespace without them."""
    monkeypatch.setattr(peers, "_overflow", lambda: 65534)
    monkeypatch.setattr(peers, "_maps_all", lambda: False)
    assert peers.ambiguous(65534)
    assert not peers.ambiguous(1000)
    assert not peers.ambiguous(0)
    monkeypatch.setattr(peers, "_maps_all", lambda: True)
    assert not peers.ambiguous(65534)
