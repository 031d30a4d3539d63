"""Commands that measure what a steering does."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from steerlens import dashboards
from steerlens.activations.extraction import extract
from steerlens.cli.options import (
    GpusPerWorker,
    Layers,
    ModelName,
    RayAddress,
    Seed,
    Workers,
    app,
    console,
    engine_of,
    estimator_of,
    parse_strengths,
    print_frame,
    prompts_in,
    reporting,
)
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.questions import load_questions, require_unseen
from steerlens.errors import SteerlensError
from steerlens.evaluation.ab_questions import (
    answer_sides,
    choice_summary,
    choice_sweep,
)
from steerlens.evaluation.controls import random_directions, shuffled_labels
from steerlens.evaluation.evaluation import evaluate
from steerlens.evaluation.sweep_store import Sweep
from steerlens.evaluation.sweeps import sweep
from steerlens.files import demo_file, require_writable, write_atomically, write_json, write_text
from steerlens.judges.builtin import JUDGES, named_judges
from steerlens.layer_text import parse_layers
from steerlens.models.loading import TINY_CHAT, load_model
from steerlens.steering.sampling import Sampling
from steerlens.steering.steering import Steering
from steerlens.studies.cast import cast_table
from steerlens.studies.sentiment import STRENGTHS, run_sentiment
from steerlens.vectors.vector import SteeringVector


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
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
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
    direction = steering.vector.at(steering.layers_steered)
    with engine_of(model, workers, ray, gpus_per_worker) as engine:
        loaded = load_model(model)
        against = random_directions(direction, controls, seed=seed)
        if pairs is not None:
            own = pairs.part(part) if part else pairs
            against += shuffled_labels(loaded, direction, own, controls, seed=seed, engine=engine)
        found = evaluate(
            loaded,
            steering,
            prompts_in(prompts),
            judges=judging,
            raises=not lowers,
            strengths=strengths,
            controls=against,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(seed=seed),
            engine=engine,
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
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Reply to prompts at layers × strengths × vectors × positions; kept row by row, resumable.

    Example: steerlens sweep refuse.safetensors --prompts demo-data/questions.json --part
    validation --layers 1,2,3,2-3 --strengths 0.2,0.4 --relative --out out/sweep
    """
    named = {path.stem: path for path in vectors}
    if len(named) < len(vectors):
        raise SteerlensError("two vector files have the same name; rename one of them")
    judging = named_judges(judges)
    windows = [parse_layers(window) or () for window in layers.split(",")] if layers else None
    places = positions.split(",")
    templates = {
        name if len(places) == 1 else f"{name} {place}": Steering(
            SteeringVector.load(path), positions=place, relative=relative
        )
        for name, path in named.items()
        for place in places
    }
    try:
        with engine_of(model, workers, ray, gpus_per_worker) as engine:
            found = sweep(
                load_model(model),
                templates,
                prompts_in(prompts, part),
                layers=windows,
                strengths=parse_strengths(strengths),
                judges=judging,
                out=out,
                resume=resume,
                max_new_tokens=max_new_tokens,
                sampling=Sampling(temperature, top_k, top_p, seed=seed),
                engine=engine,
            )
    except KeyboardInterrupt:
        kept = Sweep.load(out) if (out / "plan.json").is_file() else "nothing yet"
        console.print(f"stopped; {out} keeps {kept}; the same command with --resume goes on")
        raise typer.Exit(130) from None
    summary = found.summary()
    write_text(out / "summary.csv", summary.to_csv(index=False))
    print_frame(summary, f"{found}")
    for failure in found.failures:
        console.print(f"[bold red]not judged:[/] {failure}", highlight=False)
    console.print(f"wrote summary.csv beside the rows to {out}")


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
    chosen_estimator = estimator_of(estimator)
    if out is not None:
        require_writable(out.parent)
        if out.suffix not in (".csv", ".json"):
            raise SteerlensError(f"--out {str(out)!r} must end in .csv or .json")
    questions, numbers = load_questions(data), parse_strengths(strengths)
    training = load_questions(train) if train is not None else []
    chosen = parse_layers(layers)
    require_unseen(questions, training)
    loaded = load_model(model)
    direction = (
        SteeringVector.load(vector)
        if vector is not None
        else extract(loaded, answer_sides(loaded, training), chosen_estimator, layers=chosen)
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
        ContrastiveDataset.load(pairs or demo_file("moods.json")).train,
        prompts_in(beginnings or demo_file("beginnings.json"), "validation"),
        prompts_in(beginnings or demo_file("beginnings.json"), "test"),
        judge=named_judges(judge)[0],
        strengths=parse_strengths(strengths),
        max_new_tokens=max_new_tokens,
        out=out,
        resume=resume,
        seed=seed,
    )
    result.save(out)
    write_text(out / "sentiment.html", dashboards.sentiment(result.arms).to_html())
    print_frame(result.effects, f"{result}, on test prompts")
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
        ContrastiveDataset.load(refusals or demo_file("refusal.json")),
        ContrastiveDataset.load(harms or demo_file("harmful.json")),
        sizes=[int(size) for size in parse_strengths(sizes)] if sizes else None,
        draws=draws,
        seed=seed,
    )
    made.save(out)
    console.print(made.steering)
    console.print(made.search)
    print_frame(made.rates, "Refused, with Wilson's 95 % interval")
    print_frame(made.saturation, "By training pairs of the condition")
    console.print(f"wrote cast-table.json, rates.csv and saturation.csv to {out}")
