"""`steerlens serve` in a process of its own, ended by Ctrl-C."""

import json
import re
import signal
import subprocess
import sys

import httpx
import pytest
from helpers import random_vector

import steerlens as sl

pytestmark = pytest.mark.slow


def test_the_command_serves_until_it_is_interrupted(tiny_chat, tmp_path):
    vector = random_vector(tiny_chat, scale=1.0)
    vector.save(tmp_path / "sea.safetensors")
    command = [sys.executable, "-m", "steerlens", "serve", "sea.safetensors"]
    options = ["--layers", "3", "--strength", "0.5", "--port", "0", "--patience", "30"]
    with subprocess.Popen(
        [*command, *options],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = process.stdout.readline()
        [address] = re.findall(r"http://\S+/v1", said)
        body = {
            "model": "tiny-chat+sea", "temperature": 0, "max_tokens": 100, "stream": True,
            "messages": [{"role": "user", "content": "Hi."}],
        }  # fmt: skip
        expected = sl.generate(
            tiny_chat, ["Hi."], sl.Steering(vector, [3], 0.5), max_new_tokens=100, progress=False
        )
        with httpx.stream("POST", f"{address}/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            events = [line.removeprefix("data: ") for line in lines if line]
        assert events.pop() == "[DONE]"
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == expected[0]
        assert len(choices) > 10
        assert process.wait(60) == 130
        assert process.stderr.read().strip() == "stopped"
