"""Commands that make vectors and conditions, and steer with them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import SIMILARITY_NAMES, SITE_NAMES, TINY_CHAT
from steerlens.cli.options import (
    CONDITIONS,
    GENERATE,
    PROMPTS_HELP,
    VECTORS,
    EstimatorName,
    FoundStrength,
    GpusPerWorker,
    Layers,
    MaxNewTokens,
    ModelName,
    PairColumns,
    PairsFile,
    Part,
    PromptColumns,
    RayAddress,
    Relative,
    Seed,
    Temperature,
    Tokens,
    VectorFile,
    Workers,
    WrittenVector,
    app,
    engine_of,
    existing_file,
    one_of,
    require_outputs,
    taking,
    vector_file,
)
from steerlens.cli.output import print_rows, reporting, say
from steerlens.cli.plans import (
    SavePlan,
    SteeredFile,
    at_found_strength,
    plan_of,
    require_no_settings,
    write_plan,
)
from steerlens.data.prompt_files import read_pairs, read_prompts
from steerlens.errors import SteerlensError

SiteName = Annotated[
    str,
    taking(one_of(SITE_NAMES, "site"), "NAME", f"Where to read: one of {', '.join(SITE_NAMES)}."),
]
SimilarityName = Annotated[
    str,
    taking(
        one_of(SIMILARITY_NAMES, "similarity"), "NAME", f"One of {', '.join(SIMILARITY_NAMES)}."
    ),
]
Sinks = Annotated[
    bool, typer.Option("--sinks", help="Average attention sinks, such as the first token, too.")
]
ConditionFile = Annotated[
    Path | None,
    taking(existing_file, "SEARCH", "Steer only prompts on which its best condition fires."),
]
ConditionVector = Annotated[
    Path | None, taking(vector_file, "VECTOR", "The vector that the search was made with.")
]


@app.command("extract", rich_help_panel=VECTORS)
@reporting
def extract_command(
    dataset: PairsFile,
    out: WrittenVector,
    model: ModelName = TINY_CHAT,
    part: Part = "",
    pair_columns: PairColumns = None,
    estimator: EstimatorName = None,
    tokens: Tokens = "last",
    sinks: Sinks = False,
    layers: Layers = None,
    site: SiteName = "resid_post",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate the cost; write nothing.")
    ] = False,
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Extract a steering vector from contrasting prompts.

    Example: steerlens extract demo-data/refusal.json --part train --tokens suffix --out
    refuse.safetensors
    """
    engine = engine_of(model, workers, ray, gpus_per_worker)
    data = read_pairs(dataset, pair_columns or ())
    data = data.part(part) if part else data
    require_outputs(out)
    from steerlens.activations.cost import estimate_cost
    from steerlens.activations.extraction import extract
    from steerlens.models.loading import load_model
    from steerlens.vectors.estimators import ESTIMATORS

    loaded = load_model(model)
    reading: dict[str, Any] = {"tokens": tokens, "layers": layers, "site": site}
    if dry_run:
        say(estimate_cost(loaded, data, **reading))
        return
    with engine() as running:
        vector = extract(
            loaded, data, ESTIMATORS.get(estimator), sinks=sinks, **reading, engine=running
        )
    vector.save(out)
    assert vector.norms is not None
    assert vector.explained is not None
    lengths = vector.directions.norm(dim=1)
    print_rows(
        ("layer", "length", "activation norm", "explained variance"),
        (
            (layer, f"{length:.3f}", f"{norm:.2f}", f"{explained:.3f}")
            for layer, length, norm, explained in zip(
                vector.layers, lengths, vector.norms, vector.explained, strict=True
            )
        ),
    )
    seen = vector.provenance["sinks_seen"]
    if seen:
        layer, position, times = max(seen, key=lambda sink: sink[2])
        what = "averaged too" if sinks else "not averaged"
        say(
            f"attention sinks at {len(seen)} layers ({what}); the largest has {times:g} times the "
            f"median norm, at position {position}, layer {layer}"
        )
    say(f"wrote {vector} to {out}")


