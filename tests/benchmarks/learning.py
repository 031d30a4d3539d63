"""Learning a vector against the plain loop, which runs the whole model at every step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from contest import Agreement, Job, Rival
from hosts import Hosts, Size, suffix_data
from torch.nn.utils.rnn import pad_sequence

import steerlens as sl
from steerlens.learning.descent import first_directions, train
from steerlens.learning.learning import passes_of, prepared
from steerlens.learning.objectives import reply_likelihood
from steerlens.learning.replies import ReplyPair

SAME_LOSS = 1e-2
"""Largest difference of the last losses, in nats: small ones of the first steps grow."""


class Learned(NamedTuple):
    """What a loop came to."""

    vector: torch.Tensor
    losses: list[float]


def ours(model: Any, job: Any, norms: torch.Tensor) -> Learned:
    """What `learn` does once its lessons are chosen: keep what is below, then step."""
    lessons = job.lessons
    passes = passes_of(model, job.plan, lessons.texts, progress=False)
    found = train(passes, reply_likelihood, lessons.steps, [], norms, job.training, progress=False)
    return Learned(found.directions[0].cpu(), found.losses)


def plain(
    logits: Callable[[torch.Tensor], torch.Tensor],
    block: torch.nn.Module,
    steps: Sequence[Sequence[ReplyPair]],
    norms: torch.Tensor,
    training: sl.Training,
    width: int,
    device: str,
) -> Learned:
    """A hook on one block, padded batches, all logits, Adam on one vector; no weight gradients."""
    start = first_directions(norms, width, training.seed)[0].to(device)
    vector = start.clone().requires_grad_()
    rate = training.learning_rate * float(norms[0]) / width**0.5
    optimizer = torch.optim.Adam([vector], lr=rate)

    def add(_module: Any, _given: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        stream = torch.cat([stream[:, :1], stream[:, 1:] + vector], dim=1)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle, losses = block.register_forward_hook(add), []
    for pairs in steps:
        texts = [pair.wanted for pair in pairs]
        rows = [torch.tensor(text.ids, device=device) for text in texts]
        logs = logits(pad_sequence(rows, batch_first=True)).log_softmax(dim=-1)
        means = [
            logs[i, text.start - 1 : text.end - 1]
            .gather(1, rows[i][text.start : text.end, None])
            .mean()
            for i, text in enumerate(texts)
        ]
        loss = -torch.stack(means).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    handle.remove()
    return Learned(vector.detach().cpu(), losses)


def same_loss(mine: Learned, theirs: Learned) -> Agreement:
    gap = abs(mine.losses[-1] - theirs.losses[-1])
    cosine = torch.cosine_similarity(mine.vector, theirs.vector, dim=0).item()
    return Agreement(f"last loss |diff| {gap:.1g} nats, cos {cosine:.4f}", gap < SAME_LOSS)


def learning(hosts: Hosts, size: Size) -> Iterator[Job]:
    """At a third and at two thirds of the depth."""
    data = suffix_data(size.questions, 4)
    n_layers = hosts.ours.cfg.n_layers
    hosts.hf.requires_grad_(False)
    for layer, at_least in ((n_layers // 3, 2), (2 * n_layers // 3, 3)):
        training = sl.Training(steps=size.learned_steps, held_out=0)
        job, norms = prepared(hosts.ours, data, layer, training=training), torch.ones(1)
        loop = partial(
            plain,
            lambda ids: hosts.hf(ids).logits,
            hosts.hf.model.layers[layer],
            job.lessons.steps,
            norms,
            training,
            hosts.ours.cfg.d_model,
            hosts.device,
        )
        yield Job(
            f"learning at layer {layer} of {n_layers}, {training.steps} steps",
            partial(ours, hosts.ours, job, norms),
            [Rival("the plain loop", loop, same_loss, at_least=at_least)],
            model=hosts.ours,
        )
