"""The command line: arguments → calls of the library."""

import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from steerlens import dashboards
from steerlens.cast_table import cast_table
from steerlens.choices import answer_sides, choice_summary, choice_sweep, load_questions
from steerlens.conditions import SIMILARITIES
from steerlens.contrast import ContrastiveDataset, load_prompts
from steerlens.demo import run_demo
from steerlens.directions import ESTIMATORS
from steerlens.errors import SteerlensError
from steerlens.evaluation import evaluate
from steerlens.extraction import extract
from steerlens.files import (
    embedded,
    read_lines,
    require_writable,
    write_atomically,
    write_json,
    write_text,
)
from steerlens.formats import writer_of
from steerlens.generation import generate
from steerlens.intervals import Interval
from steerlens.judges import JUDGES, named_judges
from steerlens.ledger import Sweep
from steerlens.models import TINY_CHAT, load_model
from steerlens.search import ConditionSearch, search_conditions
from steerlens.sentiment import STRENGTHS, run_sentiment
from steerlens.serving import PROBES, TOLERANCE, control_vector, export_ablation, export_model
from steerlens.steering import Steering
from steerlens.studies import compared
from steerlens.sweeps import sweep
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
            Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
            raise typer.Exit(2) from error

    return reported


@app.command()
@reporting
def demo(
    out: Annotated[Path, typer.Option(help="Where results, vectors and pages go.")] = Path(
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
        write_json(out, compared(asked, unsteered, steered, steering))
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


@app.command("evaluate")
@reporting
def evaluate_command(
    vector: Annotated[Path, typer.Argument(help="The vector to steer with.")],
    prompts: Annotated[
        Path, typer.Argument(help="Prompts to reply to: a text file with one a line, or JSON.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for the tables (Parquet) and verdict.")],
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="Give it several times for a dose. Default: 1.")
    ] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Strength is a fraction of the activation norm.")
    ] = False,
    judges: Annotated[
        str,
        typer.Option(
            help=f"Names with commas, of {', '.join(JUDGES)}; the first one's score is the effect."
        ),
    ] = "refusal,degeneration",
    lowers: Annotated[
        bool, typer.Option("--lowers", help="The steering should lower the first judge's score.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="The pairs of the vector: adds shuffled-label controls.")
    ] = None,
    part: Annotated[str, typer.Option(help="Which part of --data; empty: all of it.")] = "",
    controls: Annotated[int, typer.Option(help="Random directions, and shuffles of labels.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 40,
    seed: Seed = 0,
) -> None:
    """Measure a steering beside controls and side effects, and print the verdict.

    Example: steerlens evaluate refuse.safetensors prompts.txt --layers 2-3 --strength 0.3
    --relative --data demo-data/refusal.json --part train --out evaluation
    """
    require_writable(out)
    judging = named_judges(judges)
    strengths = strength or [1.0]
    steering = Steering(
        SteeringVector.load(vector), parse_layers(layers), strengths[-1], relative=relative
    )
    pairs = None if data is None else ContrastiveDataset.load(data)
    found = evaluate(
        load_model(model),
        steering,
        _prompts_in(prompts),
        judges=judging,
        raises=not lowers,
        strengths=strengths,
        controls=controls,
        data=pairs.part(part) if pairs is not None and part else pairs,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    found.save(out)
    console.print(steering)
    console.print(str(found), highlight=False, markup=False)
    console.print(f"wrote scores.parquet, side_effects.parquet and evaluation.json to {out}")


@app.command("sweep")
@reporting
def sweep_command(
    vectors: Annotated[list[Path], typer.Argument(help="Vector files, each named by its file.")],
    prompts: Annotated[Path, typer.Option(help="A text file with one prompt a line, or JSON.")],
    out: Annotated[Path, typer.Option(help="The directory that finished rows are kept in.")],
    model: ModelName = TINY_CHAT,
    layers: Annotated[
        str | None,
        typer.Option(help='Layers and windows, such as "1,2,2-4". Default: every layer by itself.'),
    ] = None,
    strengths: Annotated[str, typer.Option(help='Such as "-0.3,0.3".')] = "1",
    positions: Annotated[str, typer.Option(help='Such as "all,generated".')] = "all",
    judges: Annotated[str, typer.Option(help=f"Of {', '.join(JUDGES)}.")] = "refusal,degeneration",
    part: Annotated[str, typer.Option(help="The part of a JSON file; empty: all of it.")] = "",
    relative: Annotated[
        bool, typer.Option("--relative", help="Strengths are fractions of the activation norm.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped sweep.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 50,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability.")] = None,
    seed: Seed = 0,
) -> None:
    """Reply to prompts at layers × strengths × vectors × positions; kept row by row, resumable.

    Example: steerlens sweep refuse.safetensors --prompts demo-data/questions.json --part
    validation --layers 1,2,3,2-3 --strengths 0.2,0.4 --relative --out out/sweep
    """
    named = {path.stem: path for path in vectors}
    if len(named) < len(vectors):
        raise SteerlensError("two vector files have the same name; rename one of them")
    judging = named_judges(judges)
    try:
        found = sweep(
            load_model(model),
            {name: SteeringVector.load(path) for name, path in named.items()},
            _prompts_in(prompts, part),
            layers=[parse_layers(window) or () for window in layers.split(",")] if layers else None,
            strengths=parse_strengths(strengths),
            positions=positions.split(","),
            judges=judging,
            out=out,
            resume=resume,
            relative=relative,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
    except KeyboardInterrupt:
        kept = Sweep.load(out) if (out / "plan.json").is_file() else "nothing yet"
        console.print(f"stopped; {out} keeps {kept}; the same command with --resume goes on")
        raise typer.Exit(130) from None
    summary = found.summary()
    write_text(out / "summary.csv", summary.to_csv(index=False))
    _print_frame(summary, f"{found}")
    for failure in found.failures:
        console.print(f"[bold red]not judged:[/] {failure}", highlight=False)
    console.print(f"wrote summary.csv beside the rows to {out}")


@app.command("sentiment")
@reporting
def sentiment_command(
    out: Annotated[Path, typer.Option(help="Where the results and the page go.")] = Path(
        "out/sentiment"
    ),
    model: ModelName = TINY_CHAT,
    pairs: Annotated[
        Path | None, typer.Option(help="Happy and sad texts (part train). Default: moods.json.")
    ] = None,
    beginnings: Annotated[
        Path | None,
        typer.Option(help="What is continued (parts validation, test). Default: beginnings.json."),
    ] = None,
    judge: Annotated[str, typer.Option(help=f"Of mood; of {', '.join(JUDGES)}.")] = "sentiment",
    strengths: Annotated[str, typer.Option(help="Tried with both signs.")] = ",".join(
        map(str, STRENGTHS)
    ),
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 40,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    seed: Seed = 0,
) -> None:
    """Make continuations happier and sadder; with coherence and random directions beside it.

    Example: steerlens sentiment --pairs demo-data/story-moods.json --beginnings
    demo-data/story-beginnings.json --model path/to/a/story/model
    """
    result = run_sentiment(
        load_model(model),
        ContrastiveDataset.load(pairs or embedded("moods.json")).train,
        _prompts_in(beginnings or embedded("beginnings.json"), "validation"),
        _prompts_in(beginnings or embedded("beginnings.json"), "test"),
        judge=named_judges(judge)[0],
        strengths=parse_strengths(strengths),
        max_new_tokens=max_new_tokens,
        out=out,
        resume=resume,
        seed=seed,
    )
    result.save(out)
    write_text(out / "sentiment.html", dashboards.sentiment(result.arms).to_html())
    _print_frame(result.effects, f"{result}, on test prompts")
    console.print(f"wrote sentiment.json, replies.csv and sentiment.html to {out}")


@app.command("cast-table")
@reporting
def cast_table_command(
    out: Annotated[Path, typer.Option(help="Where the tables go.")] = Path("out/cast-table"),
    model: ModelName = TINY_CHAT,
    refusals: Annotated[
        Path | None, typer.Option(help="Questions × refusing and complying beginnings (train).")
    ] = None,
    harms: Annotated[
        Path | None, typer.Option(help="Harmful and harmless prompts (train, validation, test).")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help='Training pairs for the curve, "8,64". Empty: doubling from 4.')
    ] = "",
    draws: Annotated[int, typer.Option(help="Shuffles that subsets are drawn from.")] = 3,
    seed: Seed = 0,
) -> None:
    """Print how many harmful and harmless prompts are refused, and what more pairs would add."""
    require_writable(out)
    made = cast_table(
        load_model(model),
        ContrastiveDataset.load(refusals or embedded("refusal.json")),
        ContrastiveDataset.load(harms or embedded("harmful.json")),
        sizes=[int(size) for size in parse_strengths(sizes)] if sizes else None,
        draws=draws,
        seed=seed,
    )
    made.save(out)
    console.print(made.steering)
    console.print(made.search)
    _print_frame(made.rates, "Refused, with Wilson's 95 % interval")
    _print_frame(made.saturation, "By training pairs of the condition")
    console.print(f"wrote cast-table.json, rates.csv and saturation.csv to {out}")


def _print_frame(frame: pd.DataFrame, title: str) -> None:
    """A table for the terminal; a value and the ends of its interval share a column."""
    for name in {"mean", "refused", "f1"} & set(frame.columns):
        ends = ("f1_low", "f1_high") if name == "f1" else ("low", "high")
        shown = [str(Interval(*row)) for row in frame[[name, *ends]].itertuples(index=False)]
        frame = frame.assign(**{name: shown}).drop(columns=[*ends])
    table = Table(*map(str, frame.columns), title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)


@app.command("report")
@reporting
def report_command(
    study: Annotated[Path, typer.Argument(help="A directory of results.")],
    out: Annotated[
        Path | None, typer.Option(help="The page to write. Default: report.html in it.")
    ] = None,
) -> None:
    """Write one page about a study: what a demo, a sweep or an evaluation left in a directory.

    Example: steerlens report out/demo
    """
    from steerlens.report import report

    console.print(f"wrote {report(study, out)}")


@app.command("figures")
@reporting
def figures_command(
    study: Annotated[Path, typer.Argument(help="A directory of results.")] = Path("figures/study"),
    scripts: Annotated[Path, typer.Option(help="The directory of figure scripts.")] = Path(
        "figures"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Where they go. Default: beside the scripts.")
    ] = None,
    format: Annotated[list[str] | None, typer.Option(help="svg, pdf or png; repeatable.")] = None,
) -> None:
    """Draw all paper figures and tables again from saved results.

    Example: steerlens figures out/demo --scripts figures --out paper --format pdf
    """
    from steerlens.paper import NoBrowserWarning, regenerate

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoBrowserWarning)
        written = regenerate(scripts, study, out or scripts, format or ["svg"])
    for warning in caught:
        console.print(f"[yellow]{warning.message}[/]")
    console.print(f"wrote {', '.join(path.name for path in written)} to {out or scripts}")


@app.command("export")
@reporting
def export_command(
    vector: Annotated[Path, typer.Argument(help="The vector to steer with.")],
    out: Annotated[Path, typer.Option(help="The directory (hf) or .gguf file to write.")],
    to: Annotated[
        str,
        typer.Option(help="hf: a steered checkpoint; gguf: a control vector for llama.cpp."),
    ] = "hf",
    model: Annotated[
        str, typer.Option("--model", help="tiny-chat, or the Hugging Face directory to steer.")
    ] = TINY_CHAT,
    layers: Layers = None,
    strength: Annotated[float, typer.Option(help="Multiplies the direction.")] = 1.0,
    relative: Annotated[
        bool, typer.Option("--relative", help="Strength is a fraction of the activation norm.")
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Take one layer's direction out of the whole model.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to prove it on: a text file, or JSON.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of logits to steering by hooks.")
    ] = TOLERANCE,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a steered model that other servers run: the vector in its biases, or beside it.

    Example: steerlens export refuse.safetensors --layers 2-3 --strength 0.3 --relative
    --out refusing-chat
    """
    steered = SteeringVector.load(vector)
    if to not in ("hf", "gguf"):
        raise SteerlensError(f"--to {to!r} is unknown; choose hf or gguf")
    if ablate and (strength != 1.0 or relative or to == "gguf"):
        raise SteerlensError("--ablate goes without --strength, --relative and --to gguf")
    if to == "gguf":
        if out.suffix.lower() != ".gguf" or (out.exists() and not force):
            raise SteerlensError(f"{str(out)!r} must end in .gguf and not exist yet, or --force")
        plan = Steering(steered, parse_layers(layers), strength, relative=relative)
        control_vector(plan).save(out)
        console.print(f"wrote {plan} to {out}; the strength is in it. Steer with it by")
        console.print(f"  llama-cli -m MODEL.gguf --control-vector {out}", soft_wrap=True)
        return
    options: dict[str, Any] = {
        "prompts": PROBES if prompts is None else _prompts_in(prompts),
        "tolerance": tolerance,
        "force": force,
    }
    if ablate:
        made = export_ablation(steered, model, out, layers=parse_layers(layers), **options)
    else:
        plan = Steering(steered, parse_layers(layers), strength, relative=relative)
        made = export_model(plan, model, out, **options)
    console.print(made)
    console.print(f"wrote {out}; load it as you would {made.source}")


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


def _prompts_in(path: Path, part: str = "") -> list[str]:
    if path.suffix != ".json":
        if part:
            raise SteerlensError(f"{str(path)!r} has no part {part!r}: a text file is one list")
        return read_lines(path)
    parts = load_prompts(path)
    if part:
        if part not in parts:
            raise SteerlensError(f"{str(path)!r} has no part {part!r}; it has {list(parts)}")
        parts = {part: parts[part]}
    if not all(isinstance(part, list) for part in parts.values()):
        raise SteerlensError(f"{str(path)!r} groups its prompts by topic; give a list of prompts")
    return [row for part in parts.values() for row in part]