@app.command(rich_help_panel=CONDITIONS)
@reporting
def search(
    vector: VectorFile,
    dataset: PairsFile,
    out: Annotated[Path, typer.Option(help="The search file to write (JSON).")],
    model: ModelName = TINY_CHAT,
    part: Part = "",
    held_out: Annotated[
        str, typer.Option(help="The part to score on. Default: half of the prompts.")
    ] = "",
    pair_columns: PairColumns = None,
    layers: Layers = None,
    tokens: Tokens = None,
    sinks: Sinks = False,
    similarity: SimilarityName = "projection",
    combine: Annotated[
        int | None,
        typer.Option(
            min=1, help="Up to this many layers, any of which may fire. Default: the layers' mean."
        ),
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Also write a page of figures (HTML).")] = None,
    seed: Seed = 0,
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Find the layer and threshold that best separate positive from negative prompts.

    Example: steerlens search harm.safetensors demo-data/harmful.json --part validation
    --held-out test --out harm.json
    """
    engine = engine_of(model, workers, ray, gpus_per_worker)
    data = read_pairs(dataset, pair_columns or ())
    chosen, scored = (data.part(name) if name else None for name in (part, held_out))
    require_outputs(out, page)
    from steerlens.dashboards.conditions import condition_report
    from steerlens.files import write_text
    from steerlens.models.loading import load_model
    from steerlens.steering.condition_search import search_conditions
    from steerlens.steering.similarities import SIMILARITIES
    from steerlens.vectors.vector import SteeringVector

    direction = SteeringVector.load(vector)
    with engine() as running:
        result = search_conditions(
            load_model(model), direction, chosen or data, held_out=scored, layers=layers,
            combine=combine, similarity=SIMILARITIES[similarity], tokens=tokens,
            sinks=sinks or None, seed=seed, engine=running,
        )  # fmt: skip
    result.save(out)
    if page is not None:
        write_text(page, condition_report(result).to_html())
    _print_search(result)
    say(f"wrote {' and '.join(str(path) for path in (out, page) if path)}")


def _print_search(result: Any) -> None:
    print_rows(
        ("layers", "fires", "threshold", "F1 where chosen"),
        (
            (
                ", ".join(map(str, candidate.layers)),
                candidate.side,
                f"{candidate.threshold:.4f}",
                f"{candidate.f1:.3f}",
            )
            for candidate in result.candidates[:8]
        ),
        title="Best candidates",
    )
    scores = result.scores
    say(f"best: {result.best!r}, on {result.scored_on} it was not chosen on:")
    for measure in ("f1", "precision", "recall", "balanced_accuracy"):
        say(f"  {measure.replace('_', ' '):18} {getattr(scores, measure)}")
    for one in result.comparisons:
        say(f"  beside {one.baseline}: F1 {one.f1}, the condition's is {one.difference} above")
    say(f"  {result.verdict}")


@app.command("generate", rich_help_panel=GENERATE)
@reporting
def generate_command(
    vector: SteeredFile,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPTS", help="Prompts to reply to.")
    ] = None,
    file: Annotated[
        Path | None, taking(existing_file, "FILE", f"More of them. {PROMPTS_HELP}")
    ] = None,
    part: Part = "",
    prompt_column: PromptColumns = None,
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: FoundStrength = None,
    relative: Relative = False,
    condition: ConditionFile = None,
    condition_vector: ConditionVector = None,
    unless: Annotated[
        bool, typer.Option("--unless", help="Steer prompts on which the condition does *not* fire.")
    ] = False,
    each_token: Annotated[
        bool,
        typer.Option("--each-token", help="Read the condition at each token, and decide on that."),
    ] = False,
    positions: Annotated[
        str,
        typer.Option(
            help='Which tokens are steered: "all", "last", "generated\\[:5] and not place\\[0]" …'
        ),
    ] = "all",
    max_new_tokens: MaxNewTokens = 50,
    temperature: Temperature = 0.0,
    out: Annotated[Path | None, typer.Option(help="Also write the replies (JSON).")] = None,
    save_plan: SavePlan = None,
    seed: Seed = 0,
) -> None:
    """Reply to prompts unsteered and steered, side by side.

    A plan, such as --save-plan writes, says by itself where, how strongly and when to steer.

    Example: steerlens generate refuse.safetensors "How do I bake bread?" --layers 3-4
    --strength 0.6 --relative
    """
    require_whole_condition(condition, condition_vector, unless or each_token)
    require_no_settings(
        vector, layers=layers, strength=strength is not None, relative=relative,
        condition=condition, positions=positions != "all",
    )  # fmt: skip
    asked = _asked(prompts, file, part, prompt_column)
    require_outputs(out, save_plan)
    from steerlens.files import write_json
    from steerlens.models.loading import load_model
    from steerlens.steering.generation import generate
    from steerlens.steering.places import parse_positions
    from steerlens.steering.sampling import Sampling
    from steerlens.studies.study import compared

    condition_to_meet = condition_of(condition, condition_vector, unless)
    plan = plan_of(
        vector, layers, strength,
        **{"when_token" if each_token else "when": condition_to_meet},
        positions=parse_positions(positions), relative=relative,
    )  # fmt: skip
    loaded = load_model(model)
    if strength is None:
        plan = at_found_strength(loaded, plan, vector)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "sampling": Sampling(temperature, seed=seed),
    }
    unsteered, steered = (generate(loaded, asked, one, **options) for one in (None, plan))
    if out is not None:
        gates = [gate.open.tolist() for gate in steered.gates]
        write_json(out, compared(asked, unsteered, steered, plan, gates))
        say(f"wrote {out}")
    write_plan(plan, save_plan)
    for steering in plan:
        say(steering)
    _print_replies(asked, unsteered, steered)


def _asked(prompts: list[str] | None, file: Path | None, part: str, columns: Any) -> list[Any]:
    """The prompts of the command line, and those of a file."""
    from_file = read_prompts(file, part, columns or ()) if file is not None else []
    asked = [*(prompts or []), *from_file]
    if not asked:
        raise SteerlensError(
            "got no prompt; write one after the vector, or give a file of them with --file"
        )
    return asked


def require_whole_condition(search: Path | None, vector: Path | None, modified: bool) -> None:
    """Refuse a condition that lacks one of its files."""
    if (search is None) != (vector is None):
        raise SteerlensError("got only one of --condition and --condition-vector; give both")
    if modified and search is None:
        raise SteerlensError(
            "got --unless or --each-token without --condition; give --condition, too"
        )


def condition_of(search: Path | None, vector: Path | None, unless: bool) -> Any:
    """The best condition of a search, negated by `unless`; None without a search."""
    if search is None or vector is None:
        return None
    from steerlens.steering.condition_search import ConditionSearch
    from steerlens.vectors.vector import SteeringVector

    best = ConditionSearch.load(search, SteeringVector.load(vector)).best
    return ~best if unless else best


def _print_replies(prompts: list[Any], unsteered: Any, steered: Any) -> None:
    gates = [["yes" if is_open else "no" for is_open in gate.open] for gate in steered.gates]
    gates += [[gate.seen_of(row) for row in range(len(steered))] for gate in steered.token_gates]
    print_rows(
        ("prompt", "unsteered", "steered", *["fired"] * len(gates)),
        zip(prompts, unsteered, steered, *gates, strict=True),
        show_lines=True,
    )
