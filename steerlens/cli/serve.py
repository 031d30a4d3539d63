"""Commands that let others use a steering: exported models, the playground, and a server."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import PLAN_ENDING, TARGET_NAMES, TINY_CHAT, TOLERANCE
from steerlens.cli.options import (
    PROMPTS_HELP,
    SERVE,
    Layers,
    ModelName,
    PromptColumns,
    Relative,
    Strength,
    app,
    argument,
    existing_directory,
    existing_file,
    one_of,
    require_outputs,
    taking,
    vector_file,
)
from steerlens.cli.output import console, reporting, say
from steerlens.cli.plans import SteeredFile, plan_of, require_no_settings, steered_file
from steerlens.data.prompt_files import read_prompts
from steerlens.errors import SteerlensError, import_extra

FILES = {"gguf": ".gguf", "lm-eval": ".pt", "vllm": ".json"}
"""The ending of each form that is one file."""
HOW_TO_USE = {
    "gguf": "llama-cli -m MODEL.gguf --control-vector {out}",
    "lm-eval": "lm_eval --model steered --model_args pretrained=MODEL,steer_path={out}",
    "vllm": "a request with its content, each value as JSON text, in vllm_xargs (vllm-lens)",
}


@app.command("export", rich_help_panel=SERVE)
@reporting
def export_command(
    vector: SteeredFile,
    out: Annotated[Path, typer.Option(help="The directory (hf) or file to write.")],
    to: Annotated[
        str,
        taking(
            one_of(TARGET_NAMES, "form"),
            "FORM",
            "hf: a steered checkpoint; gguf: a control vector for llama.cpp; lm-eval: a .pt for "
            "lm-evaluation-harness; vllm: a request to vllm-lens (.json).",
        ),
    ] = "hf",
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Strength = 1.0,
    relative: Relative = False,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate",
            help="Remove one layer's direction from all weights that write to the stream.",
        ),
    ] = False,
    prompts: Annotated[
        Path | None, taking(existing_file, "FILE", f"To verify the export on. {PROMPTS_HELP}")
    ] = None,
    prompt_column: PromptColumns = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference from the logits of steering by hooks.")
    ] = TOLERANCE,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a plan for other programs, exactly as it steers here, or say why that cannot be.

    Example: steerlens export refuse.safetensors --layers 2-3 --strength 0.6 --relative
    --out refusing-chat
    """
    require_no_settings(
        vector, layers=layers, strength=strength != 1.0, relative=relative, ablate=ablate
    )
    if ablate and (strength != 1.0 or relative or to in FILES):
        raise SteerlensError(
            f"got --ablate with --strength, --relative or --to {to}; leave those out"
        )
    _require_new(out, FILES.get(to), force)
    options: dict[str, Any] = {"tolerance": tolerance, "force": force}
    if prompts is not None:
        options["prompts"] = read_prompts(prompts, columns=prompt_column or ())
    from steerlens.export.exporting import export_ablation, export_model
    from steerlens.vectors.vector import SteeringVector

    if ablate:
        ablated = SteeringVector.load(vector)
        certificate = export_ablation(ablated, model, out, layers=layers, **options)
    else:
        plan = plan_of(vector, layers, strength, relative=relative)
        if to in FILES:
            _write_lowered(plan, to, out)
            return
        certificate = export_model(plan, model, out, **options)
    say(certificate)
    say(f"wrote {out}; load it as you would {certificate.source}")


def _require_new(out: Path, ending: str | None, force: bool) -> None:
    """Refuse to write a file of another ending, or over another one."""
    if ending is None:  # a directory, about which the export decides
        return
    if out.suffix.lower() != ending or (out.exists() and not force):
        raise SteerlensError(
            f"got --out {str(out)!r}; expected a new file that ends in {ending}; --force replaces "
            "one"
        )
    require_outputs(out)


def _write_lowered(plan: Any, to: str, out: Path) -> None:
    """Write a plan for another program, and print how it is used there."""
    from steerlens.export.lm_eval import LmEvalWarning
    from steerlens.export.lowering import lower

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LmEvalWarning)
        lower(plan, to).save(out)
    for warning in caught:
        say(warning.message, style="yellow")
    told = "; ".join(map(str, plan))
    say(f"wrote {told} to {out}, strength included. To steer with it:")
    say(f"  {HOW_TO_USE[to].format(out=out)}")


