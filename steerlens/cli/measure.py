"""Commands that measure what a steering does."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import (
    JUDGE_NAMES,
    MOOD_STRENGTHS,
    POSITION_NAMES,
    TINY_CHAT,
)
from steerlens.cli.options import (
    MEASURE,
    EstimatorName,
    GpusPerWorker,
    Judges,
    Layers,
    MaxNewTokens,
    ModelName,
    PairColumns,
    Part,
    PromptColumns,
    PromptsFile,
    PromptsOption,
    RayAddress,
    Relative,
    Resume,
    Seed,
    Strengths,
    Temperature,
    VectorFile,
    VectorFiles,
    Workers,
    app,
    argument,
    engine_of,
    existing_file,
    parse_judges,
    parse_positions,
    parse_sizes,
    parse_windows,
    require_places,
    taking,
    vector_file,
)
from steerlens.cli.output import INTERRUPTED, print_frame, reporting, say
from steerlens.data.prompt_files import read_pairs, read_prompts
from steerlens.data.questions import load_questions, require_unseen
from steerlens.errors import SteerlensError
from steerlens.files import demo_file, require_writable, write_text

TopK = Annotated[int | None, typer.Option(min=1, help="Sample from the k likeliest.")]
TopP = Annotated[
    float | None, typer.Option(min=0, max=1, help="Sample from this much probability.")
]


@app.command("evaluate", rich_help_panel=MEASURE)
@reporting
def evaluate_command(
    vector: VectorFile,
    prompts: PromptsFile,
    out: Annotated[Path, typer.Option(help="The folder for the tables (Parquet) and verdict.")],
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="Give it several times for a dose. Default: 1.")
    ] = None,
    relative: Relative = False,
    judges: Judges = "refusal,degeneration",
    lowers: Annotated[
        bool, typer.Option("--lowers", help="The steering should lower the first judge's score.")
    ] = False,
    data: Annotated[
        Path | None,
        taking(existing_file, "DATASET", "The vector's pairs: adds shuffled-label controls."),
    ] = None,
    part: Part = "",
    pair_columns: PairColumns = None,
    prompt_column: PromptColumns = None,
    controls: Annotated[
        int, typer.Option(min=0, help="Random directions, and shuffles of labels.")
    ] = 3,
    max_new_tokens: MaxNewTokens = 40,
    seed: Seed = 0,
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Measure a steering beside controls and side effects, and print the verdict.

    Example: steerlens evaluate refuse.safetensors prompts.txt --layers 2-3 --strength 0.3
    --relative --data demo-data/refusal.json --part train --out evaluation
    """
    engine = engine_of(model, workers, ray, gpus_per_worker)
    asked = read_prompts(prompts, columns=prompt_column or ())
    pairs = None if data is None else read_pairs(data, pair_columns or ())
    pairs = pairs.part(part) if pairs is not None and part else pairs
    require_writable(out)
    from steerlens.evaluation.evaluation import evaluate
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.steering.sampling import Sampling
    from steerlens.steering.steering import Steering
    from steerlens.vectors.vector import SteeringVector

    doses = strength or [1.0]
    steering = Steering(SteeringVector.load(vector), layers, doses[-1], relative=relative)
    with engine() as running:
        loaded = load_model(model)
        against = _controls(loaded, steering, pairs, controls, seed, running)
        found = evaluate(
            loaded, steering, asked, judges=named_judges(judges), raises=not lowers,
            strengths=doses, controls=against, max_new_tokens=max_new_tokens,
            sampling=Sampling(seed=seed), engine=running,
        )  # fmt: skip
    found.save(out)
    say(steering)
    say(found)
    say(f"wrote scores.parquet, side_effects.parquet and evaluation.json to {out}")


def _controls(
    model: Any, steering: Any, pairs: Any, count: int, seed: int, engine: Any
) -> tuple[Any, ...]:
    """Random directions, and with the vector's pairs as many of shuffled labels."""
    from steerlens.evaluation.controls import random_directions, shuffled_labels

    vector = steering.vector.at(steering.layers_steered)
    found = random_directions(vector, count, seed=seed)
    if pairs is not None:
        found += shuffled_labels(model, vector, pairs, count, seed=seed, engine=engine)
    return found


