"""Agreement with steering-vectors 0.12.2 where it applies a vector; and where it is wrong."""

import json
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import at_each_layer, random_vector
from oracles.make_data import COORDINATES, VOCABULARY

import steerlens as sl
from steerlens.models.host import Model, new_cache, next_logits
from steerlens.models.sites import hook_name
from steerlens.models.tokenizing import left_padded, pad_token
from steerlens.steering import hooks
from steerlens.steering.batch_plans import BatchPlan

TOLERANCE = 1e-4
"""Float32 on two hosts that sum in another order: 1e-5 was seen, in numbers of up to 13."""
N_LAYERS = 4
EDITS = {
    "add": hooks.add_direction,
    "none": hooks.add_direction,  # its name for the default operator
    "ablate": hooks.ablate_direction,
    "ablate_add": hooks.ablate_then_add,
}
SITES = {
    "self_attn": "attn_out",
    "mlp": "mlp_out",
    "input_layernorm": "ln1_out",
    "post_attention_layernorm": "ln2_out",
}
FORMS = {
    "all": lambda peer: "all",
    "min_token_index=4": lambda peer: slice(4, None),
    "token_indices=[1,3,5]": lambda peer: [1, 3, 5],
    "token_indices=[-1]": lambda peer: [-1],
    "token_indices=slice(2,9,3)": lambda peer: slice(2, 9, 3),
    "token_indices=mask1d(even)": lambda peer: torch.arange(peer.ids.shape[1]) % 2 == 0,
    "mask2d(last)": lambda peer: peer.last,
}
"""Its selections of tokens, in our words."""
N_NEW = 12


class Peer(NamedTuple):
    """A tiny model, and what the original computed with it."""

    model: Model
    applied: dict[str, np.ndarray]
    trained: dict[str, np.ndarray]
    generated: dict[str, list]
    logits: dict[str, np.ndarray]
    errors: dict[str, str]
    prompt: list[int]

    @property
    def ids(self):
        return torch.tensor(self.applied["single|input_ids"])

    @property
    def batch(self):
        mask = torch.tensor(self.applied["batch|attention_mask"]).bool()
        return torch.tensor(self.applied["batch|input_ids"]), mask

    @property
    def rows(self):
        return [ids[real].tolist() for ids, real in zip(*self.batch, strict=True)]

    @property
    def last(self):
        return torch.tensor(self.applied["batch|last_token_mask"]).bool()

    @property
    def vector(self):
        return vector_of([self.applied[f"vector|L{layer}"] for layer in range(N_LAYERS)])


def vector_of(directions, **fields):
    return sl.SteeringVector(torch.tensor(np.stack(directions)), tuple(range(N_LAYERS)), **fields)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def peer(request, oracles):
    return loaded(oracles / "steering-vectors", request.param)


@cache
def loaded(folder, name):
    generated = json.loads((folder / f"sv_generate_{name}.json").read_text())
    return Peer(
        sl.load_model(str(folder / f"tiny-{name}")),
        np.load(folder / f"sv_apply_{name}.npz"),
        np.load(folder / f"sv_train_{name}.npz"),
        generated["generate"],
        np.load(folder / f"sv_generate_logits_{name}.npz"),
        generated["errors"],
        generated["prompt_ids"],
    )


@torch.no_grad()
def run(model, ids, fwd_hooks=()):
    """Logits, and the stream after each block."""
    stream = {}

    def look(resid, hook, layer):
        stream[layer] = resid.clone()

    looks = [(hook_name(model, "resid_post", n), partial(look, layer=n)) for n in range(N_LAYERS)]
    with model.hooks(fwd_hooks=[*fwd_hooks, *looks]):
        logits = model(ids, padding_side="right")
    return logits, torch.stack([stream[layer] for layer in range(N_LAYERS)])


def assert_equals_the_original(peer, key, steering=None):
    """Logits and stream at every real token; the original pads on the right, as we read."""
    ids, mask = peer.batch if key.startswith("batch") else (peer.ids, None)
    plan = [] if steering is None else steering.hooks(prompt_mask=mask, model=peer.model)
    logits, stream = run(peer.model, ids, plan)
    real = torch.ones_like(ids).bool() if mask is None else mask
    kept = {"logits": logits[..., VOCABULARY], "resid": stream[..., COORDINATES]}
    for name, ours in kept.items():
        theirs = peer.applied[f"{key}|{name}"]
        np.testing.assert_allclose(ours[..., real, :], theirs[..., real, :], atol=TOLERANCE, rtol=0)


def settings_of(peer, operator, multiplier, form):
    """The original's ablation removes the whole projection, whatever the multiplier."""
    return {
        "edit": EDITS[operator],
        "strength": 1.0 if operator == "ablate" else multiplier,
        "positions": FORMS[form](peer),
    }


