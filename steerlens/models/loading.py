"""Names and directories → a loaded host, checked against the Hugging Face model it stands for."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import supported_models
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.utilities.multi_gpu import resolve_device_map
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from steerlens.errors import SteerlensError
from steerlens.files import demo_file
from steerlens.models.fast_forward import turn_off
from steerlens.models.host import HookedTransformer, Model
from steerlens.models.weight_layout import fast_layout

try:
    from transformer_lens import loading_from_pretrained as converters
except ImportError:  # TransformerLens 4 and later
    converters = None

TINY_CHAT = "tiny-chat"
HOSTS = ("auto", "hooked", "bridge")

CONVERTED = (
    "BloomForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM",
    "OPTForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip
"""Architectures that HookedTransformer converts faithfully from nothing but a local directory."""

BOS_AS_HOOKED = {"GPTNeoXForCausalLM": True, "PhiForCausalLM": True}
"""Where HookedTransformer puts a BOS before texts and bridges would not: vectors are to cross."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the names of architectures end that predict the next token."""

CHECKED_TOKENS = 24
LOGIT_TOLERANCE = 1e-3
"""Largest difference to Hugging Face's log-probabilities that float32 rounding explains."""
HALF_TOLERANCE = 0.5
"""And of half precision."""


class _Wish(NamedTuple):
    """How a model is to be loaded."""

    device: str | torch.device | None
    dtype: torch.dtype
    n_devices: int
    revision: str | None
    bits: int | None


def load_model(
    name: str = TINY_CHAT,
    *,
    host: str = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    n_devices: int = 1,
    revision: str | None = None,
    bits: int | None = None,
    fast: bool = True,
) -> Model:
    """Load a model without weight processing, on the fastest host that computes it faithfully.

    `name` is "tiny-chat" (ships with the package), a local Hugging Face directory, or a name on the
    hub. `host="auto"` takes a HookedTransformer where TransformerLens has one for the model, and a
    TransformerBridge elsewhere; `bits` (4 or 8) quantises a bridge's weights, by bitsandbytes.
    With `fast=False` the model is left as TransformerLens made it: weights keep their layout in
    memory, and forward passes repeat what they could skip (see `fast_forward`); nothing that comes
    out differs. Raises if the loaded model computes anything else than the Hugging Face one.

    >>> load_model().cfg.n_layers
    6
    """
    if host not in HOSTS:
        raise SteerlensError(f"host={host!r} is unknown; choose one of {', '.join(HOSTS)}")
    if bits not in (None, 4, 8):
        raise SteerlensError(f"bits={bits} came; weights are quantised to 4 or 8 bits")
    directory = demo_file(TINY_CHAT) if name == TINY_CHAT else Path(name)
    if revision is not None and directory.is_dir():
        raise SteerlensError(
            f"revision={revision!r} came with the local directory {str(directory)!r}, which has "
            "but one; leave it out, or give a name on the hub"
        )
    if n_devices > max(1, torch.cuda.device_count()):
        raise SteerlensError(
            f"n_devices={n_devices} came, but {torch.cuda.device_count()} CUDA devices are here"
        )
    wish = _Wish(device, dtype, n_devices, revision, bits)
    with quiet():
        load = _load_checked if directory.is_dir() else _load_from_hub
        model = load(str(directory) if directory.is_dir() else name, host, wish)
    model.cfg.model_name = name if name == TINY_CHAT else Path(name).name
    if fast:
        return fast_layout(model.eval())
    turn_off(model)
    return model.eval()


def supported_hosts() -> dict[str, str]:
    """Each architecture of a local directory, and the host that `host="auto"` loads it on.

    >>> supported_hosts()["Gemma2ForCausalLM"]
    'bridge'
    """
    hosts = {
        name: "bridge"
        for name, adapter in SUPPORTED_ARCHITECTURES.items()
        if name.endswith(_CAUSAL)
        and adapter.create_stateful_cache is ArchitectureAdapter.create_stateful_cache
    }
    if converters is not None:
        hosts |= dict.fromkeys(CONVERTED, "hooked")
    return dict(sorted(hosts.items()))


def official_names() -> list[str]:
    """Names on the hub that TransformerLens knows."""
    return list(supported_models.OFFICIAL_MODEL_NAMES)


def _load_from_hub(name: str, host: str, wish: _Wish) -> Any:
    try:
        official = (converters or supported_models).get_official_model_name(name)
    except ValueError as error:
        if "/" not in name:
            raise SteerlensError(
                f"{name!r} is neither {TINY_CHAT!r}, nor a local directory, nor a name that "
                "TransformerLens knows (list them with: steerlens models --names), nor an "
                "owner/name of the hub"
            ) from error
        official = None
    no_hooked = _why_not_hooked(wish) or (official is None and "TransformerLens does not know it")
    if host == "hooked" and no_hooked:
        raise _not_hooked(name, no_hooked)
    if host == "bridge" or no_hooked:
        return _load_checked(official or name, "bridge", wish)
    options = {} if wish.revision is None else {"revision": wish.revision}
    try:
        return HookedTransformer.from_pretrained_no_processing(
            official, device=wish.device, dtype=wish.dtype, n_devices=wish.n_devices, **options
        )
    except OSError as error:
        raise _unreachable(name, error) from error