@app.command("sweep", rich_help_panel=MEASURE)
@reporting
def sweep_command(
    vectors: VectorFiles,
    prompts: PromptsOption,
    out: Annotated[Path, typer.Option(help="The directory that finished rows are kept in.")],
    model: ModelName = TINY_CHAT,
    layers: Annotated[
        Any, taking(parse_windows, "LAYERS", 'Layers and windows: "1,2,2-4". Default: each layer.')
    ] = None,
    strengths: Strengths = "1",
    positions: Annotated[
        Any, taking(parse_positions, "NAMES", f"With commas: {', '.join(POSITION_NAMES)}.")
    ] = "all",
    judges: Judges = "refusal,degeneration",
    part: Part = "",
    prompt_column: PromptColumns = None,
    relative: Relative = False,
    resume: Resume = False,
    max_new_tokens: MaxNewTokens = 50,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Reply to prompts at layers × strengths × vectors × positions; kept row by row, resumable.

    Example: steerlens sweep refuse.safetensors --prompts demo-data/questions.json --part
    validation --layers 1,2,3,2-3 --strengths 0.2,0.4 --relative --out out/sweep
    """
    engine = engine_of(model, workers, ray, gpus_per_worker)
    named = {path.stem: path for path in vectors}
    if len(named) < len(vectors):
        raise SteerlensError("two vector files have the same name; rename one of them")
    asked = read_prompts(prompts, part, prompt_column or ())
    _require_free(out, resume)
    from steerlens.evaluation.sweeps import sweep
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.steering.sampling import Sampling

    templates = _templates(named, positions, relative)
    try:
        with engine() as running:
            found = sweep(
                load_model(model), templates, asked, layers=layers, strengths=strengths,
                judges=named_judges(judges), out=out, resume=resume,
                max_new_tokens=max_new_tokens,
                sampling=Sampling(temperature, top_k, top_p, seed=seed), engine=running,
            )  # fmt: skip
    except KeyboardInterrupt:
        _say_how_to_go_on(out)
        raise typer.Exit(INTERRUPTED) from None
    summary = found.summary()
    write_text(out / "summary.csv", summary.to_csv(index=False))
    print_frame(summary, f"{found}")
    for failure in found.failures:
        say(f"not judged: {failure}", style="red")
    say(f"wrote summary.csv beside the rows to {out}")


def _templates(vectors: dict[str, Path], positions: list[str], relative: bool) -> dict[str, Any]:
    """A steering for each vector and positions, named by the vector, and by both if need be."""
    from steerlens.steering.steering import Steering
    from steerlens.vectors.vector import SteeringVector

    return {
        name if len(positions) == 1 else f"{name} {place}": Steering(
            SteeringVector.load(path), positions=place, relative=relative
        )
        for name, path in vectors.items()
        for place in positions
    }


def _require_free(out: Path, resume: bool) -> None:
    """Said before any work; `sweep` itself sees to it that a resumed one is the same."""
    if any(out.glob("[!.]*")) and not resume:  # hidden ones are left by a sweep that was killed
        raise SteerlensError(
            f"{str(out)!r} holds something already; go on with that sweep with --resume, or "
            "choose another directory"
        )
    require_writable(out)


def _say_how_to_go_on(out: Path) -> None:
    from steerlens.evaluation.sweep_store import Sweep

    kept = Sweep.load(out) if (out / "plan.json").is_file() else "nothing yet"
    say(f"stopped; {out} keeps {kept}; the same command with --resume goes on")


@app.command(rich_help_panel=MEASURE)
@reporting
def choices(
    data: Annotated[Path, argument(existing_file, "QUESTIONS", "CAA's A/B questions.")],
    vector: Annotated[
        Path | None, taking(vector_file, "VECTOR", "The vector to steer with.")
    ] = None,
    train: Annotated[
        Path | None,
        taking(existing_file, "FILE", "Or questions to extract it from, at the answer."),
    ] = None,
    estimator: EstimatorName = "mean_difference",
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strengths: Strengths = "-1,0,1",
    relative: Relative = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward pass.")] = 64,
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
    if out is not None and out.suffix not in (".csv", ".json"):
        raise SteerlensError(f"--out {str(out)!r} must end in .csv or .json")
    questions = load_questions(data)
    training = load_questions(train) if train is not None else []
    require_unseen(questions, training)
    require_places(out)
    from steerlens.activations.extraction import extract
    from steerlens.evaluation.ab_questions import (
        answer_sides,
        choice_summary,
        choice_sweep,
        write_choices,
    )
    from steerlens.models.loading import load_model
    from steerlens.vectors.estimators import ESTIMATORS
    from steerlens.vectors.vector import SteeringVector

    direction = SteeringVector.load(vector) if vector is not None else None
    loaded = load_model(model)
    if direction is None:
        sides = answer_sides(loaded, training)
        direction = extract(loaded, sides, ESTIMATORS[estimator], layers=layers)
    table = choice_sweep(
        loaded, direction, questions, layers, strengths, batch_size=batch_size, relative=relative
    )
    summary = choice_summary(table, seed=seed)
    if out is not None:
        run = {"model": model, "vector": dict(direction.provenance), "relative": relative}
        write_choices(out, table, summary, run=run, seed=seed)
    print_frame(summary.rename(columns={"p_match": "mean"}), "p(matching), with 95 % interval")
    if out is not None:
        say(f"wrote {out}")


@app.command("sentiment", rich_help_panel=MEASURE)
@reporting
def sentiment_command(
    out: Annotated[Path, typer.Option(help="Where the results and the page go.")] = Path(
        "out/sentiment"
    ),
    model: ModelName = TINY_CHAT,
    pairs: Annotated[
        Path | None,
        taking(existing_file, "FILE", "Happy and sad texts (part train). Default: moods.json."),
    ] = None,
    beginnings: Annotated[
        Path | None,
        taking(
            existing_file,
            "FILE",
            "What is continued (parts validation, test). Default: beginnings.json.",
        ),
    ] = None,
    judge: Annotated[
        str, taking(parse_judges, "NAME", f"Of mood; {', '.join(JUDGE_NAMES)}.")
    ] = "sentiment",
    strengths: Strengths = MOOD_STRENGTHS,
    max_new_tokens: MaxNewTokens = 40,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Make continuations happier and sadder; with coherence and random directions beside it.

    Example: steerlens sentiment --pairs demo-data/story-moods.json --beginnings
    demo-data/story-beginnings.json --model path/to/a/story/model
    """
    moods = read_pairs(pairs or demo_file("moods.json")).train
    chosen_on, tested = (
        read_prompts(beginnings or demo_file("beginnings.json"), part)
        for part in ("validation", "test")
    )
    require_writable(out)
    from steerlens.dashboards.comparisons import sentiment
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.studies.sentiment import run_sentiment

    result = run_sentiment(
        load_model(model), moods, chosen_on, tested, judge=named_judges(judge)[0],
        strengths=strengths, max_new_tokens=max_new_tokens, out=out, resume=resume, seed=seed,
    )  # fmt: skip
    result.save(out)
    write_text(out / "sentiment.html", sentiment(result.arms).to_html())
    print_frame(result.effects, f"{result}, on test prompts")
    say(f"wrote sentiment.json, replies.csv and sentiment.html to {out}")


@app.command("cast-table", rich_help_panel=MEASURE)
@reporting
def cast_table_command(
    out: Annotated[Path, typer.Option(help="Where the tables go.")] = Path("out/cast-table"),
    model: ModelName = TINY_CHAT,
    refusals: Annotated[
        Path | None,
        taking(existing_file, "FILE", "Questions × refusing and complying beginnings (train)."),
    ] = None,
    harms: Annotated[
        Any,
        taking(existing_file, "FILE", "Harmful and harmless prompts (train, validation, test)."),
    ] = None,
    sizes: Annotated[
        Any,
        taking(
            parse_sizes, "NUMBERS", 'Training pairs for the curve, "8,64". Empty: doubling from 4.'
        ),
    ] = "",
    draws: Annotated[int, typer.Option(min=1, help="Shuffles that subsets are drawn from.")] = 3,
    seed: Seed = 0,
) -> None:
    """Print how many harmful and harmless prompts are refused, and what more pairs would add."""
    refusing, harmful = (
        read_pairs(path or demo_file(name))
        for path, name in ((refusals, "refusal.json"), (harms, "harmful.json"))
    )
    require_writable(out)
    from steerlens.models.loading import load_model
    from steerlens.studies.cast import cast_table

    made = cast_table(
        load_model(model), refusing, harmful, sizes=sizes or None, draws=draws, seed=seed
    )
    made.save(out)
    say(made.steering)
    say(made.search)
    print_frame(made.rates, "Refused, with Wilson's 95 % interval")
    print_frame(made.saturation, "By training pairs of the condition")
    say(f"wrote cast-table.json, rates.csv and saturation.csv to {out}")
