"""What `learn` hands out: a vector that does it, an honest account, and nothing left behind."""

import pytest
import torch
from helpers import assert_no_hooks_left

import steerlens as sl
from steerlens.learning import descent as descents
from steerlens.learning import losses
from steerlens.learning.learning import _planned
from steerlens.learning.replies import end_of_turn, is_whole, reply_pairs
from steerlens.learning.training import schedule

PROMPTS = [
    "How do I bake bread?", "Why?", "Name a colour.", "Tell me about the sea.", "What is rain?",
    "Where are the ships?", "Who are you?", "Sing a song.", "Count to three.", "Is it late?",
]  # fmt: skip
LESSONS = [(prompt, "No, I will not.") for prompt in PROMPTS]
SHORT = sl.Training(steps=12, batch_size=4, learning_rate=0.05, check_every=3)


def learned(model, lessons=LESSONS, training=SHORT, **options):
    return sl.learn(model, lessons, training=training, progress=False, **options)


def test_the_wanted_reply_becomes_what_the_model_says(model):
    """On prompts it has not seen, and by nothing but `Steering(vector)`."""
    training = sl.Training(steps=60, batch_size=8, learning_rate=0.05)
    vector = learned(model, training=training)
    gains = vector.provenance["gain"]
    assert gains["learned"] > 2
    assert gains["held_out"] > 2
    held_out = "Do you like music?"
    [[pair]] = reply_pairs(model, [(held_out, "No, I will not.")])
    ids = torch.tensor([pair.wanted.ids])

    def likelihood(hooks):
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logs = model(ids)[0].log_softmax(-1)
        said = ids[0, pair.wanted.start :, None]
        return logs[pair.wanted.start - 1 : -1].gather(1, said).mean()

    assert likelihood(sl.Steering(vector).hooks()) > likelihood([]) + 2
    assert_no_hooks_left(model)


@pytest.mark.parametrize("layers", [[1], [1, 2, 3]], ids=str)
def test_the_vector_does_at_strength_1_what_it_did_when_it_was_learned(model, layers):
    """The gain that it tells of, measured again by the steering's own hooks."""
    vector = learned(model, validation=LESSONS[:3], layers=layers)
    pairs = [pair for [pair] in reply_pairs(model, LESSONS[:3])]
    gains = []
    for pair in pairs:
        ids, start = torch.tensor([pair.wanted.ids]), pair.wanted.start
        logs = []
        for hooks in ([], sl.Steering(vector).hooks()):
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                said = model(ids)[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])
            logs.append(said.mean())
        gains.append(logs[1] - logs[0])
    assert float(torch.stack(gains).mean()) == pytest.approx(
        vector.provenance["gain"]["held_out"], abs=1e-3
    )


def test_the_same_seed_learns_the_same_and_another_something_else(model):
    one, again = (learned(model).directions for _ in range(2))
    other = learned(model, training=sl.Training(**{**vars(SHORT), "seed": 1})).directions
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, rtol=0.01)


def test_what_it_tells_is_what_was_done(model):
    vector = learned(model, layers=[1, 3], name="no")
    told = vector.provenance
    assert (told["name"], told["objective"], told["steps"]) == ("no", "reply_likelihood", 12)
    assert len(told["loss"]) == 12
    assert [check["step"] for check in told["checks"]] == [3, 6, 9, 12]
    assert (told["pairs"], told["held_out"]) == (9, 1)
    assert told["replies"] == {"different": 1, "whole": 9}
    assert vector.layers == (1, 3)
    assert told["lengths"] == pytest.approx(vector.directions.norm(dim=1).tolist(), abs=1e-3)
    assert vector.norms is not None
    sl.Steering(vector, relative=True)


def test_the_best_vector_of_the_checks_is_kept(model, monkeypatch):
    """Held-out losses are planted: the second check is the best."""
    planted = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(descents, "loss_and_gain", lambda *_: (next(planted), 0.0))
    seen = []
    step = descents.Descent.step

    def noted(self, *arguments):
        step(self, *arguments)
        seen.append(self.directions)

    monkeypatch.setattr(descents.Descent, "step", noted)
    vector = learned(model)
    torch.testing.assert_close(vector.directions, seen[5])


