"""Names and defaults of options.

What they name is in modules that import torch, which takes too long for a help page or the answer
to a typing error. `tests/cli/test_names.py` checks that both agree.
"""

import os
import runpy
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from steerlens.errors import SteerlensError
from steerlens.files import as_path

ESTIMATOR_NAMES = (
    "pca_pairwise",
    "pca_uncentred",
    "pca_center",
    "pca_difference",
    "repe_pca",
    "mean_difference",
    "linear_discriminant",
    "logistic_probe",
    "cluster_mean",
)
OBJECTIVE_NAMES = ("reply_likelihood", "bipo", "reps", "reft_r1")
METHOD_NAMES = ("mean_difference", "pca_pairwise", "linear_discriminant", *OBJECTIVE_NAMES)
SIMILARITY_NAMES = ("cast", "cosine", "projection")
SITE_NAMES = (
    "resid_pre",
    "ln1_out",
    "z",
    "attn_out",
    "resid_mid",
    "ln2_out",
    "mlp_out",
    "resid_post",
)
JUDGE_NAMES = ("refusal", "degeneration", "distinct", "repetition", "sentiment")
POSITION_NAMES = ("all", "prompt", "generated", "last", "reply")
TARGET_NAMES = ("hf", "gguf", "lm-eval", "vllm")
PICTURE_NAMES = ("svg", "pdf", "png")
TOKEN_NAMES = ("last", "all", "user", "suffix", "reply")
VECTOR_ENDINGS = (".safetensors", ".svec", ".gguf", ".pt", ".npz")
PLAN_ENDING = ".steer"
WRITTEN_ENDINGS = (".safetensors", ".svec", ".gguf")

TINY_CHAT = "tiny-chat"
PACKAGED = (TINY_CHAT, "smollm2")
"""Models that come as Python packages."""
TOLERANCE = 1e-4
"""The default of `export`."""
MOOD_STRENGTHS = "0.1,0.2,0.3"


def require_model(name: str) -> str:
    """Return a model's name unchanged, unless no model can have it.

    >>> require_model("tiny-chat")
    'tiny-chat'
    """
    path = as_path(os.path.expanduser(name))
    if name in PACKAGED:
        return name
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise SteerlensError(
                f"got the directory {name!r} without config.json; expected a Hugging Face model"
            )
        return name
    if os.path.exists(path):
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SteerlensError(
                    f"got the file {name!r}, which is no GGUF; expected one, or a model's directory"
                )
        return name
    owner, _, rest = name.partition("/")
    if owner and rest and (":" in rest or "/" not in rest) and not name.startswith((".", "~")):
        return name  # owner/name, or owner/name:file.gguf: only the hub knows
    if "/" in name or name.startswith((".", "~")) or not name.strip():
        raise SteerlensError(f"there is no directory or file {name!r}")
    known = {hub_name.lower(): hub_name for hub_name in hub_names()}
    if known and name.lower() not in known:
        close = get_close_matches(name.lower(), [*PACKAGED, *known], n=3)
        likely = (
            f"; did you mean {' or '.join(known.get(match, match) for match in close)}?"
            * bool(close)
        )
        raise SteerlensError(
            f"got the model {name!r}; expected {', '.join(PACKAGED)}, a local directory, "
            "owner/name of the hub, or a name that TransformerLens knows (steerlens models "
            f"--names){likely}"
        )
    return name


def hub_names() -> list[str]:
    """Names and aliases that TransformerLens knows; empty if its registry has moved.

    The registry is a file of plain lists: it is run by itself, since importing it would import the
    whole package.
    """
    spec = find_spec("transformer_lens")
    for folder in (spec and spec.submodule_search_locations) or ():
        registry = Path(folder) / "supported_models.py"
        if registry.is_file():
            lists = runpy.run_path(str(registry))
            aliases = lists.get("MODEL_ALIASES", {}).values()
            return [
                *lists.get("OFFICIAL_MODEL_NAMES", ()),
                *(alias for group in aliases for alias in group),
            ]
    return []
