"""OpenAI's own client of a server, for tests and benchmarks."""

import openai


def client_of(address, kind=openai.OpenAI, token="none"):
    return kind(base_url=f"{address}/v1", api_key=token, max_retries=0, timeout=60)
