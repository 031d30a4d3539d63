"""A steering that does what a prompt does: a direction, and how far each token is moved by it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.reading import every_token
from steerlens.data.asking import Asking
from steerlens.data.prompts import Prompt
from steerlens.errors import SteerlensError
from steerlens.learning.learning import default_layer
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import tokenize
from steerlens.numerics import unit
from steerlens.steering.conditions import Condition
from steerlens.steering.generation import generate
from steerlens.steering.similarities import projection
from steerlens.steering.soft_gates import Relu, SoftGate
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Weights of the probe's squared size that are tried, in units of the activations' mean square."""
HELD_OUT = 8
"""One prompt in so many tells how well the probe does on others."""

Samples = Float[Tensor, "token d_model"]
OfText = Float[Tensor, "_ d_model"]
"""The tokens of one of several texts, which differ in length."""


class Probe(NamedTuple):
    """A linear function of one activation: how far a token is moved."""

    weights: Float[Tensor, " d_model"]
    bias: float

    def of(self, activations: Samples) -> Float[Tensor, " token"]:
        """The prediction for each token; what is below 0 is no push."""
        return (einsum(activations, self.weights, "token d, d -> token") + self.bias).relu()


def imitate_prompt(
    model: Model,
    prompts: Sequence[Prompt],
    asking: Asking,
    layer: int | None = None,
    *,
    max_new_tokens: int = 30,
    progress: bool = True,
) -> Steering:
    """Steer as far, at each token, as asking in the prompt would have moved it.

    Asking moves different tokens by very different amounts (arXiv 2605.03907). The replies to the
    prompts that ask are read twice: with the request before them, and without. The direction is the
    mean of the differences; the amount is predicted at each token, from its own activation, by a
    linear probe and ReLU. Both are in closed form: nothing is learned by gradient.

    Args:
        model: The model.
        prompts: Prompts of all kinds; an eighth of them tells how good the probe is on others.
        asking: How it is asked: `system_message`, `instruction` or `few_shot` of `steerlens.data`.
        layer: Read and steered; default: a third of the way up.
        max_new_tokens: Length of the replies that are read.
        progress: False hides the bars.

    Returns:
        A steering whose strength 1 imitates the prompt, at attention sinks excepted. The vector's
        provenance has `explained`, the share of the amounts' variance on the prompts held out.

    Raises:
        SteerlensError: Fewer than 8 prompts, or a request that changes nothing.

    >>> from steerlens.data.asking import instruction
    >>> like = imitate_prompt(model, prompts * 2, instruction("Be brief."), 2, max_new_tokens=4)
    >>> print(like.when_token.condition)
    how far asking (instruction) moves a token
    """
    if len(prompts) < HELD_OUT:
        raise SteerlensError(
            f"got {len(prompts)} prompts; expected at least {HELD_OUT}, one of which is held out"
        )
    layer = default_layer(model.cfg.n_layers) if layer is None else layer
    plain: list[OfText] = []
    asked: list[OfText] = []
    texts = _pairs_of_texts(model, prompts, asking, max_new_tokens, progress)
    with progress_bar(len(prompts), "reply", progress, what="reading") as bar:
        for without, with_, n_common in texts:
            for ids, into in ((without, plain), (with_, asked)):
                stream = every_token(model, ids, [("resid_post", layer)])["resid_post", layer]
                into.append(stream[-n_common:])
            bar.update()
    moved = [after - before for before, after in zip(plain, asked, strict=True)]
    known = [index for index in range(len(prompts)) if index % HELD_OUT]
    direction = unit(reduce(torch.cat([moved[i] for i in known]), "token d -> d", "mean"))
    if not direction.any():
        raise SteerlensError(
            f"asking ({asking.name}) does not change the activations of layer {layer}; ask for "
            "something, or read a later layer"
        )
    amounts = [einsum(one, direction, "token d, d -> token") for one in moved]
    probe, explained = _best_probe(plain, amounts)
    return _imitating(model, layer, direction, probe, asking, explained)


def fit_probe(activations: Samples, amounts: Float[Tensor, " token"], ridge: float) -> Probe:
    """Ridge regression of amounts on activations, in closed form and float64.

    Args:
        activations: One for each token.
        amounts: What is to be predicted.
        ridge: Weight of the squared size, in units of the activations' mean square per dimension.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0]])
    >>> probe = fit_probe(x, x[:, 0] * 2 + 1, ridge=0.0)
    >>> probe.of(torch.tensor([[5.0, 5.0], [-5.0, 5.0]])).round(decimals=3)
    tensor([11.,  0.])
    """
    x, y = activations.double(), amounts.double()
    mean_x, mean_y = x.mean(dim=0), y.mean()
    centred = x - mean_x
    own = einsum(centred, centred, "token a, token b -> a b")
    own += ridge * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
    across = einsum(centred, y - mean_y, "token d, token -> d")
    weights = torch.linalg.lstsq(own, across[:, None], driver="gelsd").solution[:, 0]
    return Probe(weights.float(), float(mean_y - mean_x @ weights))


def _best_probe(
    plain: Sequence[OfText], amounts: Sequence[Float[Tensor, " _"]]
) -> tuple[Probe, float]:
    """The probe that does best on prompts held out, and the share of variance it explains there."""
    known = [index for index in range(len(plain)) if index % HELD_OUT]
    others = [index for index in range(len(plain)) if not index % HELD_OUT]
    x, y = (torch.cat([of[i] for i in known]) for of in (plain, amounts))
    new_x, new_y = (torch.cat([of[i] for i in others]) for of in (plain, amounts))
    spread = (new_y - new_y.mean()).square().sum()
    probes = [fit_probe(x, y, ridge) for ridge in RIDGES]
    explained = [1 - float((probe.of(new_x) - new_y).square().sum() / spread) for probe in probes]
    best = max(range(len(probes)), key=explained.__getitem__)
    return probes[best], explained[best]


def _pairs_of_texts(
    model: Model, prompts: Sequence[Prompt], asking: Asking, max_new_tokens: int, progress: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Each reply to a prompt that asks: after the plain prompt, after its own; tokens in common.

    Tokens in common are those from the last difference on: user's words, template and reply.
    """
    asked = tokenize(model, [asking(prompt) for prompt in prompts])
    replies = generate(model, asked, max_new_tokens=max_new_tokens, progress=progress).tokens
    for without, with_, reply in zip(tokenize(model, prompts), asked, replies, strict=True):
        short, long = ((*row.ids, *reply) for row in (without, with_))
        same = zip(reversed(short), reversed(long), strict=False)
        n_common = next((i for i, (a, b) in enumerate(same) if a != b), min(len(short), len(long)))
        yield short, long, n_common


def _imitating(
    model: Model, layer: int, direction: Tensor, probe: Probe, asking: Asking, explained: float
) -> Steering:
    size = float(probe.weights.norm())
    known = {**model_provenance(model), "asking": asking.name, "explained": explained}
    vector, read = (
        SteeringVector(of[None], (layer,), provenance={**known, "name": name})
        for of, name in ((direction, "imitated prompt"), (probe.weights, "how far"))
    )
    condition = Condition(
        read,
        layer,
        above=-probe.bias / size,
        similarity=projection,
        name=f"how far asking ({asking.name}) moves a token",
    )
    return Steering(vector, strength=1.0, when_token=SoftGate(condition, Relu(size)))
