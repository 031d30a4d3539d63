"""How commands end when the disk is full, when Ctrl-C comes, and when nobody reads on."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from typer.testing import CliRunner

import steerlens as sl
from steerlens.cli.output import console, print_rows, reporting, say
from steerlens.studies.quickstart import DemoPart, show

STEERLENS = [sys.executable, "-m", "steerlens"]


def no_large_files(most=4500):
    """Room for what loading a model writes aside, but not for a vector of six layers."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_full_disk_is_a_message(tmp_path):
    done = subprocess.run(
        [*STEERLENS, "extract", sl.demo_file("harmful.json"), "--part", "test", "--out",
         tmp_path / "v.safetensors"],
        capture_output=True, text=True, preexec_fn=no_large_files,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_a_message():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*STEERLENS, "models", "--names"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert os.strerror(errno.ENOSPC) in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    shown = subprocess.run(
        f"{sys.executable} -m steerlens models --names | head -n 1; "
        f"{sys.executable} -m steerlens --help | true",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.count("\n") == 1
    assert shown.stderr == ""


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (sl.SteerlensError("a [b]c[/b] :x:"), 2, "error: a [b]c[/b] :x:"),
        (KeyboardInterrupt(), 130, "stopped"),
        (
            OSError(errno.ENOSPC, "No space left on device", "f.json"),
            1,
            "f.json: No space left on device; free some space",
        ),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_endings_have_a_status_and_a_message(raised, code, message):
    import typer

    ending = typer.Typer()

    @ending.command()
    @reporting
    def command() -> None:
        raise raised

    done = CliRunner().invoke(ending, [])
    assert done.exit_code == code
    assert message in done.output
    assert "Traceback" not in done.output


def test_ctrl_c_ends_a_command_with_130(tmp_path):
    (tmp_path / "v.safetensors").touch()
    os.mkfifo(tmp_path / "prompts.txt")
    running = subprocess.Popen(
        [*STEERLENS, "generate", "v.safetensors", "--file", "prompts.txt"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        # What runs in the background of a shell ignores it, and so would its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    with held_open(tmp_path / "prompts.txt"):  # it reads its prompts, and waits for more
        said = interrupted(running)
    assert running.returncode == 130
    assert said.strip() == "stopped"


def interrupted(running):
    """What a process says when Ctrl-C ends it."""
    for _ in range(3):
        running.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return running.communicate(timeout=20)[0]
        # A read that began just after the signal has not seen it: once more.
    raise AssertionError("Ctrl-C does not end it")


@contextmanager
def held_open(fifo):
    """A pipe's writing end, from the moment on that somebody reads it."""
    for _ in range(600):
        try:
            end = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.05)
        else:
            break
    time.sleep(0.2)
    yield
    os.close(end)


def test_texts_are_printed_as_they_are(capsys):
    with console.capture() as captured:
        say("[red]x[/red] [/] :smile: " + "y" * 200)
    assert captured.get() == "[red]x[/red] [/] :smile: " + "y" * 200 + "\n"


def test_control_characters_are_shown_not_obeyed(capsys):
    with console.capture() as captured:
        say("\x1b[2J\x1b[31mred \x07\x9b31m \u202ereversed\ta\nb")
        print_rows(["reply\x1b"], [["\x1b]0;title\x07"]])
        show(DemoPart([], "chosen", [("prompt", "steered"), ("Why?", "\x1b[2Jgone")]), console)
    said = captured.get()
    assert "␛[2J␛[31mred ␇\ufffd31m \ufffdreversed" in said
    assert "␛]0;title␇" in said
    assert "␛[2Jgone" in said
    assert not set(said) & {"\x07", "\x1b", "\x9b", "\u202e"}
