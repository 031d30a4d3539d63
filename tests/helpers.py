"""Assertions and planted data that several test files share."""

import time
from dataclasses import replace

import torch

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models.sites import hook_name
from steerlens.steering.similarities import projection

PROMPTS = (
    "Hi.",
    "How do I bake bread?",
    "Why?",
    "Tell me about the sea and the ships that sail on it.",
    "Name a colour, please.",
    "What is a good way to learn a language?",
)
"""Of different lengths, so that a batch of them is padded."""


def assert_no_hooks_left(model):
    left = {
        name: hook
        for name, point in model.hook_dict.items()
        for hook in point.fwd_hooks
        if not hook.is_permanent  # a bridge has some of its own
    }
    assert not left


def waited(condition, seconds=30):
    """What a condition says, as soon as it holds or time is over."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return holds


def random_vector(model, seed=0, scale=5.0, **fields):
    """A direction for each layer, strong enough to change what a random model says."""
    generator = torch.Generator().manual_seed(seed)
    directions = scale * torch.randn(model.cfg.n_layers, model.cfg.d_model, generator=generator)
    return sl.SteeringVector(directions, tuple(range(model.cfg.n_layers)), **fields)


def at_each_layer(steering):
    """The steering with its number as the strength of every layer, as other libraries mean it."""
    return replace(steering, strength=[steering.strength] * len(steering.layers_steered))


def splitting_condition(model, prompts=PROMPTS, layer=1, seed=7, **fields):
    """A condition that holds for about half of the prompts, none of them near its threshold."""
    vector = random_vector(model, seed)
    measure = sl.Condition(vector, layer, above=0, similarity=projection, **fields)
    pooled = read_residual(model, prompts, [layer], tokens=measure.tokens, progress=False)
    ordered = measure.measure(pooled[:, 0], layer).sort().values
    middle = len(ordered) // 2
    threshold = (ordered[middle - 1] + ordered[middle]).item() / 2
    return sl.Condition(vector, layer, above=threshold, similarity=projection, **fields)


def planted_pairs(direction, n_pairs=20, n_layers=2, noise=0.1, seed=0):
    """Positive and negative activations that differ by `direction`, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_pairs, n_layers, len(direction))
    shared = torch.randn(shape, generator=generator)
    positive = shared + direction + noise * torch.randn(shape, generator=generator)
    negative = shared - direction + noise * torch.randn(shape, generator=generator)
    return positive, negative


def stream(model, tokens, site="resid_post", layer=0, hooks=()):
    """The stream of one row of tokens at a site, as it is after `hooks`."""
    seen = []
    name = hook_name(model, site, layer)
    look = (name, lambda resid, hook: seen.append(resid.clone()))
    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, look]):
        model(torch.as_tensor(tokens).reshape(1, -1), return_type=None)
    return seen[0][0]


def plain_generate(model, ids, steering, n_new=6, use_cache=True):
    """The host's own `generate` under a steering's hooks; the new tokens."""
    with model.hooks(fwd_hooks=sl.steering_hooks(*steering) if steering else []):
        return host_reply(model, ids, n_new, use_cache)


def host_reply(model, ids, n_new=6, use_cache=True):
    whole = model.generate(
        torch.tensor([ids]),
        max_new_tokens=n_new,
        do_sample=False,
        stop_at_eos=False,
        use_past_kv_cache=use_cache,
        return_type="tokens",
        verbose=False,
    )
    return tuple(whole[0, len(ids) :].tolist())
