"""The host: loading, hook names, weight layout. Nothing else knows which host it is."""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as loading
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from steerlens.errors import SteerlensError
from steerlens.files import embedded
from steerlens.layout import fast_layout

Model: TypeAlias = HookedTransformer
Cache: TypeAlias = TransformerLensKeyValueCache
CacheEntry: TypeAlias = TransformerLensKeyValueCacheEntry

TINY_CHAT = "tiny-chat"

SITES = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "ln1_out": "blocks.{layer}.ln1.hook_normalized",
    "z": "blocks.{layer}.attn.hook_z",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "ln2_out": "blocks.{layer}.ln2.hook_normalized",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
"""Where in a block activations are read and written, in the order of the forward pass."""

FRAMED_SITES = ("ln1_out", "ln2_out", "z")
"""Sites that the host shows in another form than ours: see `site_frame`."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference to Hugging Face's log-probabilities that float32 rounding explains."""


def load_model(
    name: str = TINY_CHAT,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Load a HookedTransformer without weight processing and with weights laid out for speed.

    `name` is "tiny-chat" (ships with the package), a local Hugging Face directory, or a name that
    TransformerLens knows, fetched from the hub. Raises if the loaded model computes anything else
    than the Hugging Face one.

    >>> load_model().cfg.n_layers
    6
    """
    directory = embedded(TINY_CHAT) if name == TINY_CHAT else Path(name)
    with _quiet():
        if directory.is_dir():
            model = _load_directory(directory, device, dtype)
        else:
            model = _load_from_hub(name, device, dtype)
    model.cfg.model_name = name if name == TINY_CHAT else Path(name).name
    return fast_layout(model.eval())


def _load_from_hub(name: str, device: str | torch.device | None, dtype: torch.dtype) -> Model:
    try:
        official = loading.get_official_model_name(name)
    except ValueError as error:
        raise SteerlensError(
            f"{name!r} is neither {TINY_CHAT!r}, nor a local directory, nor a name that "
            "TransformerLens knows; see transformer_lens.loading.OFFICIAL_MODEL_NAMES"
        ) from error
    try:
        return HookedTransformer.from_pretrained_no_processing(official, device=device, dtype=dtype)
    except OSError as error:
        raise SteerlensError(
            f"the model {name!r} could not be fetched from the hub ({error}); "
            f"check the connection, or use a local directory or {TINY_CHAT!r}"
        ) from error


def _load_directory(
    directory: Path, device: str | torch.device | None, dtype: torch.dtype
) -> Model:
    """HookedTransformer's own loader refuses directories; the pieces it is made of do not."""
    try:
        original = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever a broken directory makes the libraries raise
        raise SteerlensError(
            f"{str(directory)!r} does not hold a Hugging Face model that can be loaded: {error}"
        ) from error
    config = original.config.to_dict() | {"architectures": [type(original).__name__]}
    config.setdefault("n_ctx", config.get("n_positions") or config.get("max_position_embeddings"))
    # The loader looks for "llama" or "gemma" in the path: it must see a neutral one.
    with tempfile.TemporaryDirectory(prefix="model-") as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(config, default=str))
        cfg = loading.get_pretrained_model_config(
            neutral, hf_cfg=config, fold_ln=False, device=device, dtype=dtype
        )
        weights = loading.get_pretrained_state_dict(neutral, cfg, original, dtype=dtype)
    model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        {key: weight.clone() for key, weight in weights.items()},
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    model.move_model_modules_to_device()
    _require_same_logits(model, original.to(model.cfg.device), directory)
    return model


