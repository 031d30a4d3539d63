from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.data.prompts import Passage
from steerlens.models.tokenizing import tokenize
from steerlens.steering import generation, hooks
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.sampling import Sampling, TokenChooser

SAMPLED = {"sampling": Sampling(temperature=1.5, top_p=0.95, seed=3)}
WARM = Sampling(temperature=1.0)
PLANS = {
    "add": {},
    "kept norm": {"keep_norm": True, "strength": 3},
    "ablate": {"edit": hooks.ablate_direction},
    "replace": {"edit": hooks.ablate_then_add, "strength": 0.5},
    "generated": {"positions": "generated"},
    "last": {"positions": "last", "strength": 3},
    "prompt": {"positions": "prompt"},
    "slice": {"positions": slice(-3, None), "skip_bos": True},
}
every_plan = pytest.mark.parametrize("fields", PLANS.values(), ids=PLANS)


@pytest.fixture(scope="module")
def condition(model):
    return splitting_condition(model)


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.fixture
def rows_end_early(model, monkeypatch):
    """A token that replies hold at different places ends them, so that rows leave the batch."""
    tokens = replied(model).tokens
    ends = frozenset({tokens[0][2], tokens[1][5], tokens[3][0]})
    monkeypatch.setattr(generation, "end_tokens", lambda model: ends)


def replied(model, prompts=PROMPTS, steering=None, max_new_tokens=10, **options):
    return sl.generate(
        model, prompts, steering, max_new_tokens=max_new_tokens, progress=False, **options
    )


def one_by_one(model, prompts, steering=None, **options):
    return [replied(model, [prompt], steering, **options) for prompt in prompts]


# Oracle: Hugging Face


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_replies_are_hugging_faces(model, hf_model, penalty):
    ours = replied(model, max_new_tokens=15, sampling=Sampling(repetition_penalty=penalty))
    for row, reply in zip(tokenize(model, PROMPTS), ours.tokens, strict=True):
        ids = torch.tensor([row.ids])
        theirs = hf_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=15,
            do_sample=False,
            repetition_penalty=penalty,
        )[0, len(row.ids) :].tolist()
        eos = model.tokenizer.eos_token_id
        assert list(reply) == (theirs[: theirs.index(eos)] if eos in theirs else theirs)


# Laws


@every_plan
def test_a_batch_is_its_rows_one_by_one(model, vector, condition, rows_end_early, fields):
    plan = sl.Steering(vector, layers=[2, 3], when=condition, **fields)
    together = replied(model, steering=plan)
    alone = one_by_one(model, PROMPTS, plan)
    assert together.tokens == tuple(reply.tokens[0] for reply in alone)
    assert together.finished == tuple(reply.finished[0] for reply in alone)
    assert together.gates[0].open.tolist() == [reply.gates[0].open.item() for reply in alone]
    seen = torch.cat([reply.gates[0].similarity for reply in alone])
    torch.testing.assert_close(together.gates[0].similarity, seen, atol=1e-3, rtol=1e-4)


@pytest.fixture(scope="module")
def gated(vector, condition):
    return sl.Steering(vector, layers=[2], when=condition)


@pytest.fixture(scope="module")
def gated_replies(model, gated):
    return dict(zip(PROMPTS, replied(model, steering=gated), strict=True))


@given(st.permutations(PROMPTS), st.integers(1, 7))
@settings(max_examples=8, deadline=None)
def test_order_and_batch_size_do_not_matter(model, gated, gated_replies, prompts, batch_size):
    found = replied(model, prompts, gated, batch_size=batch_size)
    assert list(found) == [gated_replies[prompt] for prompt in prompts]


@pytest.mark.parametrize(
    ("options", "n_written"),
    [({}, 5), ({"sampling": WARM}, 10), ({"sampling": WARM, "draws": [4] * 10}, 5)],
)
def test_rows_that_are_alike_and_steered_alike_are_written_once(
    model, vector, condition, options, n_written
):
    prompts = [*PROMPTS[:2], *PROMPTS[:2], PROMPTS[0]] * 2
    strength = torch.tensor([1.0, 2, 1, 2, 3])[:, None].repeat(2, 2)
    strength[5:7] = 0
    plan = BatchPlan(sl.Steering(vector, layers=[2, 3], when=condition), strength)
    sizes = []
    hook = ("blocks.0.hook_resid_pre", lambda resid, hook: sizes.append(len(resid)))
    with model.hooks(fwd_hooks=[hook]):
        found = replied(model, prompts, plan, **options)
    assert sizes[0] == n_written
    draws = options.get("draws", range(10))
    alone = [
        replied(
            model,
            [prompt],
            plan.of_rows([row]),
            **options | {"draws": [draws[row]]},
        )
        for row, prompt in enumerate(prompts)
    ]
    assert found.tokens == tuple(reply.tokens[0] for reply in alone)
    seen = torch.cat([reply.gates[0].similarity for reply in alone])
    torch.testing.assert_close(found.gates[0].similarity, seen, atol=1e-3, rtol=1e-4)


