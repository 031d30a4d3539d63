"""The command line: arguments → calls of the library."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steerlens.choices import answer_sides, choice_summary, choice_sweep, load_questions
from steerlens.conditions import SIMILARITIES
from steerlens.contrast import ContrastiveDataset, load_prompts
from steerlens.demo import run_demo
from steerlens.directions import ESTIMATORS
from steerlens.errors import SteerlensError
from steerlens.extraction import extract
from steerlens.files import (
    read_lines,
    require_writable,
    write_atomically,
    write_json,
    write_text,
)
from steerlens.formats import writer_of
from steerlens.generation import generate
from steerlens.models import TINY_CHAT, load_model
from steerlens.search import ConditionSearch, search_conditions
from steerlens.steering import Steering
from steerlens.vector import SteeringVector

app = typer.Typer(
    help="Activation steering and conditional activation steering on TransformerLens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console()

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="tiny-chat (ships with steerlens), a local Hugging Face directory, or a hub name.",
    ),
]
Layers = Annotated[
    str | None, typer.Option(help='Layers, such as "3", "2-5" or "1,4-6". Default: all.')
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Show steerlens's own errors as a message, not as a traceback; exit with 2."""

    @wraps(command)
    def reported(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except SteerlensError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
            raise typer.Exit(2) from error

    return reported


@app.command()
@reporting
def demo(
    out: Annotated[Path, typer.Option(help="Where results.json and the pages go.")] = Path(
        "out/demo"
    ),
    model: ModelName = TINY_CHAT,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts: a first look.")] = False,
) -> None:
    """Run the CAST quickstart: refuse everything, refuse harm only, refuse by topic."""
    run_demo(model, out, seed=seed, quick=quick, console=console)


@app.command("extract")
@reporting
def extract_command(
    dataset: Annotated[Path, typer.Argument(help="A contrastive dataset (JSON).")],
    out: Annotated[Path, typer.Option(help="The vector file to write (.safetensors).")],
    model: ModelName = TINY_CHAT,
    part: Annotated[str, typer.Option(help="Which part of the dataset; empty: all of it.")] = "",
    estimator: Annotated[str, typer.Option(help=f"One of {', '.join(ESTIMATORS)}.")] = (
        "pca_pairwise"
    ),
    tokens: Annotated[
        str, typer.Option(help='Tokens that are read: "last", "all", "suffix", or the last k.')
    ] = "last",
    layers: Layers = None,
    site: Annotated[str, typer.Option(help="Where in a block it is read.")] = "resid_post",
) -> None:
    """Extract a steering vector from contrasting prompts.

    Example: steerlens extract demo-data/refusal.json --part train --tokens suffix --out
    refuse.safetensors
    """
    if estimator not in ESTIMATORS:
        raise SteerlensError(
            f"--estimator {estimator!r} is unknown; choose one of {', '.join(ESTIMATORS)}"
        )
    require_writable(out.parent)
    writer_of(out)  # refuses unknown endings before the work
    data = ContrastiveDataset.load(dataset)
    vector = extract(
        load_model(model),
        data.part(part) if part else data,
        ESTIMATORS[estimator],
        tokens=int(tokens) if tokens.isdecimal() else tokens,
        layers=parse_layers(layers),
        site=site,
    )
    vector.save(out)
    table = Table("layer", "length", "activation norm", "explained variance")
    assert vector.norms is not None
    assert vector.explained is not None
    for row, layer in enumerate(vector.layers):
        table.add_row(
            str(layer),
            f"{vector.directions[row].norm():.3f}",
            f"{vector.norms[row]:.2f}",
            f"{vector.explained[row]:.3f}",
        )
    console.print(table)
    console.print(f"wrote {vector} to {out}")


@app.command()
@reporting
def search(
    vector: Annotated[Path, typer.Argument(help="A vector file.")],
    dataset: Annotated[Path, typer.Argument(help="Positive and negative prompts (JSON).")],
    out: Annotated[Path, typer.Option(help="The search file to write (JSON).")],
    model: ModelName = TINY_CHAT,
    part: Annotated[str, typer.Option(help="The part to choose on; empty: all of it.")] = "",
    held_out: Annotated[
        str, typer.Option(help="The part to score on; empty: half of the prompts.")
    ] = "",
    layers: Layers = None,
    tokens: Annotated[
        str, typer.Option(help='Tokens of the prompt that are judged: "all", "last", the last k.')
    ] = "all",
    similarity: Annotated[str, typer.Option(help=f"One of {', '.join(SIMILARITIES)}.")] = "cast",
    combine: Annotated[int, typer.Option(help="Up to so many layers, any of which fires.")] = 1,
    page: Annotated[Path | None, typer.Option(help="Also write a page of figures (HTML).")] = None,
    seed: Seed = 0,
) -> None:
    """Find the layer and threshold that best tell positive prompts from negative ones.

    Example: steerlens search harm.safetensors demo-data/harmful.json --part validation
    --held-out test --out harm.json
    """
    from steerlens.dashboards import condition_report

    for path in (out, page):
        if path is not None:
            require_writable(path.parent)
    if similarity not in SIMILARITIES:
        raise SteerlensError(
            f"--similarity {similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}"
        )
    data = ContrastiveDataset.load(dataset)
    found = search_conditions(
        load_model(model),
        SteeringVector.load(vector),
        data.part(part) if part else data,
        held_out=data.part(held_out) if held_out else None,
        layers=parse_layers(layers),
        combine=combine,
        similarity=SIMILARITIES[similarity],
        tokens=int(tokens) if tokens.isdecimal() else tokens,
        seed=seed,
    )
    found.save(out)
    table = Table("layers", "fires", "threshold", "F1 where chosen", title="Best candidates")
    for candidate in found.candidates[:8]:
        table.add_row(
            ", ".join(map(str, candidate.layers)),
            candidate.side,
            f"{candidate.threshold:.4f}",
            f"{candidate.f1:.3f}",
        )
    console.print(table)
    scores = found.scores
    console.print(f"best: {found.best}, on {found.scored_on} it was not chosen on:")
    for measure in ("f1", "precision", "recall", "balanced_accuracy"):
        console.print(f"  {measure.replace('_', ' '):18} {getattr(scores, measure)}")
    if page is not None:
        write_text(page, condition_report(found).to_html())
        console.print(f"wrote {page}")
    console.print(f"wrote {out}")


@app.command("generate")
@reporting
def generate_command(
    vector: Annotated[Path, typer.Argument(help="The vector to steer with.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to reply to.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="More prompts: a text file with one a line, or JSON.")
    ] = None,
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Annotated[float, typer.Option(help="Multiplies the direction.")] = 1.0,
    relative: Annotated[
        bool, typer.Option("--relative", help="Strength is a fraction of the activation norm.")
    ] = False,
    condition: Annotated[
        Path | None, typer.Option(help="Steer only where this search's best condition fires.")
    ] = None,
    condition_vector: Annotated[
        Path | None, typer.Option(help="The vector that the search was made with.")
    ] = None,
    unless: Annotated[
        bool, typer.Option("--unless", help="Steer where the condition does *not* fire.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 50,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Also write the replies (JSON).")] = None,
    seed: Seed = 0,
) -> None:
    """Reply to prompts unsteered and steered, side by side.

    Example: steerlens generate refuse.safetensors "How do I bake bread?" --layers 3-4
    --strength 0.6 --relative
    """
    if out is not None:
        require_writable(out.parent)
    if (condition is None) != (condition_vector is None):
        raise SteerlensError("--condition and --condition-vector belong together; give both")
    asked = [*(prompts or []), *(_prompts_in(file) if file is not None else [])]
    when = None
    if condition is not None and condition_vector is not None:
        best = ConditionSearch.load(condition, SteeringVector.load(condition_vector)).best
        when = ~best if unless else best
    steering = Steering(
        SteeringVector.load(vector), parse_layers(layers), strength, when, relative=relative
    )
    loaded = load_model(model)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    unsteered = generate(loaded, asked, **options)
    steered = generate(loaded, asked, steering, **options)
    gates = [gate.open.tolist() for gate in steered.gates]
    table = Table("prompt", "unsteered", "steered", *(["fired"] if gates else []), show_lines=True)
    for row, prompt in enumerate(asked):
        fired = ["yes" if gate[row] else "no" for gate in gates]
        table.add_row(prompt, unsteered[row], steered[row], *fired)
    console.print(steering)
    console.print(table)
    if out is not None:
        rows = [
            {
                "prompt": prompt,
                "unsteered": unsteered[row],
                "steered": steered[row],
                "fired": [gate[row] for gate in gates],
            }
            for row, prompt in enumerate(asked)
        ]
        write_json(out, {"steering": repr(steering), "rows": rows})
        console.print(f"wrote {out}")


@app.command()
@reporting
def choices(
    data: Annotated[Path, typer.Argument(help="A/B questions: CAA's JSON list, or JSON lines.")],
    vector: Annotated[Path | None, typer.Option(help="The vector to steer with.")] = None,
    train: Annotated[
        Path | None, typer.Option(help="Or questions to extract it from, at the answer's letter.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="How --train is read; see extract.")] = (
        "mean_difference"
    ),
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strengths: Annotated[
        str, typer.Option(help='Strengths, such as "-1,0,1"; each is tried at each layer.')
    ] = "-1,0,1",
    relative: Annotated[
        bool, typer.Option("--relative", help="Strengths are fractions of the activation norm.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Rows in one forward pass.")] = 64,
    out: Annotated[
        Path | None, typer.Option(help="Also write p(matching) of every question (.csv or .json).")
    ] = None,
    seed: Seed = 0,
) -> None:
    """How often a model chooses the matching answer, at each layer and strength (CAA).

    Example: steerlens choices held-out.json --train train.json --layers 2-4 --strengths=-1,0,1
    """
    if (vector is None) == (train is None):
        raise SteerlensError("give the vector as --vector or as --train, one of the two")
    if estimator not in ESTIMATORS:
        raise SteerlensError(
            f"--estimator {estimator!r} is unknown; choose one of {', '.join(ESTIMATORS)}"
        )
    if out is not None:
        require_writable(out.parent)
        if out.suffix not in (".csv", ".json"):
            raise SteerlensError(f"--out {str(out)!r} must end in .csv or .json")
    questions, numbers = load_questions(data), parse_strengths(strengths)
    training = load_questions(train) if train is not None else []
    chosen = parse_layers(layers)
    if {question.text for question in questions} & {question.text for question in training}:
        raise SteerlensError(
            f"{str(data)!r} and {str(train)!r} share questions; score on others than were read"
        )
    loaded = load_model(model)
    direction = (
        SteeringVector.load(vector)
        if vector is not None
        else extract(loaded, answer_sides(loaded, training), ESTIMATORS[estimator], layers=chosen)
    )
    sweep = choice_sweep(
        loaded, direction, questions, chosen, numbers, batch_size=batch_size, relative=relative
    )
    summary = choice_summary(sweep, seed=seed)
    table = Table("layer", "strength", "p(matching)", "95 % interval", "n")
    for cell in summary.itertuples():
        table.add_row(
            str(cell.layer), f"{cell.strength:g}", f"{cell.p_match:.3f}",
            f"{cell.low:.3f} – {cell.high:.3f}", str(cell.n),
        )  # fmt: skip
    console.print(table)
    if out is None:
        return
    if out.suffix == ".csv":
        write_atomically(out, lambda path: sweep.to_csv(path, index=False))
    else:
        run = {"model": model, "vector": dict(direction.provenance), "relative": relative}
        records = {"summary": summary, "questions": sweep}
        tables = {name: frame.to_dict("records") for name, frame in records.items()}
        write_json(out, {"run": run, "seed": seed, **tables})
    console.print(f"wrote {out}")


@app.command()
@reporting
def playground(
    model: ModelName = TINY_CHAT,
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond loopback, a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8050,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Steer a model by hand, on a page in the browser: replies, gates and tokens side by side.

    Example: steerlens playground --open
    """
    from steerlens.playground import serve

    serve(model, host=host, port=port, open_browser=open_browser, console=console)


def parse_strengths(strengths: str) -> list[float]:
    """`"-1,0,0.5"` as numbers.

    >>> parse_strengths("-1,0,0.5")
    [-1.0, 0.0, 0.5]
    """
    try:
        return [float(piece) for piece in strengths.split(",")]
    except ValueError as error:
        raise SteerlensError(
            f'--strengths {strengths!r} cannot be read; write numbers such as "-1,0,0.5"'
        ) from error


def parse_layers(layers: str | None) -> list[int] | None:
    """`"1,4-6"` as [1, 4, 5, 6]; None stays None, which stands for all layers.

    >>> parse_layers("1,4-6")
    [1, 4, 5, 6]
    """
    if layers is None:
        return None
    numbers: list[int] = []
    try:
        for piece in layers.split(","):
            first, dash, last = piece.partition("-")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise SteerlensError(
            f'--layers {layers!r} cannot be read; write "3", "2-5", "1,4-6"'
        ) from error
    if not numbers:
        raise SteerlensError(f"--layers {layers!r} names no layer; write the lower one first")
    return numbers


def _prompts_in(path: Path) -> list[str]:
    if path.suffix != ".json":
        return read_lines(path)
    parts = load_prompts(path)
    rows = [row for part in parts.values() for row in part]
    if not all(isinstance(row, str) for row in rows):
        raise SteerlensError(f"{str(path)!r} groups its prompts by topic; give a list of prompts")
    return rows