# Applying

CASES = [
    *((op, m, form) for op in ("add", "ablate", "ablate_add") for m in (-1.5, 1.0, 3.0)
      for form in ("all", "min_token_index=4")),
    *(("none", 1.0, form) for form in ("all", "min_token_index=4")),
]  # fmt: skip
INDEXED = [(m, form) for m in (-1.5, 1.0, 3.0) for form in FORMS if form.startswith("token_ind")]


@pytest.mark.parametrize("batch", ["single", "batch"])
def test_the_unsteered_models_are_the_same(peer, batch):
    assert_equals_the_original(peer, f"{batch}|base")


@pytest.mark.parametrize("layers", ["L1", "all"])
@pytest.mark.parametrize(("operator", "multiplier", "form"), CASES)
def test_operators_and_multipliers(peer, layers, operator, multiplier, form):
    steering = at_each_layer(
        sl.Steering(
            peer.vector,
            [1] if layers == "L1" else None,
            **settings_of(peer, operator, multiplier, form),
        )
    )
    key = f"single|{layers}|{operator}|m={multiplier}|{form}"
    assert_equals_the_original(peer, key, steering)


@pytest.mark.parametrize(("multiplier", "form"), INDEXED)
def test_token_indices(peer, multiplier, form):
    steering = sl.Steering(peer.vector, [1], **settings_of(peer, "add", multiplier, form))
    assert_equals_the_original(peer, f"single|L1|add|m={multiplier}|{form}", steering)


@pytest.mark.parametrize("layers", ["L1", "all"])
@pytest.mark.parametrize(
    ("operator", "multiplier", "form"), [("add", 1.0, "all"), ("ablate_add", 3.0, "mask2d(last)")]
)
def test_a_padded_batch(peer, layers, operator, multiplier, form):
    settings = settings_of(peer, operator, multiplier, form)
    where = settings["positions"]
    is_mask = isinstance(where, torch.Tensor)
    steering = sl.Steering(
        peer.vector,
        [1] if layers == "L1" else None,
        **settings | ({"positions": "all"} if is_mask else {}),
    )
    strength = torch.full((len(peer.rows), len(steering.layers_steered)), float(multiplier))
    plan = BatchPlan(steering, strength, where) if is_mask else at_each_layer(steering)
    assert_equals_the_original(peer, f"batch|{layers}|{operator}|m={multiplier}|{form}", plan)


@pytest.mark.parametrize("layer_type", SITES)
def test_layer_types_are_sites(peer, layer_type):
    """With the mean vectors that were trained at that layer type."""
    trained = [
        peer.trained[f"mean|idx=-1|bs=8|pad=right|{layer_type}|L{layer}"]
        for layer in range(N_LAYERS)
    ]
    steering = at_each_layer(sl.Steering(vector_of(trained, site=SITES[layer_type])))
    assert_equals_the_original(peer, f"single|{layer_type}:all|add|m=1.0|all", steering)


def test_every_number_of_the_oracle_is_met(oracles):
    """The parametrisations above leave no run of the original out."""
    met = {f"{batch}|base" for batch in ("single", "batch")}
    met |= {f"single|{on}|{o}|m={m}|{form}" for on in ("L1", "all") for o, m, form in CASES}
    met |= {f"single|L1|add|m={m}|{form}" for m, form in INDEXED}
    met |= {f"batch|{on}|{end}" for on in ("L1", "all")
            for end in ("add|m=1.0|all", "ablate_add|m=3.0|mask2d(last)")}  # fmt: skip
    met |= {f"single|{layer_type}:all|add|m=1.0|all" for layer_type in SITES}
    for name in ("gpt2", "llama"):
        held = np.load(oracles / "steering-vectors" / f"sv_apply_{name}.npz").files
        assert {key.rsplit("|", 1)[0] for key in held if key.endswith("|logits")} == met


# Generating


def steps(peer, steering, forced, use_cache):
    """Logits of each greedy step, after the original's own tokens."""
    model, text = peer.model, torch.tensor([peer.prompt])
    kept = new_cache(model, 1) if use_cache else None
    plan = [] if steering is None else steering.hooks()
    with torch.no_grad(), model.hooks(fwd_hooks=plan):
        for token in forced:
            shown = text[:, -1:] if kept is not None and text.shape[1] > len(peer.prompt) else text
            yield next_logits(model, shown, torch.ones_like(shown), kept)[0].numpy()
            text = torch.cat([text, torch.tensor([[token]])], dim=1)