def _load_checked(source: str, host: str, wish: _Wish) -> Any:
    """From a directory, or what the hub has under a name; in one host or the other."""
    no_hooked = _why_not_hooked(wish)
    if host == "hooked" and no_hooked:
        raise _not_hooked(source, no_hooked)
    original, tokenizer = _from_hugging_face(source, wish)
    architecture = type(original).__name__
    if host == "hooked" and architecture not in CONVERTED:
        raise _not_hooked(source, f"TransformerLens cannot convert this {architecture} into one")
    hooked = host != "bridge" and not no_hooked and architecture in CONVERTED
    if not hooked and architecture not in SUPPORTED_ARCHITECTURES:
        raise SteerlensError(
            f"{source!r} is a {architecture}, which no host of this TransformerLens knows; see "
            "those it does with: steerlens models"
        )
    allowed = LOGIT_TOLERANCE if wish.dtype == torch.float32 and not wish.bits else HALF_TOLERANCE
    tokens = _random_tokens(original)
    expected = _log_probabilities(original, tokens)
    # Prompts are padded on the right when they are read: no token may see what follows it.
    shorter = _log_probabilities(original, tokens[:, :-4])
    if (shorter - expected[:, :-4]).abs().max() > allowed:
        raise SteerlensError(
            f"{source!r} lets its tokens see those that follow (it is a {architecture}): only "
            "causal language models are read and steered"
        )
    model = _converted(original, tokenizer, wish) if hooked else _bridged(original, tokenizer, wish)
    error = (_log_probabilities(model, tokens) - expected).abs().max().item()
    if not error <= allowed:
        raise SteerlensError(
            f"{source!r} was loaded, but {type(model).__name__}'s log-probabilities differ from "
            f"Hugging Face's by {error:.3g} (allowed {allowed}): its architecture is not converted "
            "faithfully, so results would be about another model"
            + ('; try host="bridge"' if hooked else "")
        )
    return model


def _why_not_hooked(wish: _Wish) -> str | None:
    if converters is None:
        return "TransformerLens 4 has none; install transformer-lens 3"
    return f"it cannot hold weights of {wish.bits} bits" if wish.bits else None


def _not_hooked(source: str, reason: str) -> SteerlensError:
    return SteerlensError(
        f'{source!r} cannot be a HookedTransformer: {reason}, or leave out host="hooked"'
    )


def _from_hugging_face(source: str, wish: _Wish) -> tuple[Any, Any]:
    local = Path(source).is_dir()
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
        original = AutoModelForCausalLM.from_pretrained(
            source, dtype=wish.dtype, attn_implementation="eager", **options, **placed
        ).eval()
    except ImportError as error:
        raise SteerlensError(f"{source!r} needs a package that is not here: {error}") from error
    except Exception as error:  # whatever a broken directory makes the libraries raise
        if not local and isinstance(error, OSError):
            raise _unreachable(source, error) from error
        raise SteerlensError(
            f"{source!r} does not hold a Hugging Face model that can be loaded: {error}"
        ) from error
    return original if placed else original.to(wish.device or _usual_device()), tokenizer


def _usual_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _unreachable(name: str, error: OSError) -> SteerlensError:
    return SteerlensError(
        f"the model {name!r} could not be fetched from the hub ({error}); "
        f"check the connection, or use a local directory or {TINY_CHAT!r}"
    )


def _converted(original: Any, tokenizer: Any, wish: _Wish) -> Any:
    """HookedTransformer's own loader refuses directories; the pieces it is made of do not."""
    config = original.config.to_dict() | {"architectures": [type(original).__name__]}
    config.setdefault("n_ctx", config.get("n_positions") or config.get("max_position_embeddings"))
    # The loader looks for "llama" or "gemma" in the path: it must see a neutral one.
    with tempfile.TemporaryDirectory(prefix="model-") as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(config, default=str))
        cfg = converters.get_pretrained_model_config(
            neutral,
            hf_cfg=config,
            fold_ln=False,
            device=wish.device,
            dtype=wish.dtype,
            n_devices=wish.n_devices,
        )
        weights = converters.get_pretrained_state_dict(neutral, cfg, original, dtype=wish.dtype)
    model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        {key: weight.clone() for key, weight in weights.items()},
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    model.move_model_modules_to_device()
    return model


def _bridged(original: Any, tokenizer: Any, wish: _Wish) -> Any:
    """The Hugging Face model itself, with HookedTransformer's names for its hook points."""
    model = TransformerBridge.boot_transformers(
        original.config.name_or_path,
        hf_model=original,
        tokenizer=tokenizer,
        dtype=wish.dtype,
        device=original.device if wish.n_devices == 1 and not wish.bits else None,
    )
    if getattr(model.cfg, "is_stateful", False) or getattr(original, "_is_stateful", False):
        raise SteerlensError(
            f"{type(original).__name__} carries a recurrent state from token to token, which "
            "padding would change: batches of prompts cannot be read or steered"
        )
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    usual = model.cfg.default_prepend_bos
    model.cfg.default_prepend_bos = BOS_AS_HOOKED.get(type(original).__name__, usual)
    return model.eval()


def _random_tokens(original: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = original.get_input_embeddings().weight.shape[0]
    return torch.randint(size, (2, CHECKED_TOKENS), generator=generator)


@torch.inference_mode()
def _log_probabilities(model: Any, tokens: Tensor) -> Float[Tensor, "row pos d_vocab"]:
    result = model(tokens.to(next(model.parameters()).device))
    logits = getattr(result, "logits", result)
    return logits.float().log_softmax(-1).cpu()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no advice about the host's future; warnings of substance stay."""
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    root_level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*HookedTransformer.*", category=Warning)
            yield
    finally:
        logging.root.setLevel(root_level)
        if bars_were_on:
            transformers_logging.enable_progress_bar()