@every_plan
def test_the_cache_changes_nothing(model, vector, condition, rows_end_early, fields):
    plan = sl.Steering(vector, layers=[2, 3], when=condition, **fields)
    with_cache, without = (replied(model, steering=plan, use_cache=on) for on in (True, False))
    assert with_cache.tokens == without.tokens
    assert with_cache.gates[0].open.tolist() == without.gates[0].open.tolist()


def test_a_batch_that_memory_cannot_hold_is_halved(model, vector, condition, monkeypatch):
    plan = [sl.Steering(vector, layers=[2], when=condition)]
    whole, sizes, step = replied(model, steering=plan), [], generation._next_tokens

    def small_memory(model, state, *rest):
        sizes.append(len(state.rows))
        if len(state.rows) > 2:
            raise torch.OutOfMemoryError("no memory left")
        return step(model, state, *rest)

    monkeypatch.setattr(generation, "_next_tokens", small_memory)
    found = replied(model, steering=plan)
    assert found.tokens == whole.tokens
    assert found.gates[0].open.tolist() == whole.gates[0].open.tolist()
    assert [size for size in sizes if size > 2] == [6, 3, 3]
    monkeypatch.setattr(generation, "_next_tokens", lambda *_: exec("raise torch.OutOfMemoryError"))
    with pytest.raises(torch.OutOfMemoryError):
        replied(model)


def test_rows_do_end_early(model, rows_end_early):
    lengths = [len(reply) for reply in replied(model).tokens]
    assert 0 in lengths
    assert len(set(lengths)) > 2


@pytest.mark.parametrize("edit", [hooks.add_direction, hooks.ablate_then_add])
def test_a_strength_matrix_is_a_run_for_each_row(model, vector, rows_end_early, edit):
    strengths = torch.tensor([[0, 0], [1, 1], [-1, 0], [0, 2], [3, -3], [0, 0]]).float()
    plan = BatchPlan(sl.Steering(vector, [1, 3], edit=edit, positions="last"), strengths)
    together = replied(model, steering=plan, batch_size=4)
    for row, prompt in enumerate(PROMPTS):
        separate = [
            sl.Steering(vector, layers=[layer], edit=edit, strength=strength, positions="last")
            for layer, strength in zip((1, 3), strengths[row].tolist(), strict=True)
            if strength  # zero in a matrix leaves the row alone
        ]
        assert replied(model, [prompt], separate).tokens[0] == together.tokens[row]


def test_a_row_of_strength_zero_is_not_touched(model, vector):
    strengths = torch.ones(len(PROMPTS), 4)
    strengths[::2] = 0
    plan = BatchPlan(sl.Steering(vector, edit=hooks.ablate_then_add, keep_norm=True), strengths)
    changed = [a != b for a, b in zip(replied(model, steering=plan), replied(model), strict=True)]
    assert changed == [False, True] * 3


def test_only_rows_that_a_condition_fires_on_are_steered(model, vector, condition):
    plan = sl.Steering(vector, layers=[2], strength=4, when=condition)
    steered, plain = replied(model, steering=plan), replied(model)
    (gate,) = steered.gates
    assert [a != b for a, b in zip(steered, plain, strict=True)] == gate.open.tolist()
    assert 0 < gate.open.sum() < len(PROMPTS)


