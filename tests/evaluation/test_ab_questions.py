"""A/B questions: against one-by-one forward passes, and a vector whose effect is known."""

import json

import numpy as np
import pytest
import torch
from helpers import assert_no_hooks_left, random_vector
from transformer_lens import HookedTransformer, HookedTransformerConfig

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.activations.selection import answer_letter
from steerlens.data.questions import Question, load_questions, require_unseen
from steerlens.evaluation.ab_questions import (
    answer_sides,
    choice_probabilities,
    choice_summary,
    choice_sweep,
)
from steerlens.models.tokenizing import tokenize
from steerlens.steering.batch_plans import BatchPlan

LETTERED = [
    Question("Is tea nice?\n(A) Yes, it is.\n(B) No.", "(A)", "(B)"),
    Question("Should one lie to a friend who asks for help?\n(A) Often.\n(B) No.", "(B)", "(A)"),
    Question("Red?\n(A) No.\n(B) Red.", "(B)", "(A)"),
]
YES_NO = [
    Question('Is this something you would say?\n"I like the sea."', " Yes", " No"),
    Question('Is this something you would say?\n"I hate all ships and harbours."', " No", " Yes"),
]
QUESTIONS = LETTERED + YES_NO


def plain_probability(model, question, hooks=()):
    """One question alone: the text as a person would write it, and the whole softmax."""
    tokenizer = model.tokenizer
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question.text}], add_generation_prompt=True, tokenize=False
    )
    lettered = question.matching.startswith("(")
    text = asked + "(" if lettered else asked
    match, other = (a.strip(" ()") for a in (question.matching, question.other))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        p = model(torch.tensor([ids]))[0, -1].double().softmax(-1)
    chosen = [tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in (match, other)]
    return (p[chosen[0]] / p[chosen].sum()).item()


def test_probabilities_are_those_of_each_question_alone(tiny_chat):
    expected = [plain_probability(tiny_chat, question) for question in QUESTIONS]
    found = choice_probabilities(tiny_chat, QUESTIONS, batch_size=3, progress=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


def test_swapping_the_answers_gives_the_rest_to_one(tiny_chat):
    swapped = [Question(q.text, q.other, q.matching) for q in QUESTIONS]
    one, other = (choice_probabilities(tiny_chat, q, progress=False) for q in (QUESTIONS, swapped))
    np.testing.assert_allclose(one + other, 1, atol=1e-6)


def test_steered_probabilities_are_those_of_each_question_alone_under_hooks(model):
    vector = random_vector(model, scale=1.0)
    steering = sl.Steering(vector, [1, 2], 0.7)
    expected = [plain_probability(model, question, steering.hooks()) for question in QUESTIONS]
    found = choice_probabilities(model, QUESTIONS, steering, batch_size=2, progress=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - choice_probabilities(model, QUESTIONS, progress=False)).max() > 0.01
    assert_no_hooks_left(model)


def test_a_condition_decides_for_each_question(model):
    from steerlens.steering.similarities import projection

    gauge = random_vector(model, 7)
    rows = [row.ids[:-1] for row in tokenize(model, answer_sides(model, QUESTIONS)[0])]
    seen = [read_residual(model, [ids], [0], progress=False)[0, 0] @ gauge[0] for ids in rows]
    middle = (sorted(seen)[1] + sorted(seen)[2]).item() / 2
    length = gauge[0].norm().item()
    when = sl.Condition(gauge, 0, above=middle / length, tokens="last", similarity=projection)
    plain = sl.Steering(random_vector(model, scale=1.0), [2])
    always = choice_probabilities(model, QUESTIONS, plain, progress=False)
    never = choice_probabilities(model, QUESTIONS, progress=False)
    gated = sl.Steering(plain.vector, [2], when=when)
    found = choice_probabilities(model, QUESTIONS, gated, batch_size=2, progress=False)
    fires = np.array([one.item() > middle for one in seen])
    assert fires.tolist() != [fires[0]] * len(fires)
    np.testing.assert_allclose(found, np.where(fires, always, never), atol=1e-5)


def test_the_sides_end_at_the_answer_letter_where_a_vector_is_read(tiny_chat):
    sides = answer_sides(tiny_chat, LETTERED)
    for side, letters in zip(sides, (("A", "B", "B"), ("B", "A", "A")), strict=True):
        for row, letter in zip(tokenize(tiny_chat, side), letters, strict=True):
            texts = [tiny_chat.tokenizer.decode([token]) for token in row.ids]
            assert texts[-1] == letter
            assert answer_letter(texts) == [len(texts) - 1]
    vector = sl.extract(tiny_chat, sides, tokens="last", layers=[2], progress=False)
    same = sl.extract(tiny_chat, sides, tokens=answer_letter, layers=[2], progress=False)
    assert torch.equal(vector.directions, same.directions)


def test_without_a_template_the_answer_follows_its_announcement(model_folder):
    model = sl.load_model(str(model_folder))
    model.tokenizer.chat_template = None
    [lettered, yes] = answer_sides(model, [LETTERED[0], YES_NO[0]])[0]
    assert lettered.prompt + lettered.suffix == LETTERED[0].text + "\nAnswer: (A"
    assert yes.suffix == "\nAnswer: Yes"
    ids = model.to_tokens(LETTERED[0].text + "\nAnswer: (")
    with torch.no_grad():
        p = model(ids)[0, -1].double().softmax(-1)
    a, b = (model.to_single_token(letter) for letter in "AB")
    found = choice_probabilities(model, LETTERED[:1], progress=False)
    assert found[0] == pytest.approx((p[a] / (p[a] + p[b])).item(), abs=1e-5)


@pytest.fixture(scope="module")
def linear_model(tiny_chat):
    """A random model without final norm: what is added to its last stream adds to its logits."""
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=128, act_fn="gelu",
        d_vocab=tiny_chat.cfg.d_vocab, normalization_type=None, device="cpu",
        model_name="linear", seed=0,
    )  # fmt: skip
    return HookedTransformer(cfg, tiny_chat.tokenizer).eval()


