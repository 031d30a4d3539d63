"""Jobs that write text: decoding, gated replies, what steering costs, sweeps."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import cast
import numpy as np
import torch
from contest import Agreement, Job, Rival
from hosts import Hosts, Size, mixed_pairs

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.models.fast_forward import decoding_cache, forward_pass
from steerlens.models.host import new_cache, next_logits
from steerlens.steering.batch_plans import BatchPlan

Rows = Sequence[Sequence[int]]


def ours(hosts: Hosts, rows: Rows, steering: Any, new_tokens: int) -> sl.Replies:
    return sl.generate(
        hosts.ours,
        rows,
        steering,
        max_new_tokens=new_tokens,
        batch_size=len(rows),
        progress=False,
    )


def stock(hosts: Hosts, rows: Rows, new_tokens: int) -> Rows:
    """The host's own `generate`."""
    tokens, _ = hosts.padded(rows)
    text = hosts.stock.generate(
        tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        stop_at_eos=False,
        padding_side="left",
        prepend_bos=False,
        verbose=False,
    )
    return text[:, tokens.shape[1] :].tolist()


@torch.no_grad()
def hugging_face(hosts: Hosts, rows: Rows, new_tokens: int) -> Rows:
    tokens, mask = hosts.padded(rows)
    text = hosts.hf.generate(
        tokens,
        attention_mask=mask.long(),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return text[:, tokens.shape[1] :].tolist()


def same_tokens(ours: Any, theirs: Rows, *, among: Sequence[int] | None = None) -> Agreement:
    """Share of equal tokens; where rounding decides one, the rest of that reply may differ."""
    tokens = list(getattr(ours, "tokens", ours))
    kept = range(len(tokens)) if among is None else among
    if not kept:
        return Agreement("no row to compare", False)
    mine, other = (np.array([list(rows[row]) for row in kept]) for rows in (tokens, theirs))
    share = float((mine == other).mean()) if mine.shape == other.shape else 0.0
    of = "" if among is None else f" of {len(kept)} rows that did not fire"
    return Agreement(f"{share:.2%} of tokens equal{of}", share > 0.97)


def same_tokens_and_logits(hosts: Hosts, rows: Rows, ours: Any, theirs: Rows) -> Agreement:
    """Also, on the same text, that our passes' logits are those of the host's own cached passes."""
    tokens = same_tokens(ours, theirs)
    gap = _logits_gap(hosts, rows, torch.tensor(ours.tokens))
    return Agreement(f"{tokens.text}; logits max |diff| {gap:g}", tokens.holds and gap == 0)


@torch.no_grad()
def _logits_gap(hosts: Hosts, rows: Rows, reply: torch.Tensor) -> float:
    tokens, mask = hosts.padded(rows)
    reply = reply.to(tokens.device)

    def decoded(model: Any, cache: Any) -> torch.Tensor:
        every = [next_logits(model, tokens, mask.int(), cache)]
        for step in range(reply.shape[1] - 1):
            new = reply[:, step : step + 1]
            every.append(next_logits(model, new, torch.ones_like(new), cache))
        return torch.stack(every)

    theirs = decoded(hosts.stock, new_cache(hosts.stock, len(rows)))
    room = tokens.shape[1] + reply.shape[1]
    cache = decoding_cache(hosts.ours, len(rows), room, fast=True)
    ours = forward_pass(hosts.ours, partial(decoded, hosts.ours, cache), fast=True)
    return (ours - theirs).abs().max().item()


def decoding(hosts: Hosts, size: Size) -> Iterator[Job]:
    goals = {1: (4, 1.4), 8: (3.5, 1.15), 32: (2, 1.1)}
    prompts = [harmless for _, harmless in mixed_pairs(max(size.batches))]
    for batch in size.batches:
        rows = hosts.rows(prompts[:batch])
        faster, share = goals.get(batch, (None, None))
        yield Job(
            f"decoding, {size.decoded} tokens, batch {batch}",
            partial(ours, hosts, rows, None, size.decoded),
            [
                Rival(
                    "HookedTransformer generate",
                    partial(stock, hosts, rows, size.decoded),
                    partial(same_tokens_and_logits, hosts, rows),
                    at_least=faster,
                ),
                Rival(
                    "Hugging Face generate",
                    partial(hugging_face, hosts, rows, size.decoded),
                    same_tokens,
                    at_most=share,
                ),
            ],
            model=hosts.ours,
        )


def _gated(hosts: Hosts, size: Size) -> tuple[Rows, sl.Steering]:
    """Prompts, and a steering that fires on half of them; read and written at block inputs."""
    pairs = mixed_pairs(max(size.replies // 2, 8))
    rows = hosts.rows([prompt for pair in pairs for prompt in pair][: size.replies])
    harm = sl.extract(
        hosts.ours,
        tuple(zip(*pairs, strict=True)),
        sl.estimators.mean_difference,
        tokens="all",
        sinks=True,  # as CAST does
        progress=False,
    )
    n_layers = hosts.ours.cfg.n_layers
    judged = n_layers // 4
    pooled = read_residual(
        hosts.ours, rows, [judged], tokens="all", site="resid_pre", sinks=True, progress=False
    )
    similar = sl.similarities.cast_similarity(pooled[:, 0], harm[judged]).sort().values
    middle = similar[len(similar) // 4 : len(similar) - len(similar) // 4]
    widest = middle.diff().argmax()  # where no rounding decides who fires
    threshold = float(middle[widest : widest + 2].double().mean())
    condition = sl.Condition(harm, judged, above=threshold, site="resid_pre", sinks=True)
    return rows, sl.Steering(
        harm,
        range(n_layers // 2, n_layers - 1),
        strength=0.5,
        relative=True,
        when=condition,
        site="resid_pre",
    )


def gated(hosts: Hosts, size: Size) -> Iterator[Job]:
    rows, steering = _gated(hosts, size)
    [condition] = steering.conditions
    judged, device = condition.layers_read[0], hosts.ours.cfg.device
    additions = {
        layer: (0.5 * steering.direction(layer)).to(device) for layer in steering.layers_steered
    }
    judging = (judged, condition.vector[judged].to(device), condition.threshold)

    def same_replies(ours: sl.Replies, theirs: cast.Gated) -> Agreement:
        decisions = np.mean(ours.gates[0].open.numpy() == np.array(theirs.fired))
        tokens = same_tokens(ours, theirs.tokens)
        text = f"{decisions:.2%} of decisions, {tokens.text}"
        return Agreement(text, tokens.holds and decisions == 1)

    yield Job(
        f"gated replies, {len(rows)} prompts × {size.reply_tokens} tokens",
        partial(ours, hosts, rows, steering, size.reply_tokens),
        [
            Rival(
                "CAST, one by one",
                partial(cast.generate_gated, hosts.hf, rows, judging, additions, size.reply_tokens),
                same_replies,
                at_least=6,
            ),
            Rival(
                "Hugging Face generate, unsteered",
                partial(hugging_face, hosts, rows, size.reply_tokens),
                same_unsteered,
                at_most=1.3,
            ),
        ],
        model=hosts.ours,
    )


def same_unsteered(ours: sl.Replies, theirs: Any) -> Agreement:
    """What did not fire is as if never steered; something must have been."""
    opened = ours.gates[0].open
    silent = (~opened).nonzero()[:, 0].tolist()
    quiet = same_tokens(ours, getattr(theirs, "tokens", theirs), among=silent)
    return Agreement(f"{quiet.text}; {int(opened.sum())} fired", quiet.holds and bool(opened.any()))


def overhead(hosts: Hosts, size: Size) -> Iterator[Job]:
    rows, steering = _gated(hosts, size)
    always = sl.Steering(steering.vector, steering.layers_steered, 0.0, site=steering.site_written)
    for kind, plan, agree in (
        ("gated, half of the rows steered", steering, same_unsteered),
        ("every row steered, by strength 0", always, same_tokens_of),
    ):
        yield Job(
            f"what steering costs: {kind}",
            partial(ours, hosts, rows, plan, size.reply_tokens),
            [
                Rival(
                    "the same batch unsteered",
                    partial(ours, hosts, rows, None, size.reply_tokens),
                    agree,
                    at_most=1.05,
                )
            ],
            model=hosts.ours,
        )


def same_tokens_of(ours: sl.Replies, theirs: sl.Replies) -> Agreement:
    return same_tokens(ours, theirs.tokens)


def sweep(hosts: Hosts, size: Size, at_least: float) -> Iterator[Job]:
    """Layers × strengths × prompts as the rows of one batch, or cell by cell."""
    pairs = mixed_pairs(size.swept_prompts)
    vector = sl.extract(
        hosts.ours,
        tuple(zip(*pairs, strict=True)),
        sl.estimators.mean_difference,
        tokens="all",
        progress=False,
    )
    short = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).pairs
    rows = hosts.rows([prompt for prompt, _ in short[: size.swept_prompts]])
    layers = range(size.swept_layers)
    strengths = np.linspace(-0.6, 0.6, size.strengths).tolist()
    cells = list(product(layers, strengths))
    plan = partial(sl.Steering, vector, relative=True)

    def at_once() -> Rows:
        cell = torch.zeros(len(cells), len(layers))
        for index, (layer, strength) in enumerate(cells):
            cell[index, layer] = strength
        matrix = cell.repeat_interleave(len(rows), dim=0)
        batch = BatchPlan(plan(layers), matrix)
        return ours(hosts, list(rows) * len(cells), batch, size.swept_tokens).tokens

    def one_by_one() -> Rows:
        found: list[Any] = []
        for layer, strength in cells:
            found += ours(hosts, rows, plan([layer], strength), size.swept_tokens).tokens
        return found

    def stock_one_by_one() -> Rows:
        found: list[Any] = []
        for layer, strength in cells:
            addition = (strength * plan([layer]).direction(layer)).to(hosts.stock.cfg.device)
            hook = (f"blocks.{layer}.hook_resid_post", lambda h, hook, add=addition: h + add)
            with hosts.stock.hooks(fwd_hooks=[hook]):
                found += stock(hosts, rows, size.swept_tokens)
        return found

    yield Job(
        f"sweep on {hosts.name}: {len(layers)} layers × {len(strengths)} strengths × "
        f"{len(rows)} prompts × {size.swept_tokens} tokens",
        at_once,
        [
            Rival("one generate call per cell", one_by_one, same_tokens, at_least=at_least),
            Rival(
                "HookedTransformer generate per cell",
                stock_one_by_one,
                same_tokens,
                at_least=at_least,
            ),
        ],
        model=hosts.ours,
    )