def test_gates_report_what_a_read_measures(model, vector, condition):
    both = replace(condition, layers=[0, 1])
    (gate,) = replied(model, steering=sl.Steering(vector, layers=[2], when=both)).gates
    read = read_residual(model, PROMPTS, [0, 1], tokens="all", progress=False)
    expected = torch.stack([both.measure(read[:, n], n) for n in (0, 1)], dim=1)
    torch.testing.assert_close(gate.similarity, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(gate.open, both.fires(gate.similarity))
    assert f"fired on {gate.open.sum()} of 6 rows" in repr(gate)


def test_several_steerings_and_conditions_in_one_plan(model, vector, condition):
    other = splitting_condition(model, seed=11)
    plan = [
        sl.Steering(vector, layers=[2], strength=4, when=condition),
        sl.Steering(random_vector(model, seed=1), layers=[3], strength=4, when=~other & condition),
    ]
    together = replied(model, steering=plan)
    assert [gate.condition for gate in together.gates] == [condition, other]
    a, b = (gate.open.tolist() for gate in together.gates)
    for row, prompt in enumerate(PROMPTS):
        acting = [
            replace(steering, when=None)
            for steering, acts in zip(plan, (a[row], a[row] and not b[row]), strict=True)
            if acts
        ]
        assert replied(model, [prompt], acting).tokens[0] == together.tokens[row]


def test_a_vector_minus_itself_steers_nothing(model, vector):
    assert replied(model, steering=sl.Steering(vector - vector)).tokens == replied(model).tokens


# Inputs and outputs


def test_every_kind_of_prompt_gets_the_same_reply(model):
    text = PROMPTS[1]
    ids = tokenize(model, [text])[0].ids
    chat = [{"role": "user", "content": text}]
    kinds = [text, chat, Passage(text), ids, list(ids), torch.tensor(ids)]
    assert len(set(replied(model, kinds).tokens)) == 1


def test_a_suffix_begins_the_reply(model):
    opened = replied(model, [Passage("Hi.", "Sure, I")], max_new_tokens=3)
    (row,) = tokenize(model, [Passage("Hi.", "Sure, I")])
    assert opened.tokens == replied(model, [row.ids], max_new_tokens=3).tokens


def test_plain_text_is_continued_without_the_template(model):
    ids = model.to_tokens("The sea")[0].tolist()
    assert replied(model, ["The sea"], chat=False).tokens == replied(model, [ids]).tokens


def test_replies_are_a_sequence_of_texts(model):
    replies = replied(model)
    assert list(replies) == list(replies.texts)
    decode = model.tokenizer.batch_decode
    assert list(replies) == decode([*map(list, replies.tokens)], skip_special_tokens=True)
    assert (len(replies), replies[2], replies[-1:]) == (6, replies.texts[2], replies.texts[-1:])
    assert replies.prompts == PROMPTS
    assert all(len(tokens) <= 10 for tokens in replies.tokens)


def test_the_end_of_text_is_no_part_of_a_reply(model, monkeypatch):
    first, second, third = replied(model, PROMPTS[:1], max_new_tokens=3).tokens[0]
    monkeypatch.setattr(generation, "end_tokens", lambda model: frozenset({third}))
    ended = replied(model, PROMPTS[:1])
    assert ended.tokens == ((first, second),)
    assert ended.finished == (True,)
    assert replied(model, PROMPTS[:1], max_new_tokens=2).finished == (False,)


def test_nothing_is_printed_where_nobody_watches(model, capsys):
    sl.generate(model, PROMPTS, max_new_tokens=1)
    assert capsys.readouterr() == ("", "")


# Sampling


def test_sampling_is_reproducible(model):
    first = replied(model, **SAMPLED)
    assert replied(model, **SAMPLED).tokens == first.tokens
    other = replace(SAMPLED["sampling"], seed=4)
    assert replied(model, sampling=other).tokens != first.tokens
    assert first.tokens != replied(model).tokens


def test_rows_draw_from_the_streams_that_they_are_given(model):
    whole = replied(model, **SAMPLED)
    places = [4, 1, 1]
    some = replied(model, prompts=[PROMPTS[place] for place in places], draws=places, **SAMPLED)
    assert some.tokens == tuple(whole.tokens[place] for place in places)
    with pytest.raises(sl.SteerlensError, match="got 1 draws for 6 prompts"):
        replied(model, draws=[0], **SAMPLED)


def test_sampling_neither_reads_nor_moves_the_global_seed(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = replied(model, **SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert replied(model, **SAMPLED).tokens == first.tokens


def test_a_sampled_row_does_not_depend_on_its_batch(model, vector, rows_end_early):
    plan = sl.Steering(vector, layers=[2])
    first = replied(model, steering=plan, **SAMPLED)
    assert replied(model, steering=plan, batch_size=2, **SAMPLED).tokens == first.tokens
    assert replied(model, steering=plan, use_cache=False, **SAMPLED).tokens == first.tokens
    others = [PROMPTS[0], *["Something else, and longer."] * 4, PROMPTS[5]]
    found = replied(model, others, plan, **SAMPLED)
    assert (found.tokens[0], found.tokens[5]) == (first.tokens[0], first.tokens[5])


def test_rows_with_the_same_prompt_are_sampled_apart(model):
    assert len(set(replied(model, ["Hi."] * 5, **SAMPLED).tokens)) > 1


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_sampling_from_one_token_is_greedy(model, options):
    sampling = Sampling(**{"temperature": 1.0} | options)
    assert replied(model, sampling=sampling).tokens == replied(model).tokens


def drawn(sampling, logits, n=4000):
    """Shares of the tokens that `n` rows of the same logits draw."""
    choose = TokenChooser(sampling, range(n))
    text, mask = torch.zeros(n, 1, dtype=torch.long), torch.zeros(n, 1, dtype=torch.bool)
    chosen = choose(logits.expand(n, -1), text, mask, 0, torch.arange(n))
    return torch.bincount(chosen, minlength=len(logits)) / n


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.2, 0.3, 0.0]),
        ({"temperature": 0.5}, [25 / 38, 4 / 38, 9 / 38, 0.0]),
        ({"temperature": 1.0, "top_k": 2}, [5 / 8, 0.0, 3 / 8, 0.0]),
        ({"temperature": 1.0, "top_p": 0.6}, [5 / 8, 0.0, 3 / 8, 0.0]),
        ({"temperature": 1.0, "top_p": 0.4}, [1.0, 0.0, 0.0, 0.0]),
        ({"temperature": 1.0, "top_k": 99}, [0.5, 0.2, 0.3, 0.0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(options, expected):
    logits = torch.tensor([0.5, 0.2, 0.3, 1e-30]).log()
    found = drawn(Sampling(**options), logits)
    expected = torch.tensor(expected)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)  # 4 standard errors


def test_the_penalty_does_not_see_padding(model):
    """The pad token is in the batch's tensor, but in no row's text."""
    choose = TokenChooser(Sampling(repetition_penalty=5), [0, 1])
    text = torch.tensor([[0, 1], [1, 1]])
    mask = torch.tensor([[False, True], [True, True]])
    logits = torch.tensor([[1.0, 4.0], [1.0, 4.0]])
    assert choose(logits, text, mask, 0, torch.arange(2)).tolist() == [0, 0]
    assert choose(logits, 1 - text, mask, 0, torch.arange(2)).tolist() == [1, 1]


# The embedded model


def test_the_embedded_model_is_steered_row_by_row(tiny_chat):
    condition = splitting_condition(tiny_chat)
    vector = sl.extract(
        tiny_chat,
        sl.ContrastiveDataset([("Say no.", "Say yes.")], [("No, I", "Sure, I")]),
        tokens="suffix",
        progress=False,
    )
    plan = sl.Steering(vector, layers=[3, 4], strength=0.5, relative=True, when=condition)
    steered, plain = replied(tiny_chat, steering=plan), replied(tiny_chat)
    opened = steered.gates[0].open.tolist()
    kept = [a == b for a, b in zip(steered, plain, strict=True)]
    assert all(same for same, is_open in zip(kept, opened, strict=True) if not is_open)
    assert not all(kept)
    alone = one_by_one(tiny_chat, PROMPTS, plan)
    assert steered.tokens == tuple(reply.tokens[0] for reply in alone)
    assert replied(tiny_chat, steering=plan, use_cache=False).tokens == steered.tokens


# Bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_new_tokens": 125}, r"prompt 0 of 6 tokens and 125 .* context holds 128"),
    ],
)
def test_impossible_options_are_refused(model, options, told):
    with pytest.raises(sl.SteerlensError, match=told):
        replied(model, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -1.0}, "got temperature=-1.0; expected"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p=0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    ],
)
def test_impossible_sampling_is_refused(options, told):
    with pytest.raises(sl.SteerlensError, match=told):
        Sampling(**options)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([], "expected at least one prompt"),
        (["Hi.", ""], "prompt 1 has an empty prompt"),
        (["Hi.", "word " * 200], r"has \d+ tokens, but .* reads at most 128"),
    ],
)
def test_impossible_prompts_are_refused(model, prompts, told):
    with pytest.raises(sl.SteerlensError, match=told):
        replied(model, prompts)