def assert_generates_as_the_original(peer, key, steering, use_cache):
    """The logits of every step, and the tokens that `generate` picks."""
    tokens = peer.generated[key]
    top_ids, top = peer.logits[f"{key}|top ids"], peer.logits[f"{key}|top"]
    assert top_ids[:, 0].tolist() == tokens  # its search is greedy
    ours = np.stack(list(steps(peer, steering, tokens, use_cache)))
    np.testing.assert_allclose(ours[:, VOCABULARY], peer.logits[key], atol=TOLERANCE, rtol=0)
    ours_there = np.take_along_axis(ours, top_ids, axis=1)
    np.testing.assert_allclose(ours_there, top, atol=TOLERANCE, rtol=0)
    tied = top[:, 0] - top[:, 1] < 2 * TOLERANCE  # may fall either way
    clear = int(np.argmax([*tied, True]))
    assert clear >= 1
    replied = sl.generate(
        peer.model, [peer.prompt], steering, max_new_tokens=N_NEW, use_cache=use_cache,
        progress=False,
    )  # fmt: skip
    assert list(replied.tokens[0])[:clear] == until_end(peer, tokens)[:clear]


def until_end(peer, tokens):
    eos = peer.model.tokenizer.eos_token_id
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


both_ways = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])


@both_ways
@pytest.mark.parametrize("strength", [None, -6.0, 1.0, 6.0, 20.0])
def test_generation_steered_everywhere(peer, strength, use_cache):
    steering = None if strength is None else sl.Steering(peer.vector, [1], strength)
    key = f"m={strength}|all|use_cache={use_cache}"
    assert_generates_as_the_original(peer, key, steering, use_cache)


@both_ways
@pytest.mark.parametrize("strength", [-6.0, 1.0, 6.0, 20.0])
def test_generation_steered_from_an_index_on(peer, strength, use_cache):
    """The original means this only without cache; ours is the same either way."""
    steering = sl.Steering(peer.vector, [1], strength, positions=slice(4, None))
    key = f"m={strength}|min_token_index=4|use_cache=False"
    assert_generates_as_the_original(peer, key, steering, use_cache)


@pytest.mark.parametrize("strength", [None, 6.0])
def test_a_left_padded_batch_replies_as_its_rows(peer, strength):
    steering = None if strength is None else sl.Steering(peer.vector, [1], strength)
    replied = sl.generate(peer.model, peer.rows, steering, max_new_tokens=N_NEW, progress=False)
    for kind in ("leftpad_batch", "solo"):
        theirs = peer.generated[f"{kind}|m={strength}|all|use_cache=True"]
        assert [list(tokens) for tokens in replied.tokens] == [
            until_end(peer, tokens) for tokens in theirs
        ]


# Where the original is wrong


@pytest.mark.parametrize("strength", [-6.0, 1.0, 6.0, 20.0])
def test_the_original_forgets_an_index_once_it_decodes_with_a_cache(peer, strength):
    """Its pass of one token has no index 4: what is generated stays unsteered.

    So caching, which should change nothing, changes its replies. Its cached numbers are ours for
    `positions=slice(4, len(prompt))`: nobody who writes "from token 4 on" means that.
    """
    key = f"m={strength}|min_token_index=4|use_cache={{}}".format
    assert peer.generated[key(True)] != peer.generated[key(False)]
    assert np.abs(peer.logits[key(True)] - peer.logits[key(False)]).max() > 100 * TOLERANCE
    only_prompt = sl.Steering(peer.vector, [1], strength, positions=slice(4, len(peer.prompt)))
    for use_cache in (True, False):
        assert_generates_as_the_original(peer, key(True), only_prompt, use_cache)


INDICES = {
    "generate with token_indices list": lambda n: [1, 3, 5],
    "generate with 1d mask": lambda n: torch.arange(n) % 2 == 0,
}


@pytest.mark.parametrize("call", INDICES)
def test_the_original_cannot_generate_with_indices_or_a_mask(peer, call):
    """It applies them to every pass; they are places of the prompt, and what follows is not."""
    assert peer.errors[call].split(":")[0] in ("IndexError", "RuntimeError")
    steering = sl.Steering(peer.vector, [1], 6.0, positions=INDICES[call](len(peer.prompt)))
    replies = [
        sl.generate(
            peer.model, [peer.prompt], steering, max_new_tokens=N_NEW, use_cache=on, progress=False
        ).tokens[0]
        for on in (True, False)
    ]
    assert replies[0] == replies[1] != until_end(peer, peer.generated["m=None|all|use_cache=True"])
    tokens = [*replies[0], 5]  # one more: the last logits are those after it
    text = torch.tensor([[*peer.prompt, *tokens[:-1]]])
    whole, _ = run(peer.model, text, steering.hooks())  # the text as one prompt, same places
    with_cache = np.stack(list(steps(peer, steering, tokens, use_cache=True)))
    np.testing.assert_allclose(
        with_cache, whole[0, len(peer.prompt) - 1 :].numpy(), atol=TOLERANCE, rtol=0
    )


