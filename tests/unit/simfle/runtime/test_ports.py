import socket

from simfle.runtime.ports import free_port


def test_a_free_port_can_be_listened_on() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", free_port()))
        first.listen()
        assert free_port() != first.getsockname()[1]
