"""The rules in conftest.py hold."""

import os
import socket

import pytest


def test_a_connection_to_another_host_fails_the_test() -> None:
    with socket.socket() as sock, pytest.raises(pytest.fail.Exception, match="no network"):
        sock.connect(("192.0.2.1", 80))


def test_a_name_lookup_fails_the_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="no network"):
        socket.getaddrinfo("example.org", 443)


def test_a_connection_to_this_host_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        assert client.getpeername() == server.getsockname()


def test_hub_libraries_are_told_to_stay_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