def test_the_original_needs_a_second_argument_to_take_indices(peer):
    """`apply(token_indices=...)` alone fails on its own default; ours is one argument."""
    call = "apply(token_indices=list) without min_token_index=None"
    assert peer.errors[call].startswith("UnboundLocalError")
    steering = sl.Steering(peer.vector, [1], positions=[1, 3, 5])
    assert_equals_the_original(peer, "single|L1|add|m=1.0|token_indices=[1,3,5]", steering)


@pytest.mark.parametrize("edit", [hooks.ablate_direction, hooks.ablate_then_add])
def test_the_original_makes_nan_where_there_is_nothing_to_ablate(peer, edit):
    """0/0: the projection on a zero vector. It is zero, and the stream stays as it was."""
    assert peer.errors["ablate with zero vector -> any NaN"] is True
    steering = sl.Steering(0 * peer.vector, [1], edit=edit)
    logits, stream = run(peer.model, peer.ids, steering.hooks())
    unsteered_logits, unsteered = run(peer.model, peer.ids)
    assert torch.equal(logits, unsteered_logits)
    assert torch.equal(stream, unsteered)


def test_ablation_has_a_strength_which_the_original_ignores(peer):
    """Its multiplier scales the vector, and a projection does not depend on that."""
    theirs = [peer.applied[f"single|L1|ablate|m={m}|all|logits"] for m in (-1.5, 1.0, 3.0)]
    np.testing.assert_allclose(theirs[0], theirs[1], atol=TOLERANCE)
    np.testing.assert_allclose(theirs[2], theirs[1], atol=TOLERANCE)
    unit = peer.vector.normalized()[1]

    def left(strength):
        steering = sl.Steering(peer.vector, [1], strength, edit=hooks.ablate_direction)
        return run(peer.model, peer.ids, steering.hooks())[1][1] @ unit

    before = run(peer.model, peer.ids)[1][1] @ unit
    for strength in (0.5, 1.0, 2.0):
        torch.testing.assert_close(left(strength), (1 - strength) * before, atol=1e-4, rtol=1e-4)


def test_the_last_token_of_a_padded_row_needs_no_mask(peer):
    """The original's [-1] is the last column, padding or not; it must be told with a 2-d mask."""
    _, mask = peer.batch
    assert not mask[:, -1].all()
    for positions in ([-1], "last", slice(-1, None)):
        steering = sl.Steering(
            peer.vector, [1], 3.0, edit=hooks.ablate_then_add, positions=positions
        )
        assert_equals_the_original(peer, "batch|L1|ablate_add|m=3.0|mask2d(last)", steering)


def test_an_index_counts_from_the_text_not_from_the_padding(peer):
    """Left-padded, the original's index 4 lies in the padding of a short row; ours does not."""
    tokens, mask = left_padded(peer.rows, pad_token(peer.model))
    short = int(mask.sum(1).argmin())
    begins = int(mask[short].int().argmax())
    assert begins > 4

    def as_the_original(resid, hook):
        resid[:, 4:] += 6 * peer.vector[1]
        return resid

    def last_logits(fwd_hooks):
        with torch.no_grad(), peer.model.hooks(fwd_hooks=fwd_hooks):
            return next_logits(peer.model, tokens, mask.int())[short]

    steering = sl.Steering(peer.vector, [1], 6.0, positions=slice(4, None))
    alone, _ = run(peer.model, torch.tensor([peer.rows[short]]), steering.hooks())
    ours = last_logits(steering.hooks(prompt_mask=mask))
    theirs = last_logits([(hook_name(peer.model, "resid_post", 1), as_the_original)])
    torch.testing.assert_close(ours, alone[0, -1], atol=TOLERANCE, rtol=0)
    assert (theirs - alone[0, -1]).abs().max() > 100 * TOLERANCE


def test_half_precision_is_kept(oracles):
    """As in the original: a bfloat16 model stays one under a float32 vector."""
    name = "tiny-llama"
    model = sl.load_model(str(oracles / "steering-vectors" / name), dtype=torch.bfloat16)
    steering = sl.Steering(random_vector(model, scale=1.0), [1])
    logits, stream = run(model, torch.tensor([[1, 5, 9]]), steering.hooks())
    assert logits.dtype == stream.dtype == torch.bfloat16
    assert logits.isfinite().all()
