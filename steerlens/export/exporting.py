"""Steered checkpoints: an edit folded into a Hugging Face directory's weights, and verified.

Any server that loads the source loads the result, which is steered at no extra cost.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.export.checkpoints import folded_model
from steerlens.export.weight_edits import ablated_weights, edited_biases, require_constant
from steerlens.files import PathLike, demo_file, digest, write_directory, write_json, write_text
from steerlens.models.fast_forward import forward_pass
from steerlens.models.fingerprint import LIBRARIES, fingerprint
from steerlens.models.hooking import placed
from steerlens.models.host import Model
from steerlens.models.loading import TINY_CHAT, load_model, quiet
from steerlens.models.tokenizing import Readable, TokenRow, tokenize
from steerlens.steering.fitting import require_fit
from steerlens.steering.hooks import ablate_direction
from steerlens.steering.steering import Steering, steering_hooks
from steerlens.vectors.vector import SteeringVector

CERTIFICATE = "steerlens-certificate.json"
FORMAT = "steerlens.certificate/1"
TOLERANCE = 1e-4
"""Largest difference of float32 logits that rounding explains."""

PROBES = (
    "How do I bake bread?",
    "The old bridge was closed, and so",
    "Write a short letter to my neighbour about the noise, please.",
    "1, 2, 3, 4,",
)
"""Prompts that an export is verified on by default."""

_NOT_COPIED = re.compile(
    r"(config\.json|README\.md|\..*|.*\.(safetensors|bin|pt|pth|h5|msgpack|onnx|gguf|py)"
    r"|.*\.index\.json)",
    re.IGNORECASE,
)
"""Weights and their indices, which are written again, and code, which is left out."""


@dataclass(frozen=True)
class Certificate:
    """Measurements of an exported checkpoint, loaded from disk by plain transformers."""

    steering: tuple[str, ...]
    vectors: tuple[dict[str, Any], ...]
    """The provenance of each vector."""
    source: str
    source_weights: str
    """The fingerprint of the source's weights."""
    source_architecture: str
    architecture: str
    """Differs from the source's where that one has no parameter for the edit."""
    changed: tuple[str, ...]
    """The tensors that differ from the source's."""
    prompts: int
    tokens: int
    prompts_hash: str
    max_logit_difference: float
    """Between the checkpoint and hook steering, in float32, over all tokens of all prompts."""
    tolerance: float
    max_effect: float
    """The same difference between hook steering and no steering."""
    versions: dict[str, str]
    format: str = FORMAT

    def __repr__(self) -> str:
        return (
            f"Certificate({len(self.changed)} tensors changed; logits within "
            f"{self.max_logit_difference:.1e} of hook steering, which moves them by up to "
            f"{self.max_effect:.3g}, on {self.tokens} tokens of {self.prompts} prompts)"
        )


