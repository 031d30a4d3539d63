"""Hugging Face models → hosts, checked: what a host computes is what the original computes."""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteerlensError
from steerlens.files import write_text
from steerlens.models.host import HookedTransformer, Model, is_hooked
from steerlens.models.pretrained import Original, Wish
from steerlens.models.tokenizing import own_prefix

try:
    from transformer_lens import loading_from_pretrained as converters
except ImportError:  # TransformerLens 4 and later
    converters = None

CONVERTED = (
    "BloomForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM",
    "OPTForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip
"""Architectures that HookedTransformer converts faithfully from nothing but a local directory."""

CHECKED_TOKENS = 24
WIDEST_CHECKED_WINDOW = 1024
"""Sliding windows up to here are checked by texts longer than they are; wider ones would take
minutes, so that such models run on a bridge, where Hugging Face itself slides them."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference to Hugging Face's log-probabilities that float32 rounding explains."""
HALF_TOLERANCE = 0.5
"""And of half precision."""

_SWITCHING_ROTATIONS = ("longrope", "dynamic")
"""Rotary positions that change for all tokens once a text is long: only seen in long texts."""


def hosted(original: Original, host: str, wish: Wish, *, checked: bool = False) -> Model:
    """The model on a host of that kind, or on the fastest that computes it faithfully ("auto").

    `checked` says that these weights were compared with Hugging Face's before.
    """
    reason = why_not_hooked(original, wish)
    if host == "hooked" and reason:
        raise not_hooked(original.source, reason)
    if (host == "bridge" or reason) and original.architecture not in SUPPORTED_ARCHITECTURES:
        raise SteerlensError(
            f"{original.source!r} is a {original.architecture}, which no host of this "
            "TransformerLens knows; see those it does with: steerlens models"
        )
    expected = None if checked else _Expected(original, wish)
    if host != "bridge" and not reason:
        try:
            model = _converted(original, wish)
            if expected:
                expected.require(model)
            return model
        except Exception as error:  # converters fail on odd configs in ways of their own
            if host == "hooked" or original.architecture not in SUPPORTED_ARCHITECTURES:
                raise _as_steerlens_error(original, error) from error
            warnings.warn(
                f"{original.source!r} runs on a TransformerBridge, which is slower, since "
                f"TransformerLens does not convert its config faithfully: {error}",
                stacklevel=4,
            )
    try:
        model = _bridged(original, wish)
    except SteerlensError:
        raise
    except Exception as error:
        raise _as_steerlens_error(original, error) from error
    if expected:
        expected.require(model)
    return model


def why_not_hooked(original: Original | None, wish: Wish) -> str | None:
    """Why a HookedTransformer would not do; without an original, whatever the model is."""
    if converters is None:
        return "TransformerLens 4 has none; install transformer-lens 3"
    if wish.bits:
        return f"it cannot hold weights of {wish.bits} bits"
    if original is None:
        return None
    if original.architecture not in CONVERTED:
        return f"TransformerLens cannot convert this {original.architecture} into one"
    window = _window(original.model.config)
    if window is not None and window > WIDEST_CHECKED_WINDOW:
        return f"its attention slides over {window} tokens, too many to check the conversion"
    rotation = (getattr(original.model.config, "rope_parameters", None) or {}).get("rope_type")
    if rotation in _SWITCHING_ROTATIONS:
        return f"its rotary positions ({rotation}) change with the length of the text"
    return None


def not_hooked(source: str, reason: str) -> SteerlensError:
    """For a HookedTransformer that was asked for and cannot be."""
    return SteerlensError(
        f'{source!r} cannot be a HookedTransformer: {reason}, or leave out host="hooked"'
    )


def use_own_bos(model: Any, tokenizer: Any) -> None:
    """Texts begin as the model's own tokenizer begins them, on every host.

    HookedTransformer would reload the tokenizer so that it adds a BOS, and prepend one where it
    does not: another text than the model was trained on.
    """
    for name, stand_in in (("pad_token", "eos_token"), ("bos_token", "eos_token")):
        if getattr(tokenizer, name) is None and getattr(tokenizer, stand_in) is not None:
            setattr(tokenizer, name, getattr(tokenizer, stand_in))
    if is_hooked(model):
        model.tokenizer = tokenizer
    else:  # a bridge's setter would make it add a BOS again
        model._tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = model.cfg.default_prepend_bos = bool(own_prefix(tokenizer))


def declared_end_tokens(original: Original) -> tuple[int, ...]:
    """All tokens at which the model's generation config, or its tokenizer, ends a reply."""
    config = getattr(original.model, "generation_config", None)
    declared = getattr(config, "eos_token_id", None)
    ids = declared if isinstance(declared, list | tuple) else [declared]
    return tuple(
        dict.fromkeys(one for one in (*ids, original.tokenizer.eos_token_id) if one is not None)
    )


def _as_steerlens_error(original: Original, error: Exception) -> SteerlensError:
    if isinstance(error, SteerlensError):
        return error
    return SteerlensError(
        f"{original.source!r} is a {original.architecture} whose config TransformerLens cannot "
        f"host: {type(error).__name__}: {error}"
    )


class _Expected:
    """What the original computes, for texts longer than any window that it looks through."""

    def __init__(self, original: Original, wish: Wish) -> None:
        self._original = original
        precise = wish.dtype == torch.float32 and not wish.bits
        self._allowed = LOGIT_TOLERANCE if precise else HALF_TOLERANCE
        window = _window(original.model.config) or 0
        self._tokens = _random_tokens(original.model, CHECKED_TOKENS + min(window, 1024))
        self._values = _log_probabilities(original.model, self._tokens)
        # Prompts are padded on the right when they are read: no token may see what follows it.
        shorter = _log_probabilities(original.model, self._tokens[:, :-4])
        seen = CHECKED_TOKENS - 4
        if (shorter[:, -seen:] - self._values[:, :seen]).abs().max() > self._allowed:
            raise SteerlensError(
                f"{original.source!r} lets its tokens see those that follow (it is a "
                f"{original.architecture}): only causal language models are read and steered"
            )

    def require(self, model: Model) -> None:
        """Refuse a host that computes anything else."""
        error = (_log_probabilities(model, self._tokens) - self._values).abs().max().item()
        if not error <= self._allowed:
            raise SteerlensError(
                f"{self._original.source!r} was loaded, but {type(model).__name__}'s "
                f"log-probabilities differ from Hugging Face's by {error:.3g} (allowed "
                f"{self._allowed}): its architecture is not converted faithfully, so results would "
                "be about another model"
            )


def _window(config: Any) -> int | None:
    """How many tokens attention looks back over, if that is less than the whole text."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    found = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    context = getattr(config, "max_position_embeddings", None)
    return None if not found or (context and found >= context) else int(found)


def _converted(original: Original, wish: Wish) -> Any:
    """HookedTransformer's own loader refuses directories; the pieces it is made of do not."""
    config = original.model.config.to_dict() | {"architectures": [original.architecture]}
    context = config.get("n_positions") or config.get("max_position_embeddings")
    config.setdefault("n_ctx", context)
    # The loader looks for "llama" or "gemma" in the path: it must see a neutral one.
    with tempfile.TemporaryDirectory(prefix="model-") as neutral:
        write_text(Path(neutral) / "config.json", json.dumps(config, default=str))
        cfg = converters.get_pretrained_model_config(
            neutral,
            hf_cfg=config,
            fold_ln=False,
            device=wish.device,
            dtype=wish.dtype,
            n_devices=wish.n_devices,
        )
        if context:  # the converter has limits of its own, for the memory of old versions
            cfg.n_ctx = context
        weights = converters.get_pretrained_state_dict(
            neutral, cfg, original.model, dtype=wish.dtype
        )
    cfg.tokenizer_name = None
    model = HookedTransformer(cfg, move_to_device=False)
    # In one go: the host's own loading walks all modules once for each weight.
    model.load_state_dict(model.fill_missing_keys(weights), strict=False)
    use_own_bos(model, original.tokenizer)
    model.move_model_modules_to_device()
    return model.eval()


def _bridged(original: Original, wish: Wish) -> Any:
    """The Hugging Face model itself, with HookedTransformer's names for its hook points."""
    model = TransformerBridge.boot_transformers(
        original.model.config.name_or_path,
        hf_model=original.model,
        tokenizer=original.tokenizer,
        dtype=wish.dtype,
        device=original.model.device if wish.n_devices == 1 and not wish.bits else None,
    )
    if getattr(model.cfg, "is_stateful", False) or getattr(original.model, "_is_stateful", False):
        raise SteerlensError(
            f"{original.architecture} carries a recurrent state from token to token, which "
            "padding would change: batches of prompts cannot be read or steered"
        )
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    use_own_bos(model, original.tokenizer)
    context = getattr(original.model.config, "max_position_embeddings", None)
    if context:
        model.cfg.n_ctx = context
    return model.eval()


def _random_tokens(original: Any, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = original.get_input_embeddings().weight.shape[0]
    return torch.randint(size, (2, length), generator=generator)


@torch.inference_mode()
def _log_probabilities(model: Any, tokens: Tensor) -> Float[Tensor, "row pos d_vocab"]:
    """Of the last positions; all of a long text's would fill the memory."""
    result = model(tokens.to(next(model.parameters()).device))
    logits = getattr(result, "logits", result)
    return logits[:, -CHECKED_TOKENS:].float().log_softmax(-1).cpu()
