"""Prompts that ask: where the request stands, and that nothing else changes."""

import pytest

from steerlens.data.asking import few_shot, instruction, system_message
from steerlens.errors import SteerlensError

USER = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be kind."}
OTHER = {"role": "system", "content": "Be brief."}
SHOTS = [{"role": "user", "content": "Go?"}, {"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    ("asking", "prompt", "expected"),
    [
        (system_message("Be brief."), "Hi.", [OTHER, USER]),
        (system_message("Be brief."), [SYSTEM, USER], [OTHER, USER]),
        (instruction("Be brief."), "Hi.", "Be brief.\n\nHi."),
        (
            instruction("Be brief."),
            [SYSTEM, USER],
            [SYSTEM, {"role": "user", "content": "Be brief.\n\nHi."}],
        ),
        (few_shot([("Go?", "No.")]), "Hi.", [*SHOTS, USER]),
        (few_shot([("Go?", "No.")]), [SYSTEM, USER], [SYSTEM, *SHOTS, USER]),
    ],
)
def test_a_request_stands_where_it_should(asking, prompt, expected):
    assert asking(prompt) == expected


@pytest.mark.parametrize("make", [system_message, instruction])
def test_empty_requests_are_refused(make):
    with pytest.raises(SteerlensError, match="expected the words that ask"):
        make(" ")


@pytest.mark.parametrize("prompt", [[4, 40], (4, 40), "", [{"role": "user"}]])
def test_only_texts_and_chats_can_ask(unchecked, prompt):
    with pytest.raises(SteerlensError, match="asking"):
        instruction("Be brief.")(prompt)


def test_no_examples_are_refused():
    with pytest.raises(SteerlensError, match="at least one"):
        few_shot([])