@app.command(rich_help_panel=SERVE)
@reporting
def playground(
    model: ModelName = TINY_CHAT,
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; other than loopback, a token is required."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8050,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser.")
    ] = False,
    vector: Annotated[
        list[Path] | None,
        taking(
            steered_file,
            "FILE",
            "A vector to offer, for steering and as a condition, or a plan, whose vectors, "
            "conditions and rules are offered; repeat it for several.",
        ),
    ] = None,
    condition: Annotated[
        list[Path] | None,
        taking(existing_file, "SEARCH", "A search whose best condition is offered; repeatable."),
    ] = None,
    condition_vector: Annotated[
        list[Path] | None,
        taking(vector_file, "VECTOR", "The vector of each --condition, in the same order."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="The rules to begin with, such as 'if harmful then steer'."),
    ] = None,
) -> None:
    """Steer a model by hand, on a page in the browser: replies, gates and tokens side by side.

    The page is there at once; the model loads meanwhile. Vectors of the demo data are made when
    first asked for, and kept (steerlens cache).

    Example: steerlens playground --vector mine.safetensors --rule "if harmful then mine" --open
    """
    from steerlens.playground.app import Start, serve

    searches, read_by = condition or (), condition_vector or ()
    if len(searches) != len(read_by):
        raise SteerlensError(
            f"got {len(searches)} --condition and {len(read_by)} --condition-vector; give each "
            "search its vector"
        )
    conditions = tuple(zip(searches, read_by, strict=True))
    start = Start(model, tuple(vector or ()), conditions, "\n".join(rule or ()))
    serve(start, host=host, port=port, open_browser=open_browser, console=console)


@app.command("serve", rich_help_panel=SERVE)
@reporting
def serve_command(
    plans: Annotated[
        list[Path] | None,
        argument(steered_file, "PLANS", "Vectors or saved plans; requests say their files' names."),
    ] = None,
    model: ModelName = TINY_CHAT,
    layers: Layers = None,
    strength: Annotated[
        float | None,
        typer.Option(help="The vectors' strength where a request gives none. Default: 1."),
    ] = None,
    relative: Relative = False,
    name: Annotated[str, typer.Option(help="The model's name for clients.")] = "",
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond loopback, clients need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="STEERLENS_TOKEN", help="Clients' API key. Default: a new one."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Most replies written at once.")] = 32,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most prompts that wait; then clients are told to.")
    ] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of a reply.")] = 512,
    plans_from: Annotated[
        Path | None,
        taking(existing_directory, "DIRECTORY", "Let clients load plans from here, and unload."),
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Seconds that replies get to end after Ctrl-C.")
    ] = 10,
) -> None:
    """Serve a model to OpenAI's clients, each request steered by plans of its own.

    Example: steerlens serve refuse.safetensors --model smollm2 --layers 15 --relative
    """
    from steerlens.models.loading import load_model
    from steerlens.serving.engine import Limits
    from steerlens.serving.plans import read_plan
    from steerlens.serving.running import address_of, bound, make_service, serve, token_for

    import_extra("uvicorn", "serve", "the server")
    secret = token_for(host, token)
    of_vectors: dict[str, Any] = {"layers": layers, "strength": strength, "relative": relative}
    read = [
        read_plan(path, **({} if path.suffix.lower() == PLAN_ENDING else of_vectors))
        for path in plans or ()
    ]
    limits = Limits(max_rows, max_queue)
    with bound(host, port) as listening:
        service = make_service(
            load_model(model), read, name=name or Path(model).name,
            limits=limits, longest=max_tokens, folder=plans_from, token=secret,
        )  # fmt: skip
        say(f"serving {service.name} at {address_of(listening)}/v1")
        _say_plans(service, None if token else secret)
        serve(service, listening, patience=patience)


def _say_plans(service: Any, new_token: str | None) -> None:
    """Print what clients can ask for, and the token that they need."""
    for plan in service.shelf.plans:
        say(f"  {service.name}+{plan.name}: {', '.join(map(repr, plan.steerings))}")
    if new_token is not None:
        say(f"clients send this as their API key: {new_token}")
