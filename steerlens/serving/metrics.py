"""What a server has done, as text for Prometheus."""

from collections.abc import Mapping

from steerlens.serving.engine import Engine


def metrics(engine: Engine, answered: Mapping[int, int]) -> str:
    """All counters and gauges.

    Args:
        engine: What writes the replies.
        answered: The number of HTTP answers by status.

    >>> print(metrics(Engine(model), {200: 3}).splitlines()[-1])
    steerlens_http_answers_total{status="200"} 3
    """
    counts, load = engine.counts, engine.load
    told: list[tuple[str, str, str, float]] = [
        ("requests_total", "counter", "Prompts taken", counts.requests),
        ("requests_finished_total", "counter", "Prompts replied to", counts.finished),
        ("requests_failed_total", "counter", "Prompts that failed", counts.failed),
        ("requests_cancelled_total", "counter", "Prompts whose client left", counts.cancelled),
        ("prompt_tokens_total", "counter", "Tokens read", counts.prompt_tokens),
        ("generated_tokens_total", "counter", "Tokens written", counts.generated_tokens),
        ("decoding_steps_total", "counter", "Passes of the running batch", counts.steps),
        ("time_to_first_token_seconds_count", "counter", "First tokens", counts.first_tokens),
        (
            "time_to_first_token_seconds_sum",
            "counter",
            "Seconds from submission to the first token",
            counts.first_token_seconds,
        ),
        ("running_rows", "gauge", "Rows of the running batch", load.running_rows),
        ("waiting_requests", "gauge", "Prompts in the queue", load.waiting_requests),
    ]
    lines = [
        line
        for name, kind, text, value in told
        for line in (
            f"# HELP steerlens_{name} {text}.",
            f"# TYPE steerlens_{name} {kind}",
            f"steerlens_{name} {value:.10g}",
        )
    ]
    lines += [
        "# HELP steerlens_http_answers_total HTTP answers by status.",
        "# TYPE steerlens_http_answers_total counter",
        *(
            f'steerlens_http_answers_total{{status="{status}"}} {number}'
            for status, number in sorted(answered.items())
        ),
    ]
    return "\n".join(lines) + "\n"