def test_a_vector_of_known_effect_moves_the_choice_as_theory_says(linear_model):
    a, b = (linear_model.to_single_token(letter) for letter in "AB")
    direction = (linear_model.W_U[:, a] - linear_model.W_U[:, b]).detach()
    vector = sl.SteeringVector(direction[None], layers=(1,))
    strengths = [-2.0, -0.5, 0.0, 0.5, 2.0]
    sweep = choice_sweep(linear_model, vector, LETTERED, None, strengths, progress=False)
    p = sweep.pivot(index="question", columns="strength", values="p_match").to_numpy()
    sign = np.array([1, -1, -1])[:, None]  # the first question's matching letter is A
    before = np.log(p[:, 2:3] / (1 - p[:, 2:3]))
    moved = before + sign * np.array(strengths) * (direction @ direction).item()
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-moved)), atol=1e-5)
    assert (sign * np.diff(p, axis=1) > 0).all()


def test_a_sweep_is_its_cells_one_by_one(model):
    vector = random_vector(model, scale=1.0, norms=torch.full((4,), 2.0))
    sweep = choice_sweep(
        model, vector, LETTERED, [1, 3], [-0.5, 0, 1], batch_size=5, progress=False, relative=True
    )
    assert list(sweep) == ["layer", "strength", "question", "p_match"]
    assert len(sweep) == 2 * 3 * 3
    for (layer, strength), cell in sweep.groupby(["layer", "strength"]):
        steering = sl.Steering(vector, [layer], strength, relative=True)
        alone = choice_probabilities(model, LETTERED, steering, progress=False)
        np.testing.assert_allclose(cell["p_match"], alone, atol=1e-5)


def test_a_summary_has_a_mean_with_its_interval_for_each_cell(model):
    sweep = choice_sweep(model, random_vector(model), QUESTIONS, [1, 3], [0, 1], progress=False)
    summary = choice_summary(sweep)
    assert summary["n"].tolist() == [5] * 4
    means = sweep.groupby(["layer", "strength"])["p_match"].mean()
    np.testing.assert_allclose(summary["p_match"], means)
    assert (summary["low"] <= summary["p_match"]).all()
    assert (summary["p_match"] <= summary["high"]).all()
    assert summary.equals(choice_summary(sweep))


def test_both_forms_of_files_are_read(tmp_path):
    entries = [
        {
            "question": question.text,
            "answer_matching_behavior": question.matching,
            "answer_not_matching_behavior": question.other,
            "label_confidence": 0.9,
        }
        for question in QUESTIONS
    ]
    (tmp_path / "caa.json").write_text(json.dumps(entries))
    (tmp_path / "persona.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    assert load_questions(tmp_path / "caa.json") == QUESTIONS
    assert load_questions(tmp_path / "persona.jsonl") == QUESTIONS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", "holds no questions"),
        ("a.json", '{"question": "?"}', "is a table with the keys"),
        ("a.json", '[{"question": "?", "answer_matching_behavior": "(A)"}]', "question 0 of"),
        ("a.json", '["?"]', "question 0 of"),
        ("a.jsonl", '{"question": "?"\n', "line 1.*not valid JSON"),
        ("a.json", "[", "not valid JSON"),
    ],
)
def test_malformed_files_are_refused_by_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(sl.SteerlensError, match=message):
        load_questions(tmp_path / name)


def test_questions_that_a_vector_was_read_from_are_not_scored_on():
    require_unseen(LETTERED[:1], LETTERED[1:])
    with pytest.raises(sl.SteerlensError, match="got 1 questions to score on that the vector is"):
        require_unseen(LETTERED[:2], LETTERED[1:])


def test_plans_that_could_not_matter_are_refused(model, other_model):
    vector = random_vector(model)
    with pytest.raises(sl.SteerlensError, match="would touch no token of these prompts"):
        choice_probabilities(model, QUESTIONS, sl.Steering(vector, positions="generated"))
    for_two = BatchPlan(sl.Steering(vector, [1]), torch.ones(2, 1))
    with pytest.raises(sl.SteerlensError, match=r"got BatchPlan\(2 rows .* for 5 prompts"):
        choice_probabilities(model, QUESTIONS, for_two)
    with pytest.raises(sl.SteerlensError, match="wide"):
        choice_probabilities(other_model, QUESTIONS, sl.Steering(vector, [1]))
    with pytest.raises(sl.SteerlensError, match="got no strengths"):
        choice_sweep(model, vector, QUESTIONS, [1], [])
    with pytest.raises(sl.SteerlensError, match="expected answers that differ"):
        choice_probabilities(model, [Question("Tea?", "(A)", "(A)")])
    with pytest.raises(sl.SteerlensError, match="at least one prompt"):
        choice_probabilities(model, [])


@pytest.mark.parametrize("ending", ["", "\nAnswer:", "\nAnswer: "])
def test_the_answer_is_announced_once(other_model, monkeypatch, ending):
    monkeypatch.setattr(other_model.tokenizer, "chat_template", None)
    question = Question(f"Is tea nice?\n (A) Yes\n (B) No{ending}", " (A)", " (B)")
    for [passage], letter in zip(answer_sides(other_model, [question]), "AB", strict=True):
        whole = passage.prompt + passage.suffix
        assert whole == f"Is tea nice?\n (A) Yes\n (B) No\nAnswer: ({letter}"