def impossible_plans(model, other_model):
    six = sl.SteeringVector(torch.randn(6, 32), tuple(range(6)))
    narrow, fitting = random_vector(other_model), random_vector(model)
    return {
        "16 wide, but random-model.* 32; it belongs to another": sl.Steering(narrow, layers=[2]),
        r"got layer\(s\) \[5\]; expected layers 0 to 3": sl.Steering(six, layers=[5]),
        "would touch no token": sl.Steering(fitting, positions=slice(100, None)),
        r"got BatchPlan\(2 rows of .* for 6 prompts": BatchPlan(
            sl.Steering(fitting), torch.ones(2, 4)
        ),
        "narrow.* belongs to another model": sl.Steering(
            fitting, layers=[2], when=sl.Condition(replace(narrow, provenance={"name": "narrow"}),
                                                   0, above=0)
        ),
    }  # fmt: skip


def test_plans_that_do_not_fit_are_refused_before_any_work(model, other_model, monkeypatch):
    def run(*args, **options):
        raise AssertionError("the model ran")

    monkeypatch.setattr(generation, "_next_tokens", run)
    for told, plan in impossible_plans(model, other_model).items():
        with pytest.raises(sl.SteerlensError, match=told):
            replied(model, steering=plan)


def test_logits_that_are_no_numbers_stop_the_run(model, vector):
    plan = sl.Steering(vector, [2], 1e38)
    with pytest.raises(sl.SteerlensError, match=r"logits are not finite .* in 6 of 6 rows, at new"):
        replied(model, steering=[plan, plan])


