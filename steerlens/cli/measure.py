"""Commands that measure what a steering does."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import (
    JUDGE_NAMES,
    MOOD_STRENGTHS,
    TINY_CHAT,
)
from steerlens.cli.options import (
    MEASURE,
    Ask,
    AskSystem,
    Doses,
    EstimatorName,
    GpusPerWorker,
    Judges,
    Layers,
    Lowers,
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
    Workers,
    app,
    argument,
    engine_of,
    existing_file,
    parse_judges,
    parse_sizes,
    parse_windows,
    require_outputs,
    taking,
    vector_file,
)
from steerlens.cli.output import INTERRUPTED, print_frame, reporting, say
from steerlens.cli.plans import (
    PlanPositions,
    SavePlan,
    SteeredFile,
    SteeredFiles,
    is_plan,
    only_step,
    plan_of,
    require_no_settings,
    write_plan,
)
from steerlens.data.prompt_files import read_pairs, read_prompts
from steerlens.data.questions import load_questions, require_unseen
from steerlens.errors import SteerlensError
from steerlens.files import demo_file, require_writable, write_text

TopK = Annotated[int | None, typer.Option(min=1, help="Sample from the k most likely tokens.")]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Sample from the most likely tokens of this total probability."
    ),
]


@app.command("evaluate", rich_help_panel=MEASURE)
@reporting
def evaluate_command(
    vector: SteeredFile,
    prompts: PromptsFile,
    out: Annotated[Path, typer.Option(help="The directory for tables (Parquet) and verdict.")],
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Doses = None,
    relative: Relative = False,
    judges: Judges = "refusal,degeneration",
    lowers: Lowers = False,
    data: Annotated[
        Path | None,
        taking(existing_file, "DATASET", "The pairs of the vector: adds shuffled-label controls."),
    ] = None,
    part: Part = "",
    pair_columns: PairColumns = None,
    prompt_column: PromptColumns = None,
    controls: Annotated[
        int,
        typer.Option(min=0, help="How many random directions, and how many shuffles of labels."),
    ] = 3,
    ask: Ask = "",
    ask_system: AskSystem = "",
    max_new_tokens: MaxNewTokens = 40,
    save_plan: SavePlan = None,
    seed: Seed = 0,
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Measure effect, controls and side effects of a steering, and print the verdict.

    --save-plan keeps the verdict with the steering.

    Example: steerlens evaluate refuse.safetensors prompts.txt --layers 2-3 --strength 0.6
    --relative --data demo-data/refusal.json --part train --out evaluation
    """
    engine = engine_of(model, workers, ray, gpus_per_worker)
    require_no_settings(vector, layers=layers, strength=strength, relative=relative)
    prompt_list = read_prompts(prompts, columns=prompt_column or ())
    pairs = _pairs(data, part, pair_columns)
    require_writable(out)
    require_outputs(save_plan)
    from steerlens.evaluation.default_strength import default_steering
    from steerlens.evaluation.evaluation import evaluate
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.steering.sampling import Sampling

    last = strength[-1] if strength else None
    steering = only_step(plan_of(vector, layers, last, relative=relative), vector, "evaluate")
    loaded = load_model(model)
    with engine() as running:
        if not strength and not is_plan(vector):
            steering, how = default_steering(loaded, steering, engine=running)
            say(how)
        control_vectors = _controls(loaded, steering, pairs, controls, seed, running)
        evaluation = evaluate(
            loaded, steering, prompt_list, judges=named_judges(judges), raises=not lowers,
            strengths=strength or None, max_new_tokens=max_new_tokens,
            controls=[*control_vectors, *_asking(ask, ask_system)], sampling=Sampling(seed=seed),
            engine=running,
        )  # fmt: skip
    evaluation.save(out)
    write_plan(steering, save_plan, verdict=str(evaluation).splitlines(), prompts=len(prompt_list))
    say(f"{steering}\n{evaluation}")
    say(f"wrote scores.parquet, side_effects.parquet and evaluation.json to {out}")