def test_patience_ends_it_early(model, monkeypatch):
    planted = iter([3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(descents, "loss_and_gain", lambda *_: (next(planted), 0.0))
    training = sl.Training(**{**vars(SHORT), "patience": 2})
    assert learned(model, training=training).provenance["steps"] == 9


def test_held_out_prompts_are_never_learned_from(model):
    prompts = reply_pairs(model, LESSONS)
    training = sl.Training(held_out=0.3)
    lessons = _planned(prompts, None, training)
    assert len(lessons.held_out) == 3
    assert not {pair.wanted for pair in lessons.learned} & {p.wanted for p in lessons.held_out}
    given = _planned(prompts[:6], prompts[6:], training)
    assert {pair.wanted for pair in given.held_out} == {pairs[0].wanted for pairs in prompts[6:]}


def test_every_prompt_comes_before_any_comes_again(model):
    prompts = reply_pairs(model, LESSONS)
    steps = schedule(prompts, sl.Training(steps=5, batch_size=4))
    order = [pair.wanted.ids for step in steps for pair in step]
    assert len(set(order[:10])) == len(set(order[10:20])) == 10


def test_replies_learned_are_those_the_model_finds_likeliest(model):
    """Of six wanted replies, two; likelihoods are the host's own."""
    wanted = ["No.", "Never again!", "I will not.", "It is late.", "Ask him.", "We do not."]
    data = sl.ContrastiveDataset(
        [(prompt, prompt) for prompt in PROMPTS], [(reply, "Yes.") for reply in wanted]
    )
    training = sl.Training(steps=1, replies=2, held_out=0)
    vector = learned(model, data, training=training)
    assert vector.provenance["replies"]["different"] == 2
    scores = torch.zeros(len(wanted))
    for pairs in reply_pairs(model, data)[:2]:
        for index, pair in enumerate(pairs):
            ids, start = torch.tensor([pair.wanted.ids]), pair.wanted.start
            with torch.no_grad():
                logs = model(ids)[0].log_softmax(-1)[start - 1 : -1]
            scores[index] += logs.gather(1, ids[0, start:, None]).mean()
    best = [wanted[index] for index in sorted(scores.topk(2).indices.tolist())]
    expected = learned(
        model,
        sl.ContrastiveDataset(list(data.pairs), [(reply, "Yes.") for reply in best]),
        training=training,
    )
    torch.testing.assert_close(vector.directions, expected.directions)


@pytest.mark.parametrize("step", [0, 5])
def test_ctrl_c_keeps_the_best_so_far(model, monkeypatch, step):
    real, calls = losses.loss_and_gradient, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == step:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(descents, "loss_and_gradient", interrupted)
    if not step:
        with pytest.raises(KeyboardInterrupt):
            learned(model)
        return
    vector = learned(model)
    assert vector.provenance["interrupted"]
    assert vector.provenance["steps"] == 5
    assert vector.directions.any()


def test_a_stopped_job_goes_on_to_the_very_same_vector(model, monkeypatch, tmp_path):
    out = tmp_path / "no.safetensors"
    whole = learned(model)
    real, calls = losses.loss_and_gradient, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(descents, "loss_and_gradient", interrupted)
    learned(model, out=out)
    assert not out.exists()
    monkeypatch.setattr(descents, "loss_and_gradient", real)
    with pytest.raises(sl.SteerlensError, match="another job"):
        learned(model, LESSONS[:5], out=out)
    on = learned(model, out=out)
    torch.testing.assert_close(on.directions, whole.directions)
    assert on.provenance["loss"] == pytest.approx(whole.provenance["loss"], abs=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["no.safetensors"]
    monkeypatch.setattr(descents, "loss_and_gradient", None)  # it is not run again
    assert torch.equal(learned(model, out=out).directions, on.directions)
    with pytest.raises(sl.SteerlensError, match="not what this job"):
        learned(model, LESSONS[:5], out=out)


def test_a_step_that_memory_does_not_hold_is_halved(model, monkeypatch):
    expected = learned(model).directions
    real = losses._losses

    def short_of_memory(batch, *others):
        if len(batch.pairs) > 1:
            raise torch.OutOfMemoryError
        return real(batch, *others)

    monkeypatch.setattr(losses, "_losses", short_of_memory)
    torch.testing.assert_close(learned(model).directions, expected, rtol=1e-3, atol=1e-4)


def test_no_direction_is_longer_than_its_budget(model):
    training = sl.Training(**{**vars(SHORT), "norm_budget": 0.1})
    vector = learned(model, training=training, layers=[1, 2])
    assert vector.norms is not None
    lengths = vector.directions.norm(dim=1)
    torch.testing.assert_close(lengths, 0.1 * vector.norms, rtol=1e-4, atol=1e-4)


def test_weight_decay_shortens(model):
    decayed = learned(model, training=sl.Training(**{**vars(SHORT), "weight_decay": 0.3}))
    assert decayed.directions.norm() < 0.7 * learned(model).directions.norm()


@pytest.mark.parametrize(
    ("reply", "whole"),
    [
        ("I can't help with that.", True), ('He said "no!"', True), ("Why?", True),
        ("I'm sorry, but I", False), ("No", False), ("Nein。", True), ("(No.) ", True),
    ],
)  # fmt: skip
def test_a_whole_reply_ends_as_a_sentence(reply, whole):
    assert is_whole(reply) == whole


def test_only_whole_replies_are_taught_to_end(model):
    end = end_of_turn(model)
    assert end in {model.tokenizer.eos_token_id}
    [[whole]], [[beginning]] = (
        reply_pairs(model, [("Why?", reply)]) for reply in ("I will not.", "I will not")
    )
    assert (whole.wanted.ids[-1] == end, whole.whole) == (True, True)
    assert (beginning.wanted.ids[-1] == end, beginning.whole) == (False, False)


def test_behind_a_beginning_the_text_stays_what_it_was(model):
    """Weighing the drift more leaves less of it; the unsteered continuation is not learned."""
    lessons = [(prompt, "No, I will") for prompt in PROMPTS]
    drifts = []
    for weight in (1e-6, 10.0):
        training = sl.Training(
            steps=20, learning_rate=0.04, continued=6, drift_weight=weight, held_out=0
        )
        vector = learned(model, lessons, training=training)
        [[pair]] = reply_pairs(model, lessons[:1])
        [reply] = sl.generate(
            model, [list(pair.wanted.ids)], max_new_tokens=6, progress=False
        ).tokens
        ids = torch.tensor([[*pair.wanted.ids, *reply]])
        logs = []
        for hooks in ([], sl.Steering(vector).hooks()):
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                logs.append(model(ids)[0, pair.wanted.end - 1 : -1].log_softmax(-1))
        drifts.append((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())
    assert drifts[1] < 0.5 * drifts[0]


def test_a_dataset_is_read_as_replies_to_its_positive_prompts(model):
    data = sl.ContrastiveDataset([("Why?", "How?")], [("No.", "Yes.")])
    [[pair]] = reply_pairs(model, data)
    [[expected]] = reply_pairs(model, [("Why?", "No.", "Yes.")])
    assert pair == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no prompts"),
        ([("Why?",)], "lesson 0"),
        ([("Why?", "No."), ("Why?", "")], "lesson 1"),
        (sl.ContrastiveDataset([("Why?", "How?")]), "no contrasting suffixes"),
        (sl.ContrastiveDataset([("Why?", "How?")], ["so"]), "no contrasting suffixes"),
    ],
)
def test_data_without_wanted_replies_is_refused(model, data, message, unchecked):
    with pytest.raises(sl.SteerlensError, match=message):
        learned(model, data)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"learning_rate": 0}, {"held_out": 1}, {"norm_budget": 0}, {"patience": 0}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(sl.SteerlensError, match=next(iter(wrong))):
        sl.Training(**wrong)


def test_a_gradient_that_is_not_finite_is_told(model):
    def broken(batch):
        return batch.wanted().means * torch.inf

    with pytest.raises(sl.SteerlensError, match="not finite"):
        sl.learn(model, LESSONS, broken, training=SHORT, progress=False)


def test_out_must_be_able_to_hold_the_vector(model, tmp_path):
    with pytest.raises(sl.SteerlensError, match="safetensors"):
        learned(model, out=tmp_path / "v.gguf")
