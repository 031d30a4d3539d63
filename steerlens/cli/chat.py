"""A conversation in the terminal, whose steering may be changed between its turns."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import TINY_CHAT
from steerlens.cli.options import (
    GENERATE,
    FoundStrength,
    Layers,
    MaxNewTokens,
    ModelName,
    Relative,
    Seed,
    Temperature,
    app,
    parse_strengths,
    taking,
)
from steerlens.cli.output import complain, console, reporting, say
from steerlens.cli.plans import at_found_strength, plan_of, require_no_settings, steered_file
from steerlens.cli.steer import (
    ConditionFile,
    ConditionVector,
    condition_of,
    require_whole_condition,
)
from steerlens.display import visible
from steerlens.errors import SteerlensError

HELP = (
    "/undo takes back the last turn, /reset all of them; /strength 0.5 steers with another "
    "strength from now on; /quit ends. Everything else is said to the model."
)


@app.command("chat", rich_help_panel=GENERATE)
@reporting
def chat_command(
    model: ModelName = TINY_CHAT,
    vector: Annotated[
        Path | None, taking(steered_file, "VECTOR", "The vector or plan to steer with.")
    ] = None,
    layers: Layers = None,
    strength: FoundStrength = None,
    relative: Relative = False,
    condition: ConditionFile = None,
    condition_vector: ConditionVector = None,
    unless: Annotated[
        bool, typer.Option("--unless", help="Steer turns on which the condition does *not* fire.")
    ] = False,
    first_turn: Annotated[
        bool,
        typer.Option("--first-turn", help="Read the condition in the first turn only, for all."),
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> None:
    """Talk with the model, steered; /help lists what else can be typed.

    Lines may be piped in, one for each turn.

    Example: steerlens chat --model smollm2 --vector refuse.safetensors --layers 10
    """
    require_whole_condition(condition, condition_vector, unless)
    if vector is None and (condition is not None or strength is not None or layers is not None):
        raise SteerlensError(
            "got --layers, --strength or --condition without --vector; expected the vector to "
            "steer with: give --vector, too"
        )
    if vector is not None:
        require_no_settings(
            vector, layers=layers, strength=strength is not None, relative=relative,
            condition=condition,
        )  # fmt: skip
    from steerlens.models.loading import load_model
    from steerlens.steering.chat import EVERY_TURN, FIRST_TURN, Chat
    from steerlens.steering.sampling import Sampling

    plan: tuple[Any, ...] = ()
    if vector is not None:
        when = condition_of(condition, condition_vector, unless)
        plan = plan_of(vector, layers, strength, when=when, relative=relative)
    loaded = load_model(model)
    if vector is not None and strength is None:
        plan = at_found_strength(loaded, plan, vector)
    chat = Chat(
        loaded, list(plan), system=system, max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, seed=seed),
        conditions=FIRST_TURN if first_turn else EVERY_TURN,
    )  # fmt: skip
    watched = sys.stdin.isatty()
    if watched:
        say("\n".join(map(str, plan)) or "unsteered")
        say(HELP)
    for line in _lines(watched):
        if line.split()[:1] == ["/quit"]:
            return
        try:
            _answer(chat, line)
        except SteerlensError as error:
            if not watched:
                raise
            complain(str(error))


def _lines(watched: bool) -> Iterator[str]:
    """The lines that are typed, which can be edited and called back, or piped in."""
    if not watched:
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401 - from now on, input() has a history
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line:
            yield line


def _answer(chat: Any, line: str) -> None:
    """Do what a command says, or say a line to the model."""
    if not line.startswith("/"):
        _reply(chat, line)
        return
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise SteerlensError(f"got {name!r}; expected one of {', '.join([*COMMANDS, '/quit'])}")
    say(COMMANDS[name](chat, rest.strip()), style="dim")


def _reply(chat: Any, words: str) -> None:
    """Print the reply as it grows, and what can be said of it; Ctrl-C takes the turn back."""
    shown = ""
    try:
        for turn in chat.stream(words):
            console.print(visible(turn.text[len(shown) :]), end="", soft_wrap=True)
            shown = turn.text
    except KeyboardInterrupt:
        say("\nstopped, and taken back", style="dim")
        return
    console.print()
    notes = [turn.seen, "degenerate" if turn.degenerate else "", "" if turn.finished else "cut off"]
    if any(notes):
        say(f"[{'; '.join(filter(None, notes))}]", style="dim")


def _undo(chat: Any, _: str) -> str:
    chat.undo()
    return f"taken back; {len(chat.turns)} turns are left"


def _reset(chat: Any, _: str) -> str:
    chat.turns = ()
    return "all turns are taken back"


def _strength(chat: Any, number: str) -> str:
    if len(chat.steering) != 1:
        raise SteerlensError(
            f"got /strength with {len(chat.steering)} steerings; expected one, by --vector"
        )
    numbers = parse_strengths(number)
    if len(numbers) != 1:
        raise SteerlensError(f"got /strength {number}; expected one number")
    [steering] = chat.steering
    chat.steering = [replace(steering, strength=numbers[0])]
    return str(chat.steering[0])


def _help(_: Any, __: str) -> str:
    return HELP


COMMANDS: dict[str, Callable[[Any, str], str]] = {
    "/undo": _undo,
    "/reset": _reset,
    "/strength": _strength,
    "/help": _help,
}
"""What a line that begins with a slash may ask for; `/quit` ends the loop."""