@torch.inference_mode()
def _require_same_logits(model: Model, original: Any, directory: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    width = min(16, model.cfg.n_ctx)
    tokens = torch.randint(model.cfg.d_vocab, (2, width), generator=generator)
    tokens = tokens.to(model.cfg.device)
    ours, theirs = model(tokens).float(), original(tokens).logits.float()
    error = (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max().item()
    allowed = LOGIT_TOLERANCE if model.cfg.dtype == torch.float32 else 0.5
    if not error <= allowed:
        raise SteerlensError(
            f"{str(directory)!r} was loaded, but HookedTransformer's log-probabilities differ from "
            f"Hugging Face's by {error:.3g} (allowed {allowed}): its architecture is not converted "
            "faithfully, so results would be about another model"
        )


@contextmanager
def _quiet() -> Iterator[None]:
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


def hook_name(model: Model, site: str, layer: int) -> str:
    """The host's name for a site of a layer; refuses what this model does not have."""
    require_site(site)
    resolve_layers(model, [layer])
    name = SITES[site].format(layer=layer)
    if name not in model.hook_dict:
        raise SteerlensError(
            f"{model.cfg.model_name} has no {site} (it would be {name!r}); choose another site"
        )
    return name


class Frame(NamedTuple):
    """How a site's activation in the host's form becomes ours, and back."""

    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def site_frame(model: Model, site: str, layer: int) -> Frame:
    """What lies between the host's hook point and the site's meaning.

    The host hooks a norm's output before its weight and bias are applied, and keeps the heads of
    `z` apart, where ours is `[row, pos, head × d_head]`.
    """
    if site == "z":
        heads = model.cfg.n_heads
        return Frame(
            partial(rearrange, pattern="row pos head d_head -> row pos (head d_head)"),
            partial(rearrange, pattern="row pos (head d_head) -> row pos head d_head", head=heads),
        )
    norm = getattr(model.blocks[layer], site.removesuffix("_out"), None)
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", 0)
    if weight is None:  # folded away, or not a norm's site
        return Frame(_unchanged, _unchanged)
    if (weight == 0).any():
        raise SteerlensError(
            f"{site} of layer {layer} has weights of zero: what is written there cannot be undone "
            "to the point that the host shows; steer resid_pre or resid_mid instead"
        )
    return Frame(lambda shown: shown * weight + bias, lambda ours: (ours - bias) / weight)


def _unchanged(activation: Tensor) -> Tensor:
    return activation


def attach_hooks(
    model: Model, hooks: Iterable[tuple[str, Callable[..., Any]]]
) -> Callable[[], None]:
    """Add hooks for good; what is returned takes these off again, and no others.

    The host's own `with model.hooks()` takes off whatever was added last.
    """
    added: list[tuple[Any, Any]] = []

    def remove() -> None:
        while added:
            point, handle = added.pop()
            handle.hook.remove()
            point.fwd_hooks = [kept for kept in point.fwd_hooks if kept is not handle]

    try:
        for name, function in hooks:
            model.add_hook(name, function)
            added.append((model.hook_dict[name], model.hook_dict[name].fwd_hooks[-1]))
    except BaseException:
        remove()
        raise
    return remove


def exclusive(model: Model) -> AbstractContextManager[object]:
    """Held while a model runs with hooks on it, which every thread would run through.

    A second thread waits; the one that holds it may take it again.
    """
    return _LOCKS.setdefault(model, RLock())


_LOCKS: WeakKeyDictionary[Model, AbstractContextManager[object]] = WeakKeyDictionary()


def site_width(model: Model, site: str) -> int:
    """How many numbers a token has at a site."""
    return model.cfg.n_heads * model.cfg.d_head if site == "z" else model.cfg.d_model


def require_site(site: str) -> None:
    """Refuse what is no site of a block."""
    if site not in SITES:
        raise SteerlensError(f"site {site!r} is unknown; the sites are {', '.join(SITES)}")


def forward_order(site: str, layer: int) -> tuple[int, int]:
    """Sorts sites of layers as the forward pass meets them."""
    return layer, list(SITES).index(site)


def resolve_layers(model: Model, layers: Iterable[int] | None) -> tuple[int, ...]:
    """Increasing layer numbers; None means all, and −1 the last."""
    n_layers = model.cfg.n_layers
    wanted = range(n_layers) if layers is None else list(layers)
    unknown = [layer for layer in wanted if not -n_layers <= layer < n_layers]
    if unknown:
        raise SteerlensError(
            f"layer(s) {unknown} came; {model.cfg.model_name} has layers 0 to {n_layers - 1}"
        )
    if not wanted:
        raise SteerlensError("no layer was given; name at least one")
    return tuple(sorted({layer % n_layers for layer in wanted}))


def fingerprint(model: torch.nn.Module) -> str:
    """A short hash of the weights, from samples of each: equal models have equal ones."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)][:256].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def new_cache(model: Model, batch: int) -> Cache:
    """An empty key-value cache for `batch` rows."""
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


def unmasked(
    model: Model, tokens: Int[Tensor, "row pos"], cache: Cache | None = None
) -> dict[str, Any]:
    """Arguments of a forward pass without attention mask, which the host insists on elsewhere.

    For rows without padding on the left, that continue the cache's text if there is one.
    """
    offset = 0 if cache is None else cache[0].past_keys.shape[1]
    resid, shortformer = model.get_residual(model.embed(tokens), offset)
    return {
        "input": resid,
        "start_at_layer": 0,
        "shortformer_pos_embed": shortformer,
        "past_kv_cache": cache,
    }


def next_logits(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row pos"],
    cache: Cache | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Logits after the last token of each row; only that position is un-embedded."""
    resid = model(
        tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers
    )
    last = resid[:, -1:]
    if model.cfg.normalization_type is not None:
        last = model.ln_final(last)
    logits = model.unembed(last)[:, 0]
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap and cap > 0 else logits