def _pairs(data: Path | None, part: str, columns: Any) -> Any:
    """The pairs of a dataset, or of a part of it; None without one."""
    pairs = None if data is None else read_pairs(data, columns or ())
    return pairs.part(part) if pairs is not None and part else pairs


def _asking(ask: str, ask_system: str) -> list[Any]:
    """Ways to ask for the effect, of those that were given."""
    from steerlens.data.asking import instruction, system_message

    given = ((instruction, ask), (system_message, ask_system))
    return [make(words) for make, words in given if words]


def _controls(
    model: Any, steering: Any, pairs: Any, count: int, seed: int, engine: Any
) -> tuple[Any, ...]:
    """`count` random directions and, given the vector's pairs, as many of shuffled labels."""
    from steerlens.evaluation.controls import random_directions, shuffled_labels
    from steerlens.learning.shuffled_lessons import learned_controls

    vector = steering.vector.at(steering.layers_steered)
    controls = random_directions(vector, count, seed=seed)
    if pairs is not None and "training" in vector.provenance:
        controls += learned_controls(model, steering.vector, pairs, count, seed=seed)
    elif pairs is not None:
        controls += shuffled_labels(model, vector, pairs, count, seed=seed, engine=engine)
    return controls


@app.command("sweep", rich_help_panel=MEASURE)
@reporting
def sweep_command(
    vectors: SteeredFiles,
    prompts: PromptsOption,
    out: Annotated[Path, typer.Option(help="The directory that keeps finished rows.")],
    model: ModelName = TINY_CHAT,
    layers: Annotated[
        Any,
        taking(
            parse_windows, "LAYERS", 'Layers and windows of layers: "1,2,2-4". Default: each layer.'
        ),
    ] = None,
    strengths: Strengths = None,
    positions: PlanPositions = None,
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
    """Reply to prompts at all layers × strengths × vectors × positions; resumable.

    Example: steerlens sweep refuse.safetensors --prompts demo-data/questions.json --part
    validation --layers 1,2,3,2-3 --strengths 0.2,0.4 --relative --out out/sweep
    """
    engine = engine_of(model, workers, ray, gpus_per_worker)
    for path in vectors:
        require_no_settings(path, positions=positions, relative=relative)
    named = {path.stem: path for path in vectors}
    if len(named) < len(vectors):
        raise SteerlensError("got two vector files of the same name; rename one of them")
    prompt_list = read_prompts(prompts, part, prompt_column or ())
    _require_free(out, resume)
    from steerlens.evaluation.sweeps import sweep
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.steering.sampling import Sampling

    templates = _templates(named, positions or ["all"], relative)
    try:
        with engine() as running:
            result = sweep(
                load_model(model), templates, prompt_list, layers=layers, strengths=strengths,
                judges=named_judges(judges), out=out, resume=resume,
                max_new_tokens=max_new_tokens,
                sampling=Sampling(temperature, top_k, top_p, seed=seed), engine=running,
            )  # fmt: skip
    except KeyboardInterrupt:
        _say_how_to_continue(out)
        raise typer.Exit(INTERRUPTED) from None
    summary = result.summary()
    write_text(out / "summary.csv", summary.to_csv(index=False))
    print_frame(summary, f"{result}")
    for failure in result.failures:
        say(f"not judged: {failure}", style="red")
    say(f"wrote the rows and summary.csv to {out}")


def _templates(vectors: dict[str, Path], positions: list[str], relative: bool) -> dict[str, Any]:
    """A steering for each vector and position, named by the vector, or by both if need be."""
    return {
        name if len(positions) == 1 else f"{name} {tokens}": only_step(
            plan_of(path, positions=tokens, relative=relative), path, "sweep"
        )
        for name, path in vectors.items()
        for tokens in positions
    }


def _require_free(out: Path, resume: bool) -> None:
    """Raise before any work; `sweep` itself checks that a resumed plan is the same."""
    if any(out.glob("[!.]*")) and not resume:  # a killed sweep leaves hidden files
        raise SteerlensError(
            f"got --out {str(out)!r}, which is not empty; continue that sweep with --resume, or "
            "choose another directory"
        )
    require_writable(out)


def _say_how_to_continue(out: Path) -> None:
    from steerlens.evaluation.sweep_store import Sweep

    finished = Sweep.load(out) if (out / "plan.json").is_file() else "nothing yet"
    say(f"stopped; {out} holds {finished}; repeat the command with --resume to continue")


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
    """Measure p(matching answer) of A/B questions at each layer and strength (CAA).

    Example: steerlens choices held-out.json --train train.json --layers 2-4 --strengths=-1,0,1
    """
    if (vector is None) == (train is None):
        given = "neither" if vector is None else "both"
        raise SteerlensError(f"got {given} of --vector and --train; give one of the two")
    if out is not None and out.suffix not in (".csv", ".json"):
        raise SteerlensError(f"got --out {str(out)!r}; expected a name that ends in .csv or .json")
    questions = load_questions(data)
    training = load_questions(train) if train is not None else []
    require_unseen(questions, training)
    require_outputs(out)
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
    out: Annotated[Path, typer.Option(help="The directory for results and page.")] = Path(
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
            "Beginnings to continue (parts validation, test). Default: beginnings.json.",
        ),
    ] = None,
    judge: Annotated[
        str, taking(parse_judges, "NAME", f"The judge of mood: one of {', '.join(JUDGE_NAMES)}.")
    ] = "sentiment",
    strengths: Strengths = MOOD_STRENGTHS,
    max_new_tokens: MaxNewTokens = 40,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Make continuations happier and sadder; also measure coherence and random directions.

    Example: steerlens sentiment --pairs demo-data/story-moods.json --beginnings
    demo-data/story-beginnings.json --model path/to/a/story/model
    """
    moods = read_pairs(pairs or demo_file("moods.json")).train
    validation, test = (
        read_prompts(beginnings or demo_file("beginnings.json"), part)
        for part in ("validation", "test")
    )
    require_writable(out)
    from steerlens.dashboards.comparisons import sentiment
    from steerlens.judges.builtin import named_judges
    from steerlens.models.loading import load_model
    from steerlens.studies.sentiment import run_sentiment

    result = run_sentiment(
        load_model(model), moods, validation, test, judge=named_judges(judge)[0],
        strengths=strengths, max_new_tokens=max_new_tokens, out=out, resume=resume, seed=seed,
    )  # fmt: skip
    result.save(out)
    write_text(out / "sentiment.html", sentiment(result.arms).to_html())
    print_frame(result.effects, f"{result}, on test prompts")
    say(f"wrote sentiment.json, replies.csv and sentiment.html to {out}")


@app.command("cast-table", rich_help_panel=MEASURE)
@reporting
def cast_table_command(
    out: Annotated[Path, typer.Option(help="The directory for the tables.")] = Path(
        "out/cast-table"
    ),
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
    draws: Annotated[
        int, typer.Option(min=1, help="Random orders that the subsets are taken from.")
    ] = 3,
    seed: Seed = 0,
) -> None:
    """Print refusal rates of harmful and harmless prompts, and F1 by number of training pairs."""
    refusing, harmful = (
        read_pairs(path or demo_file(name))
        for path, name in ((refusals, "refusal.json"), (harms, "harmful.json"))
    )
    require_writable(out)
    from steerlens.models.loading import load_model
    from steerlens.studies.cast import cast_table

    table = cast_table(
        load_model(model), refusing, harmful, sizes=sizes or None, draws=draws, seed=seed
    )
    table.save(out)
    say(table.steering)
    say(table.search)
    print_frame(table.rates, "Refused, with Wilson's 95 % interval")
    print_frame(table.saturation, "By training pairs of the condition")
    say(f"wrote cast-table.json, rates.csv and saturation.csv to {out}")