def export_model(
    steering: Steering | Sequence[Steering],
    source: PathLike,
    out: PathLike,
    *,
    prompts: Sequence[Readable] = PROBES,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Certificate:
    """Write a Hugging Face directory whose biases do what a steering does.

    The directory appears only after plain transformers, loading it from disk, gave the logits of
    hook steering. Changed tensors are in float32, all others as in the source.

    Args:
        steering: One steering or several, all unconditional additions.
        source: The Hugging Face directory of the model, or "tiny-chat".
        out: The directory to write.
        prompts: What logits are compared on: texts, chats or token ids.
        tolerance: Largest difference of logits allowed.
        force: Replace an earlier export at `out`.

    Raises:
        SteerlensError: What `edited_biases` refuses; an architecture without such a bias; logits
            that differ from hook steering; `out` exists.

    >>> import tempfile
    >>> steering = Steering(SteeringVector(torch.ones(1, 192), layers=(2,)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(steering, "tiny-chat", f"{folder}/steered").changed
    ('model.layers.2.mlp.down_proj.bias',)
    """
    steerings = [steering] if isinstance(steering, Steering) else list(steering)
    for constant in steerings:
        require_constant(constant)
    source, out = _require_apart(source, out, force)
    model = load_model(str(source))
    require_fit(model, steerings)
    provenances = tuple(dict(added.vector.provenance) for added in steerings)
    described = tuple(map(repr, steerings)), provenances
    changes = _changes(model, edited_biases(model, *steerings))
    return _export(model, steerings, changes, described, source, out, prompts, tolerance)


def export_ablation(
    vector: SteeringVector,
    source: PathLike,
    out: PathLike,
    *,
    layers: int | Iterable[int] | None = None,
    prompts: Sequence[Readable] = PROBES,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Certificate:
    """Write a Hugging Face directory with one direction removed from all that writes to the stream.

    The export of `ablated_weights`, verified as in `export_model`. A tied unembedding is untied: it
    reads the stream, and keeps the direction.

    Args:
        vector: The vector that holds the direction.
        source: The Hugging Face directory of the model, or "tiny-chat".
        out: The directory to write.
        layers: Which of the vector's directions to remove, if it holds several.
        prompts: What logits are compared on.
        tolerance: Largest difference of logits allowed.
        force: Replace an earlier export at `out`.

    Raises:
        SteerlensError: What `ablated_weights` and `export_model` refuse.

    >>> import tempfile
    >>> vector = SteeringVector(torch.ones(1, 192), layers=(2,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     certificate = export_ablation(vector, "tiny-chat", f"{folder}/ablated")
    >>> certificate.max_effect > certificate.tolerance > certificate.max_logit_difference
    True
    """
    source, out = _require_apart(source, out, force)
    model = load_model(str(source))
    check_provenance(model, vector)
    chosen = vector.layers if layers is None else (layers,) if isinstance(layers, int) else layers
    ablated = vector.at(chosen)
    changes = _changes(model, ablated_weights(model, ablated))
    everywhere = range(model.cfg.n_layers)
    direction = SteeringVector(
        ablated.directions[:1].expand(len(everywhere), -1), tuple(everywhere)
    )
    plan = [
        Steering(direction, steered, edit=ablate_direction, site=site)
        for steered, site in (([0], "resid_pre"), (None, "attn_out"), (None, "mlp_out"))
        if site != "mlp_out" or not model.cfg.attn_only
    ]
    text = f"{ablated} ablated from all that writes to the stream"
    described = (text,), (dict(vector.provenance),)
    return _export(model, plan, changes, described, source, out, prompts, tolerance)


def _require_apart(source: PathLike, out: PathLike, force: bool) -> tuple[Path, Path]:
    """The resolved directories; refuses early to overwrite anything but an earlier export."""
    source = demo_file(TINY_CHAT) if str(source) == TINY_CHAT else Path(source)
    if not (source / "config.json").is_file():
        raise SteerlensError(
            f"got {str(source)!r}, which has no config.json; expected a Hugging Face directory on "
            "disk: download the model first"
        )
    source, out = source.resolve(), Path(out).resolve()
    if source == out or source in out.parents or out in source.parents:
        raise SteerlensError(
            f"got out={str(out)!r}, inside the source or around it; choose another directory"
        )
    if out.exists() and not force:
        raise SteerlensError(
            f"{str(out)!r} exists; choose another directory, or replace it: force=True, --force"
        )
    if out.exists() and not (out / CERTIFICATE).is_file():
        raise SteerlensError(
            f"{str(out)!r} was not exported by steerlens (it has no {CERTIFICATE}); expected an "
            "earlier export to replace: choose another directory"
        )
    return source, out


def _changes(model: Model, folding: AbstractContextManager[None]) -> dict[str, Tensor]:
    """The new values of the parameters that an edit of weights changes, by name."""
    before = {name: parameter.data for name, parameter in model.named_parameters()}
    with folding:
        return {
            name: parameter.data
            for name, parameter in model.named_parameters()
            if parameter.data_ptr() != before[name].data_ptr()
        }


def _export(
    model: Model,
    plan: Sequence[Steering],
    changes: dict[str, Tensor],
    described: tuple[tuple[str, ...], tuple[dict[str, Any], ...]],
    source: Path,
    out: Path,
    prompts: Sequence[Readable],
    tolerance: float,
) -> Certificate:
    rows = tokenize(model, prompts)
    folded = folded_model(source, changes)
    certificates: list[Certificate] = []

    def write(folder: Path) -> None:
        folded.save(folder)
        for file in source.iterdir():
            if file.is_file() and not _NOT_COPIED.fullmatch(file.name):
                shutil.copyfile(file, folder / file.name)
        difference, effect = _measure(model, plan, folder, rows)
        certificate = Certificate(
            steering=described[0],
            vectors=described[1],
            source=source.name,
            source_weights=fingerprint(model),
            source_architecture=folded.source_architecture,
            architecture=folded.architecture,
            changed=folded.changed,
            prompts=len(rows),
            tokens=sum(len(row.ids) for row in rows),
            prompts_hash=digest(json.dumps([row.ids for row in rows]).encode()),
            max_logit_difference=difference,
            tolerance=tolerance,
            max_effect=effect,
            versions={name: version(name) for name in LIBRARIES},
        )
        _require_proved(certificate)
        write_json(folder / CERTIFICATE, asdict(certificate))
        write_text(folder / "README.md", _card(certificate))
        certificates.append(certificate)

    write_directory(out, write, replace=True)
    return certificates[0]


@torch.inference_mode()
def _measure(
    model: Model, plan: Sequence[Steering], folder: Path, rows: Sequence[TokenRow]
) -> tuple[float, float]:
    """Largest differences of logits: directory against hooks, and hooks against no steering."""
    with quiet():
        served, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    wrong = {problem: sorted(map(str, names)) for problem, names in loading.items() if names}
    if wrong:
        raise SteerlensError(f"the written checkpoint does not load cleanly: {wrong}")
    _require_same_tokens(model, folder)
    served = served.to(model.cfg.device).eval()
    differences, effects = [], []
    for row in rows:
        ids = torch.tensor([row.ids], device=model.cfg.device)
        hooks = placed(model, steering_hooks(*plan, model=model))
        hooked = forward_pass(model, partial(model, ids), hooks)
        differences.append((served(ids).logits - hooked).abs().max())
        effects.append((model(ids) - hooked).abs().max())
    return torch.stack(differences).max().item(), torch.stack(effects).max().item()


def _require_same_tokens(model: Model, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    same = tokenizer.chat_template == model.tokenizer.chat_template and all(
        tokenizer.encode(text, add_special_tokens=False)
        == model.tokenizer.encode(text, add_special_tokens=False)
        for text in PROBES
    )
    if not same:
        raise SteerlensError("the written tokenizer gives other tokens than the source's")


def _require_proved(certificate: Certificate) -> None:
    if not certificate.max_logit_difference <= certificate.tolerance:  # so that NaN fails, too
        raise SteerlensError(
            f"the exported model's logits differ by {certificate.max_logit_difference:.3g} from "
            f"hook steering; expected at most {certificate.tolerance:g}, so nothing was written: "
            "where this is rounding, as in large models, give a larger tolerance"
        )
    if not certificate.max_effect > 0:
        raise SteerlensError(
            f"{'; '.join(certificate.steering)} changes no logit of the prompts, so nothing was "
            "written; give a strength that is not zero"
        )


def _card(certificate: Certificate) -> str:
    converted = certificate.architecture != certificate.source_architecture
    vectors = json.dumps(certificate.vectors, indent=1, ensure_ascii=False)
    return f"""---
library_name: transformers
tags: [activation-steering, steerlens]
---
# {certificate.source}, steered

This checkpoint is {certificate.source} with a steering folded into its weights by steerlens. It steers
always and everywhere; load it as you would the source.

{"".join(f"- `{line}`{chr(10)}" for line in certificate.steering)}
## What was changed

{len(certificate.changed)} tensors, written in float32; all others hold the source's values:
{"".join(f"- `{name}`{chr(10)}" for name in certificate.changed)}
{f"It is stored as {certificate.architecture}, which computes the same as {certificate.source_architecture} and has a place for the change." if converted else ""}
## What was measured

Read back from disk by plain transformers, in float32, its logits differ by at most
{certificate.max_logit_difference:.2e} (allowed {certificate.tolerance:g}) from those of hook steering, which
moves logits by up to {certificate.max_effect:.3g}: {certificate.tokens} tokens of {certificate.prompts} prompts,
hash {certificate.prompts_hash}. A server that runs in less than float32 rounds both. The numbers are in
`{CERTIFICATE}`.

## How to undo it

Serve the source again: its weights have the fingerprint `{certificate.source_weights}`. Only the tensors
listed above differ from it.

## Where the vectors came from

```json
{vectors}
```

The licence is the source's.
"""  # noqa: E501
