"""Names and defaults that options show.

What they stand for is in modules that import torch, which takes longer than a help page or the
answer to a typing error may take. `tests/cli/test_names.py` holds them to be the same.
"""

import runpy
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from steerlens.errors import SteerlensError

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
PICTURE_NAMES = ("svg", "pdf", "png")
TOKEN_NAMES = ("last", "all", "suffix", "reply")
VECTOR_ENDINGS = (".safetensors", ".svec", ".gguf", ".pt", ".npz")
WRITTEN_ENDINGS = (".safetensors", ".svec", ".gguf")

TINY_CHAT = "tiny-chat"
PACKAGED = (TINY_CHAT, "smollm2")
"""Models that come as packages, under names of their own."""
TOLERANCE = 1e-4
"""Of `export`."""
MOOD_STRENGTHS = "0.1,0.2,0.3"


def require_model(name: str) -> str:
    """A model's name as it is, unless no model can have it.

    >>> require_model("tiny-chat")
    'tiny-chat'
    """
    path = Path(name)
    if name in PACKAGED or (path.suffix == ".gguf" and path.is_file()):
        return name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SteerlensError(
                f"the directory {name!r} holds no config.json; expected a Hugging Face model"
            )
        return name
    if path.exists():
        raise SteerlensError(f"{name!r} is a file; expected the directory of a Hugging Face model")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise SteerlensError(f"there is no directory {name!r}")
    if "/" in name:  # owner/name: only the hub can say
        return name
    known = {one.lower(): one for one in hub_names()}
    if known and name.lower() not in known:
        close = get_close_matches(name.lower(), [*PACKAGED, *known], n=3)
        likely = f"; did you mean {' or '.join(known.get(one, one) for one in close)}?" * bool(
            close
        )
        raise SteerlensError(
            f"{name!r} is neither {TINY_CHAT}, nor a directory here, nor owner/name of the hub, "
            f"nor a name that TransformerLens knows (steerlens models --names){likely}"
        )
    return name


def hub_names() -> list[str]:
    """Names and aliases that TransformerLens knows, without importing it; none if it has moved.

    Its registry is a file of plain lists, but importing it takes its whole package along.
    """
    spec = find_spec("transformer_lens")
    for folder in (spec and spec.submodule_search_locations) or ():
        registry = Path(folder) / "supported_models.py"
        if registry.is_file():
            lists = runpy.run_path(str(registry))
            aliases = lists.get("MODEL_ALIASES", {}).values()
            return [
                *lists.get("OFFICIAL_MODEL_NAMES", ()),
                *(one for many in aliases for one in many),
            ]
    return []