def test_a_run_that_fails_leaves_no_hook(model, vector, monkeypatch):
    class Interrupted(generation.TokenChooser):
        def __init__(self, *args):
            self.steps = 0

        def __call__(self, logits, *args):
            self.steps += 1
            if self.steps == 3:
                raise KeyboardInterrupt
            return logits.argmax(dim=1)

    monkeypatch.setattr(generation, "TokenChooser", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        replied(model, steering=sl.Steering(vector))
    assert_no_hooks_left(model)


def test_a_generation_leaves_no_hook(model, vector, condition):
    replied(model, steering=sl.Steering(vector, layers=[2], when=condition))
    assert_no_hooks_left(model)


# As it comes


@pytest.mark.parametrize("steered", [False, True])
def test_a_stream_ends_in_what_generate_returns(model, steered):
    steering = sl.Steering(random_vector(model), [2], when=splitting_condition(model))
    plan = steering if steered else None
    settings = {"max_new_tokens": 6, "sampling": Sampling(temperature=1.0, seed=3)}
    whole = sl.generate(model, PROMPTS, plan, progress=False, **settings)
    seen = list(sl.stream(model, PROMPTS, plan, **settings))
    assert seen[-1].tokens == whole.tokens
    assert seen[-1].finished == whole.finished
    for replies in seen:
        decode = model.tokenizer.batch_decode
        assert list(replies) == decode([*map(list, replies.tokens)], skip_special_tokens=True)
    for before, after in pairwise(seen):
        assert all(
            later[: len(sooner)] == sooner
            for sooner, later in zip(before.tokens, after.tokens, strict=True)
        )
    if steered:
        assert torch.equal(seen[0].gates[0].open, whole.gates[0].open)


def test_a_stream_that_is_left_takes_its_hooks_along(model):
    steps = sl.stream(model, PROMPTS, sl.Steering(random_vector(model), [2]), max_new_tokens=9)
    next(steps)
    steps.close()
    assert_no_hooks_left(model)


@pytest.mark.parametrize("tokens", ["user", "all", "last"])
def test_gates_are_the_same_in_a_batch_alone_without_cache_and_as_read(model, tokens):
    """Whatever tokens they read, and sinks among them: the plain read is the measure."""
    measure = splitting_condition(model, tokens=tokens)
    plan = sl.Steering(random_vector(model), [2, 3], when=measure)
    options = {"max_new_tokens": 3, "progress": False}
    batch = sl.generate(model, PROMPTS, plan, **options)
    plain = sl.generate(model, PROMPTS, plan, use_cache=False, **options)
    alone = [sl.generate(model, [prompt], plan, **options) for prompt in PROMPTS]
    read = read_residual(model, PROMPTS, [1], tokens=tokens, progress=False)[:, 0]
    expected = measure.measure(read, 1)[:, None]
    for seen in (
        batch.gates[0].similarity,
        plain.gates[0].similarity,
        torch.cat([one.gates[0].similarity for one in alone]),
    ):
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)
    assert batch.tokens == plain.tokens == tuple(one.tokens[0] for one in alone)
