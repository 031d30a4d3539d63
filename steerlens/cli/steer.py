"""Commands that make vectors and conditions, and steer with them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from steerlens.activations.cost import estimate_cost
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
    prompts_in,
    reporting,
)
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError
from steerlens.export.exporting import (
    PROBES,
    TOLERANCE,
    control_vector,
    export_ablation,
    export_model,
)
from steerlens.files import require_writable, write_json, write_text
from steerlens.layer_text import parse_layers
from steerlens.models.loading import TINY_CHAT, load_model, official_names, supported_hosts
from steerlens.steering.condition_search import ConditionSearch, search_conditions
from steerlens.steering.generation import generate
from steerlens.steering.sampling import Sampling
from steerlens.steering.similarities import SIMILARITIES
from steerlens.steering.steering import Steering
from steerlens.studies.study import compared
from steerlens.vectors.estimators import ESTIMATORS
from steerlens.vectors.formats import writer_of
from steerlens.vectors.vector import SteeringVector


@app.command()
@reporting
def models(
    names: Annotated[
        bool, typer.Option("--names", help="List the names of hub models that are known.")
    ] = False,
    like: Annotated[str, typer.Option(help="Only those that contain this.")] = "",
) -> None:
    """List which architectures load, and on which of TransformerLens's hosts.

    Example: steerlens models --like gemma
    """
    if names:
        found = [name for name in official_names() if like.lower() in name.lower()]
        console.print("\n".join(found) or f"no name contains {like!r}", highlight=False)
        return
    table = Table("architecture of a local Hugging Face directory", "host")
    full = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}
    for architecture, host in supported_hosts().items():
        if like.lower() in architecture.lower():
            table.add_row(architecture, full[host])
    console.print(table)
    console.print(
        f"{TINY_CHAT} ships with steerlens; {len(official_names())} names of the hub are known "
        "(--names); any other owner/name of these architectures loads, too."
    )


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost; write nothing.")
    ] = False,
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Extract a steering vector from contrasting prompts.

    Example: steerlens extract demo-data/refusal.json --part train --tokens suffix --out
    refuse.safetensors
    """
    chosen_estimator = estimator_of(estimator)
    require_writable(out.parent)
    writer_of(out)  # refuses unknown endings before the work
    data = ContrastiveDataset.load(dataset)
    data = data.part(part) if part else data
    loaded = load_model(model)
    reading: dict[str, Any] = {
        "tokens": int(tokens) if tokens.isdecimal() else tokens,
        "layers": parse_layers(layers),
        "site": site,
    }
    if dry_run:
        console.print(str(estimate_cost(loaded, data, **reading)))
        return
    with engine_of(model, workers, ray, gpus_per_worker) as engine:
        vector = extract(loaded, data, chosen_estimator, **reading, engine=engine)
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
    workers: Workers = 0,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Find the layer and threshold that best tell positive prompts from negative ones.

    Example: steerlens search harm.safetensors demo-data/harmful.json --part validation
    --held-out test --out harm.json
    """
    from steerlens.dashboards.conditions import condition_report

    for path in (out, page):
        if path is not None:
            require_writable(path.parent)
    if similarity not in SIMILARITIES:
        raise SteerlensError(
            f"--similarity {similarity!r} is unknown; choose one of {', '.join(SIMILARITIES)}"
        )
    data = ContrastiveDataset.load(dataset)
    with engine_of(model, workers, ray, gpus_per_worker) as engine:
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
            engine=engine,
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
    asked = [*(prompts or []), *(prompts_in(file) if file is not None else [])]
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
        "sampling": Sampling(temperature, seed=seed),
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
        "prompts": PROBES if prompts is None else prompts_in(prompts),
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
