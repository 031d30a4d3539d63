"""Requests per second and time to first token of the server, against one by one.

python tests/benchmarks/serving.py [--model smollm2] [--tokens 24] [--clients 1 8 32]

Ratios of one run on an otherwise idle machine; no time is asserted anywhere.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass
from statistics import median

import openai
import torch

import steerlens as sl
from steerlens.serving.plans import Plan
from steerlens.serving.running import in_background, make_service

STARTS = ("What is a good way to", "How do I best", "Tell me how to", "Why would anybody")
ENDS = ("learn a language?", "bake bread?", "sail a boat?", "write a letter?", "keep bees?")


@dataclass(frozen=True)
class Measured:
    """What some clients got, all sending at once."""

    seconds: float
    first_tokens: list[float]

    def rate(self, n):
        return n / self.seconds


async def one_reply(client, model, prompt, tokens):
    """The seconds to the first token of one streamed reply."""
    began = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
    )
    first = 0.0
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    return first


async def measured(address, models, prompts, tokens, at_once):
    """Many requests from so many clients, each sending its next when it has its reply."""
    waiting = list(zip(models, prompts, strict=True))
    firsts = []

    async def client_sends(client):
        while waiting:
            firsts.append(await one_reply(client, *waiting.pop(0), tokens))

    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
        began = time.perf_counter()
        await asyncio.gather(*(client_sends(client) for _ in range(at_once)))
        return Measured(time.perf_counter() - began, firsts)


def one_by_one(model, prompts, steering, tokens):
    """The same replies by `generate`, one call after the other."""
    began = time.perf_counter()
    for prompt in prompts:
        sl.generate(model, [prompt], steering, max_new_tokens=tokens, progress=False)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = sl.load_model(options.model)
    n, tokens = options.requests, options.tokens
    prompts = [f"{STARTS[i % 4]} {ENDS[i % 5]}" for i in range(n)]
    layer = model.cfg.n_layers // 2
    generator = torch.Generator().manual_seed(0)
    plans = [
        sl.Steering(sl.SteeringVector(directions, (layer,)), [layer], 0.1)
        for directions in torch.randn(n, 1, model.cfg.d_model, generator=generator)
    ]
    named = [Plan(f"p{i}", (plan,), "random") for i, plan in enumerate(plans)]
    ways = {
        "unsteered": ["m"] * n,
        "one plan": ["m+p0"] * n,
        f"{n} plans": [f"m+p{i}" for i in range(n)],
    }
    print(f"{options.model}, {n} × {tokens} tokens: requests/s (median seconds to the first token)")
    print("clients", *ways, sep="\t")
    with in_background(make_service(model, named, name="m")) as address:
        asyncio.run(measured(address, ways["unsteered"][:4], prompts[:4], 4, 4))  # warms up
        for at_once in options.clients:
            got = [
                asyncio.run(measured(address, names, prompts, tokens, at_once))
                for names in ways.values()
            ]
            cells = [f"{one.rate(n):.2f} ({median(one.first_tokens):.2f})" for one in got]
            print(at_once, *cells, sep="\t", flush=True)
    alone = [f"{n / one_by_one(model, prompts, way, tokens):.2f}" for way in (None, plans[0])]
    print("generate", *alone, sep="\t")


if __name__ == "__main__":
    main()
