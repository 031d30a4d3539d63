"""A conversation in the terminal, typed by a pipe."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli import app, chat
from steerlens.steering.condition_search import ConditionSearch

SHORT = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def files(tiny_chat, tmp_path_factory):
    """A vector, and a search of a condition."""
    folder = tmp_path_factory.mktemp("chat")
    pairs = [(f"I love the number {n}.", f"We hate the colour {n}.") for n in range(8)]
    data = sl.ContrastiveDataset(pairs)
    vector = sl.extract(tiny_chat, data, layers=[1, 2, 3], progress=False)
    vector.save(folder / "v.safetensors")
    found = sl.search_conditions(tiny_chat, vector, data, layers=[1], name="love", progress=False)
    found.save(folder / "s.json")
    return folder


@pytest.fixture
def talk():
    runner = CliRunner(env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})

    def say(lines, *options):
        typed = "".join(f"{line}\n" for line in lines)
        return runner.invoke(app, ["chat", *map(str, options), *SHORT], input=typed)

    return say


def replies(tiny_chat, steering, *said, **options):
    talk = sl.Chat(tiny_chat, steering, max_new_tokens=6, **options)
    return [talk.say(words).text for words in said]


def test_lines_are_turns(talk, tiny_chat):
    done = talk(["How do I bake bread?", "", "Why?"], "--system", "Be kind.")
    assert done.exit_code == 0, done.output
    first, second = replies(tiny_chat, None, "How do I bake bread?", "Why?", system="Be kind.")
    assert done.output == f"{first}\n[cut off]\n{second}\n[cut off]\n"


def test_a_turn_is_taken_back_and_steered_otherwise(talk, tiny_chat, files):
    vector = sl.SteeringVector.load(files / "v.safetensors")
    done = talk(
        ["Hi.", "/undo", "/strength -2", "Why?", "/reset", "Hi.", "/help", "/quit", "Never said."],
        "--vector", files / "v.safetensors", "--layers", "3", "--strength", "0.5", "--relative",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    steered, other = (sl.Steering(vector, [3], x, relative=True) for x in (0.5, -2.0))
    said = [
        *replies(tiny_chat, steered, "Hi."), "taken back; 0 turns are left", repr(other),
        *replies(tiny_chat, other, "Why?"), "all turns are taken back",
        *replies(tiny_chat, other, "Hi."), chat.HELP,
    ]  # fmt: skip
    assert [line for line in done.output.splitlines() if line[0] != "["] == said


@pytest.mark.parametrize("first_turn", [False, True])
def test_gates_are_told_turn_by_turn(talk, tiny_chat, files, first_turn):
    vector = sl.SteeringVector.load(files / "v.safetensors")
    best = ConditionSearch.load(files / "s.json", vector).best
    done = talk(
        ["I love the number 3.", "We hate the colour 5."], "--vector", files / "v.safetensors",
        "--layers", "3", "--strength", "1", "--condition", files / "s.json",
        "--condition-vector", files / "v.safetensors", *["--first-turn"] * first_turn,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    expected = sl.Chat(
        tiny_chat, sl.Steering(vector, [3], when=best), max_new_tokens=6,
        conditions="first turn" if first_turn else "every turn",
    )  # fmt: skip
    for words in ("I love the number 3.", "We hate the colour 5."):
        turn = expected.say(words)
        assert turn.text in done.output
        assert f"[{turn.seen}" in done.output
    assert done.output.count("love fired (") == 1 + first_turn


def test_mistakes_end_a_piped_conversation(talk, files):
    for line, told in (
        ("/redo", "got '/redo'; expected one of /undo, /reset, /strength, /help, /quit"),
        ("/undo", "undo(1) in a conversation of 0 turns"),
        ("/strength 1", "got /strength with 0 steerings; expected one, by --vector"),
    ):
        done = talk([line, "Hi."])
        assert done.exit_code == 2
        assert told in " ".join(done.output.split())
    bad = talk(["/strength 1,2"], "--vector", files / "v.safetensors", "--strength", "1")
    assert "expected one number" in bad.output
    for options, told in (
        (["--strength", "1"], "without --vector"),
        (["--condition", files / "s.json"], "only one of --condition and --condition-vector"),
    ):
        done = talk(["Hi."], *options)
        assert done.exit_code == 2
        assert told in done.output


def test_in_a_terminal_mistakes_are_told_and_it_goes_on(monkeypatch, capsys, tiny_chat):
    typed = iter(["/redo", "", "Hi."])

    def answered(prompt):
        assert prompt == "> "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answered)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    chat.chat_command(max_new_tokens=4)
    shown = capsys.readouterr()
    [reply] = sl.generate(tiny_chat, ["Hi."], max_new_tokens=4, progress=False)
    assert "got '/redo'" in shown.err
    assert reply in shown.out
    assert "/undo takes back" in shown.out


def test_ctrl_c_takes_the_turn_back(monkeypatch, capsys, tiny_chat):
    talk = sl.Chat(tiny_chat, max_new_tokens=4)

    stream = talk.stream

    def interrupted(words):
        yield next(stream(words))
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "stream", interrupted)
    chat._reply(talk, "Hi.")
    assert "stopped, and taken back" in capsys.readouterr().out
    assert talk.turns == ()


@pytest.mark.slow
def test_the_command_talks_through_a_real_pipe(tiny_chat):
    done = subprocess.run(
        [sys.executable, "-m", "steerlens", "chat", "--max-new-tokens", "6"],
        input="Hi.\n/quit\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == replies(tiny_chat, None, "Hi.")[0]
