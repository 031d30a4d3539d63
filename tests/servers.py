"""Servers in a thread, for tests and benchmarks."""

from contextlib import contextmanager
from threading import Thread

import openai

from steerlens.serving.running import bound, serve


@contextmanager
def served(service, patience=5):
    """The address of a running server, and the server; it is stopped at the end."""
    listening, servers = bound("127.0.0.1", 0), []
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    options = {"patience": patience, "started": servers.append}
    thread = Thread(target=serve, args=(service, listening), kwargs=options)
    thread.start()
    try:
        while not (servers and servers[0].started):
            thread.join(0.01)
            assert thread.is_alive(), "the server has not begun"
        yield address, servers[0]
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


def client_of(address, kind=openai.OpenAI, token="none"):
    """OpenAI's own client of a server."""
    return kind(base_url=f"{address}/v1", api_key=token, max_retries=0, timeout=60)
