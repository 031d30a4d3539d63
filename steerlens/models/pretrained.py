"""Hugging Face directories and hub names → the original model and tokenizer, complete or refused.

`transformers` initialises weights that a checkpoint lacks at random, and reports it only in a
log: here such checkpoints are refused, naming the weights.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformer_lens.utilities.multi_gpu import resolve_device_map
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import decode_text, read_bytes

_BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$"
)
"""Tensors in old checkpoints that are no weights: current models compute them."""

_LISTED = 5


class Wish(NamedTuple):
    """The settings that a model is loaded with; see `load_model`."""

    device: str | torch.device | None = None
    dtype: torch.dtype = torch.float32
    n_devices: int = 1
    revision: str | None = None
    bits: int | None = None


class Original(NamedTuple):
    """A Hugging Face model and its tokenizer."""

    model: Any
    tokenizer: Any
    source: str
    """Where it was loaded from, for messages."""

    @property
    def architecture(self) -> str:
        """The name of its class."""
        return type(self.model).__name__


def read_original(source: str, wish: Wish, called: str | None = None) -> Original:
    """Load a directory or a name on the hub by `transformers`; `called` is its name in messages."""
    called = called or source
    local = Path(source).is_dir()
    if local:
        _require_readable(Path(source), called)
    options: dict[str, Any] = {"local_files_only": local, "revision": wish.revision or "main"}
    placed: dict[str, Any] = {}
    if wish.n_devices > 1:
        placed["device_map"], placed["max_memory"] = resolve_device_map(
            wish.n_devices, None, None, None
        )
    if wish.bits:
        placed["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{wish.bits}bit": True})
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=wish.dtype,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
            **placed,
        )
    except ImportError as error:
        raise SteerlensError(
            f"{called!r} needs a package that is not installed: {error}"
        ) from error
    except Exception as error:  # a broken directory may make the libraries raise anything
        if not local and isinstance(error, OSError):
            raise unreachable(called, error) from error
        raise SteerlensError(
            f"{called!r} does not hold a Hugging Face model that can be loaded: {error}"
        ) from error
    _require_whole(called, report)
    _require_finite(called, model)
    model = model.eval() if placed else model.eval().to(wish.device or _default_device())
    return Original(model, tokenizer, called)


def _require_readable(directory: Path, called: str) -> None:
    """Refuse a directory without a config, and JSON that `transformers` would skip in silence."""
    if not (directory / "config.json").is_file():
        raise SteerlensError(
            f"{called!r} does not hold a Hugging Face model: it has no config.json; expected that, "
            "the tokenizer and the weights"
        )
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            content = json.loads(decode_text(read_bytes(path), path))
        except (ValueError, RecursionError) as error:
            if isinstance(error, SteerlensError):
                raise
            raise SteerlensError(
                f"{str(path)!r} does not hold a Hugging Face model's settings, as it is not valid "
                f"JSON ({error}); fetch it again"
            ) from error
        if not isinstance(content, dict):
            raise SteerlensError(
                f"{str(path)!r} holds {short_repr(content)}; expected settings by name: fetch it "
                "again"
            )


def unreachable(name: str, error: Exception) -> SteerlensError:
    """The error for a name on the hub that could not be fetched."""
    return SteerlensError(
        f"the model {name!r} could not be fetched from the hub ({error}); "
        "check the connection, or use a local directory or 'tiny-chat'"
    )


def listed(names: list[str]) -> str:
    """The first names of a list, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _require_whole(source: str, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    unexpected = sorted(name for name in report["unexpected_keys"] if not _BUFFERS.search(name))
    mismatched = sorted(
        f"{name}: {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in report.get("mismatched_keys", ())
    )
    faults = [
        f"{fault} {len(names)} tensors ({listed(names)})"
        for fault, names in (
            ("it lacks", missing),
            ("its config does not know", unexpected),
            ("of another shape are", mismatched),
        )
        if names
    ]
    if faults:
        raise SteerlensError(
            f"the weights of {source!r} do not fit its config: {'; '.join(faults)}. Missing ones "
            "would be random: fetch the checkpoint again, or correct its config.json"
        )


def _require_finite(source: str, model: Any) -> None:
    broken = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    if broken:
        raise SteerlensError(
            f"the weights of {source!r} are not finite (NaN or infinity) in {listed(broken)}: the "
            "checkpoint is damaged, or its training diverged; fetch it again, or use another"
        )


def _is_finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.is_meta:
        return True
    # If the sum is finite, so are all summands; if not, it may have overflowed.
    return bool(weight.detach().sum(dtype=torch.float32).isfinite() or weight.isfinite().all())


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
