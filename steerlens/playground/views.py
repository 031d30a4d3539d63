"""What the page shows of a job: its state, replies, gates and tokens. Nothing here runs a model."""

from collections.abc import Iterable
from typing import Any

from dash import dcc, html

from steerlens.dashboards.theme import NEGATIVE, POSITIVE, faded
from steerlens.judges.fluency import degenerate
from steerlens.playground.jobs import Job, State
from steerlens.playground.layout import section
from steerlens.playground.request import LADDER, Outcome, Push
from steerlens.playground.token_view import Reading, cosines_by_layer
from steerlens.steering.transcripts import TokenGateReport


def status(job: Job[Outcome], ahead: int) -> str:
    """The state of a job, in words."""
    outcome = job.latest
    replies = None if outcome is None else outcome.replies
    n_tokens = 0 if replies is None else max(map(len, replies.tokens))
    match job.state:
        case State.WAITING:
            return f"Waiting for another tab ({ahead} ahead) …"
        case State.WORKING if outcome is not None and outcome.stage:
            return f"{outcome.stage}: {job.progress or 'beginning'} …"
        case State.WORKING:
            return f"Writing: {n_tokens} tokens …" if n_tokens else "Reading the prompt …"
        case State.STOPPED if outcome is not None and outcome.stage:
            return "Stopped; nothing was kept."
        case State.STOPPED:
            return f"Stopped after {n_tokens} tokens."
        case State.FAILED:
            return "Failed."
    return f"Done: {n_tokens} tokens."


def rungs(outcome: Outcome | None) -> Any:
    """The replies at all strengths of a ladder, degenerate ones marked."""
    replies = None if outcome is None else outcome.replies
    if outcome is None or replies is None or len(replies) == 2:
        return []
    shares = dict(zip(LADDER, replies.texts[1:], strict=True))
    rows = [
        html.Tr(
            [
                html.Th(", ".join(_times(share, push) for push in outcome.trial.pushes)),
                html.Td([text, html.Em(" degenerate")] if degenerate(text) else text),
            ],
            className="degenerate" if degenerate(text) else "",
        )
        for share, text in sorted(shares.items())
    ]
    return section("The steered reply by strength", html.Table(html.Tbody(rows)))


def _times(share: float, push: Push) -> str:
    return f"{push.vector} {share * (push.strength or 0):.3g}"


def gates(outcome: Outcome | None) -> list[Any]:
    """What the rule's conditions measured of the prompt, or of each token, and decided."""
    of_tokens = () if outcome is None or outcome.replies is None else outcome.replies.token_gates
    return [
        html.Li(
            f"{gate.condition.name}: {similarity:.4f} at layer {gate.condition.layers_read[0]}, "
            f"threshold {gate.condition.threshold:.4f}: {'fired' if fired else 'did not fire'}"
        )
        for gate, similarity, fired in (() if outcome is None else outcome.gates)
    ] + [html.Li(_token_gate(report)) for report in of_tokens]


def _token_gate(report: TokenGateReport) -> list[Any]:
    """The steered text, with the tokens marked on which a condition fired."""
    line = report.timelines[1]
    marked = zip(line.tokens, line.open.tolist(), strict=True)
    return [
        f"{report.condition.name} fired on tokens of {report.seen_of(1)} ",
        html.Details([
            html.Summary("show them"),
            *(html.Mark(token) if on else token for token, on in marked),
        ]),
    ]  # fmt: skip


def seen_by(reading: Reading | None, name: str, layer: int, above: float) -> str:
    """A condition's similarity to the prompt, and whether it fires at the current threshold."""
    if reading is None or name not in reading.by_vector:
        return ""
    similarity = reading.by_vector[name].cosine(layer)
    return f"{similarity:.4f}: {'fires' if similarity > above else 'does not fire'}"


def figure_of(reading: Reading, name: str) -> Any:
    """Cosines between prompt and vector, by layer."""
    return dcc.Graph(figure=cosines_by_layer(reading, name), config={"displayModeBar": False})


def coloured(reading: Reading, name: str, layer: int) -> Iterable[Any]:
    """The prompt's tokens on orange (along the vector) or blue (against it)."""
    measured = reading.by_vector[name]
    projections = measured.projections[:, measured.layers.index(layer)].tolist()
    shares = reading.colours(name, layer)
    for token, share, projection in zip(reading.tokens, shares, projections, strict=True):
        colour = faded(POSITIVE if share > 0 else NEGATIVE, round(abs(share) * 0.6, 2))
        yield html.Span(
            token.replace("\n", "⏎"),
            title=f"{projection:.3g}",
            style={"backgroundColor": colour},
        )
