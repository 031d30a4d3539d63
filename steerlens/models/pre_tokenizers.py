"""Pre-tokenizers of byte-level vocabularies, by the name that GGUF files give.

A GGUF file holds a vocabulary and its merges, but only the name of the pre-tokenizer, which cuts
the text first. Another one would give other tokens without any error, so unknown names are refused.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import Regex
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split

from steerlens.errors import SteerlensError, short_repr

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_NEITHER = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _cased(ending: str = "") -> str:
    """Words, with a new piece wherever lower case is followed by capitals."""
    return rf"{_NEITHER}[{_UPPER}]*[{_LOWER}]+{ending}|{_NEITHER}[{_UPPER}]+[{_LOWER}]*{ending}"


_LLAMA3 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_TEKKEN = rf"{_cased()}|\p{{N}}|{_SLASHED}|{_SPACES}"
_GPT4O = rf"{_cased(_ENDINGS + '?')}|\p{{N}}{{1,3}}|{_SLASHED}|{_SPACES}"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False)


def _single_digits() -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _falcon() -> PreTokenizer:
    return Sequence([
        Punctuation(behavior="contiguous"),
        ByteLevel(add_prefix_space=False),
        Digits(individual_digits=False),
        Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
    ])  # fmt: skip


def _split_at(pattern: str) -> Callable[[], PreTokenizer]:
    return lambda: Sequence([
        Split(Regex(pattern), behavior="isolated"),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip


class Cuts(NamedTuple):
    """A pre-tokenizer, and what else happens to a text apart from the merges."""

    make: Callable[[], PreTokenizer]
    composed: bool = False
    """Normalise characters to Unicode's composed form (NFC) first."""
    whole_words: bool = False
    """A piece that is in the vocabulary becomes one token, regardless of the merges."""
    adds_bos: bool = False
    """Every text begins with a BOS, unless the file says otherwise."""


_LLAMA3_CUTS = Cuts(_split_at(_LLAMA3), whole_words=True, adds_bos=True)

PRE_TOKENIZERS: dict[str, Cuts] = {
    **dict.fromkeys(("gpt-2", "phi-2", "roberta-bpe"), Cuts(_gpt2)),
    **dict.fromkeys(("olmo", "mpt"), Cuts(_gpt2, composed=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact"), Cuts(_single_digits)),
    "command-r": Cuts(_single_digits, composed=True),
    "falcon": Cuts(_falcon),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _LLAMA3_CUTS),
    **dict.fromkeys(("smaug-bpe", "dbrx"), Cuts(_split_at(_LLAMA3))),
    **dict.fromkeys(("qwen2", "stablelm2"), Cuts(_split_at(_QWEN2), composed=True)),
    "deepseek-r1-qwen": Cuts(_split_at(_QWEN2)),
    "tekken": Cuts(_split_at(_TEKKEN), whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cuts(_split_at(_GPT4O))),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Cuts(_split_at(_BLOOM))),
}
"""Name in `tokenizer.ggml.pre` → pre-tokenizer."""


def cuts_of(metadata: dict[str, Any], source: str) -> Cuts | None:
    """The pre-tokenizer that a GGUF file names; None if its kind of vocabulary needs none."""
    if metadata.get("tokenizer.ggml.model") != "gpt2":  # others cut by the vocabulary itself
        return None
    name = metadata.get("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        raise SteerlensError(
            f"got the pre-tokenizer {short_repr(name)} in {source!r}; expected one of "
            f"{', '.join(sorted(PRE_TOKENIZERS))}, as any other would give other tokens: load the "
            "model's Hugging Face directory instead"
        )
    return PRE_TOKENIZERS[name]


def apply_cuts(backend: Any, cuts: Cuts) -> None:
    """Set the pre-tokenizer of a tokenizer of the `tokenizers` library."""
    backend.pre_tokenizer = cuts.make()
    if cuts.composed:
        backend.normalizer = NFC()
    if cuts.whole_words:
        backend.model.ignore_merges = True
