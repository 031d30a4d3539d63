"""Hugging Face models → hosts, checked to compute what the original computes."""

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
"""Architectures that HookedTransformer converts faithfully from a local directory alone."""

CHECKED_TOKENS = 24
WIDEST_CHECKED_WINDOW = 1024
"""Widest sliding window that is checked, on texts longer than it. Wider ones would take minutes, so
such models run on a bridge, which uses Hugging Face's own attention."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference to Hugging Face's log-probabilities that float32 rounding explains."""
HALF_TOLERANCE = 0.5
"""The same for half precision."""

_SWITCHING_ROTATIONS = ("longrope", "dynamic")
"""Rotary positions that change for all tokens in long texts, which the check does not reach."""


def hosted(original: Original, host: str, wish: Wish, *, checked: bool = False) -> Model:
    """The model on a host.

    Args:
        original: The Hugging Face model.
        host: "hooked", "bridge", or "auto" for the fastest that computes the model faithfully.
        wish: Device, dtype and the like.
        checked: Skip the comparison with Hugging Face's logits, if these weights passed it before.
    """
    reason = why_not_hooked(original, wish)
    if host == "hooked" and reason:
        raise not_hooked(original.source, reason)
    if (host == "bridge" or reason) and original.architecture not in SUPPORTED_ARCHITECTURES:
        raise SteerlensError(
            f"{original.source!r} is a {original.architecture}, which this TransformerLens does "
            "not support; list the architectures that it does: steerlens models"
        )
    expected = None if checked else _Expected(original, wish)
    if host != "bridge" and not reason:
        try:
            model = _converted(original, wish)
            if expected:
                expected.require(model)
            return model
        except Exception as error:  # converters raise anything on odd configs
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
    """Why a HookedTransformer cannot host a model, or (without an original) any model."""
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
    """The error for `host="hooked"` where a HookedTransformer cannot host the model."""
    return SteerlensError(
        f'{source!r} cannot be a HookedTransformer: {reason}, or leave out host="hooked"'
    )


def use_own_bos(model: Any, tokenizer: Any) -> None:
    """Make texts begin as the model's own tokenizer begins them, on every host.

    HookedTransformer would reload the tokenizer so that it adds a BOS, or prepend one itself:
    another text than the model was trained on.
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
    """All end tokens of the model's generation config and its tokenizer."""
    config = getattr(original.model, "generation_config", None)
    declared = getattr(config, "eos_token_id", None)
    ids = declared if isinstance(declared, list | tuple) else [declared]
    wrong = [token for token in ids if not isinstance(token, int | None)]
    if wrong:
        raise SteerlensError(
            f"the generation_config.json of {original.source!r} declares the end token "
            f"{wrong[0]!r}; expected token ids"
        )
    return tuple(
        dict.fromkeys(
            token for token in (*ids, original.tokenizer.eos_token_id) if token is not None
        )
    )


def _as_steerlens_error(original: Original, error: Exception) -> SteerlensError:
    if isinstance(error, SteerlensError):
        return error
    return SteerlensError(
        f"{original.source!r} is a {original.architecture} whose config TransformerLens cannot "
        f"host: {type(error).__name__}: {error}"
    )


class _Expected:
    """The original's log-probabilities on texts longer than its attention window."""

    def __init__(self, original: Original, wish: Wish) -> None:
        self._original = original
        precise = wish.dtype == torch.float32 and not wish.bits
        self._allowed = LOGIT_TOLERANCE if precise else HALF_TOLERANCE
        window = _window(original.model.config) or 0
        self._tokens = _random_tokens(original.model, CHECKED_TOKENS + min(window, 1024))
        self._values = _log_probabilities(original.model, self._tokens)
        # Prompts are padded on the right when they are read: no token may attend to later ones.
        shorter = _log_probabilities(original.model, self._tokens[:, :-4])
        n_common = CHECKED_TOKENS - 4
        if (shorter[:, -n_common:] - self._values[:, :n_common]).abs().max() > self._allowed:
            raise SteerlensError(
                f"{original.source!r} attends to later tokens (it is a {original.architecture}); "
                "expected a causal language model"
            )

    def require(self, model: Model) -> None:
        """Refuse a host that computes other log-probabilities."""
        error = (_log_probabilities(model, self._tokens) - self._values).abs().max().item()
        if not error <= self._allowed:
            raise SteerlensError(
                f"{self._original.source!r} was loaded, but {type(model).__name__}'s "
                f"log-probabilities differ from Hugging Face's by {error:.3g} (allowed "
                f"{self._allowed}): its architecture is not converted faithfully, so results would "
                "be about another model"
            )


def _window(config: Any) -> int | None:
    """The width of sliding-window attention; None if it covers the whole context."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    width = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    context = getattr(config, "max_position_embeddings", None)
    return None if not width or (context and width >= context) else int(width)


def _converted(original: Original, wish: Wish) -> Any:
    """Convert by the parts of HookedTransformer's loader, which itself refuses directories."""
    config = original.model.config.to_dict() | {"architectures": [original.architecture]}
    context = config.get("n_positions") or config.get("max_position_embeddings")
    config.setdefault("n_ctx", context)
    # The loader looks for "llama" or "gemma" in the path, so it gets a neutral one.
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
        if context:  # the converter lowers it, to save memory
            cfg.n_ctx = context
        weights = converters.get_pretrained_state_dict(
            neutral, cfg, original.model, dtype=wish.dtype
        )
    cfg.tokenizer_name = None
    model = HookedTransformer(cfg, move_to_device=False)
    # At once: the host's own loading walks all modules for each weight.
    model.load_state_dict(model.fill_missing_keys(weights), strict=False)
    use_own_bos(model, original.tokenizer)
    model.move_model_modules_to_device()
    return model.eval()


def _bridged(original: Original, wish: Wish) -> Any:
    """The Hugging Face model itself, with HookedTransformer's hook names."""
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
            "padding would change: its batches cannot be read or steered; choose another model"
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
def _log_probabilities(model: Any, tokens: Tensor) -> Float[Tensor, "batch pos d_vocab"]:
    """Log-probabilities at the last positions only, to save memory."""
    result = model(tokens.to(next(model.parameters()).device))
    logits = getattr(result, "logits", result)
    return logits[:, -CHECKED_TOKENS:].float().log_softmax(-1).cpu()
