"""AxBench's own files: texts that show a concept, and texts that do not."""

from dataclasses import dataclass
from typing import Any

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, as_path, parse_json, read_lines, read_parquet

TRAIN, EVAL, METADATA = "train_data.parquet", "latent_eval_data.parquet", "metadata.jsonl"
COLUMNS = ("output", "category", "concept_id")
SHARED = -1
"""The concept_id of training rows that are negatives of every concept of their genre."""
FEWEST = 4
"""Fewest training rows of each side: some are held out to choose layers."""


@dataclass(frozen=True)
class ConceptRows:
    """The texts of one concept."""

    name: str
    train_positive: tuple[str, ...]
    train_prompts: tuple[str, ...]
    """What each of these replies to; empty where the file does not say."""
    train_negative: tuple[str, ...]
    """The shared negatives of the concept's genres; concepts of one genre have the same."""
    eval_positive: tuple[str, ...]
    eval_negative: tuple[str, ...]
    """Hard negatives among them: texts with the concept's words in another sense."""


@dataclass(frozen=True)
class AxBench:
    """The concepts of a directory."""

    concepts: tuple[ConceptRows, ...]
    dropped: tuple[str, ...]
    """Concepts that cannot be measured, each with the reason."""


def read_axbench(directory: PathLike) -> AxBench:
    """Read a directory of AxBench (arXiv 2501.17148), in its own form.

    The rule by which rows are labelled is AxBench's. A concept's positives are the rows of its
    `concept_id` with the category "positive". Its negatives in training are the rows of id −1 of
    its genres (all of them where none is of its genre), and rows of its own id of another category;
    in evaluation, all rows of its own id of another category, "hard negative" included. The texts
    are the rows' `output`; those of training that occur in evaluation are left out.

    Args:
        directory: Holds `train_data.parquet`, `latent_eval_data.parquet` and, for the concepts'
            names, `metadata.jsonl`.

    Returns:
        The concepts in the order of their ids; those with too few rows are named in `dropped`.

    Raises:
        SteerlensError: A file or column is missing, or no concept can be measured.
    """
    folder = as_path(directory)
    train, evaluation = (_read_rows(folder / name) for name in (TRAIN, EVAL))
    train = train[~train["output"].isin(set(evaluation["output"]))]
    names = _names(folder)
    found, dropped = [], []
    for number in sorted(set(evaluation["concept_id"]) - {SHARED}):
        concept = _concept(number, names, train, evaluation)
        fewest = min(len(concept.train_positive), len(concept.train_negative))
        if fewest < FEWEST or not concept.eval_positive or not concept.eval_negative:
            dropped.append(
                f"{concept.name}: {len(concept.train_positive)} positive and "
                f"{len(concept.train_negative)} negative rows to train on, "
                f"{len(concept.eval_positive)} and {len(concept.eval_negative)} to evaluate on; "
                f"expected at least {FEWEST} and 1 of each"
            )
        else:
            found.append(concept)
    if not found:
        raise SteerlensError(
            f"got no concept that can be measured in {str(folder)!r}; expected rows of the same "
            f"concept_id in {TRAIN} and {EVAL}. " + "; ".join(dropped[:3])
        )
    return AxBench(tuple(found), tuple(dropped))


def _read_rows(path: Any) -> Any:
    table = read_parquet(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise SteerlensError(
            f"{str(path)!r} lacks the columns {', '.join(missing)}; expected AxBench's: "
            f"{', '.join(COLUMNS)}; it has {', '.join(map(str, table.columns))[:200]}"
        )
    empty = table["output"].isna() | (table["output"].astype("string").str.strip() == "")
    table = table[~empty]
    if table.empty:
        raise SteerlensError(f"{str(path)!r} has no row with a text in 'output'")
    try:
        numbers = table["concept_id"].astype(int)
    except (TypeError, ValueError) as error:
        raise SteerlensError(
            f"in {str(path)!r}: got {short_repr(table['concept_id'].tolist()[:3])} as concept_id; "
            "expected whole numbers"
        ) from error
    return table.assign(concept_id=numbers, output=table["output"].astype(str))


def _names(folder: Any) -> dict[int, str]:
    """Concepts by id; none where there is no metadata."""
    path = folder / METADATA
    if not path.exists():
        return {}
    names = {}
    for line in read_lines(path):
        entry = parse_json(line, path)
        if not isinstance(entry, dict) or not {"concept_id", "concept"} <= entry.keys():
            raise SteerlensError(
                f"in {str(path)!r}: got {short_repr(entry)}; expected concept_id and concept"
            )
        names[int(entry["concept_id"])] = str(entry["concept"])
    return names


def _concept(number: int, names: dict[int, str], train: Any, evaluation: Any) -> ConceptRows:
    own, mine = (table[table["concept_id"] == number] for table in (train, evaluation))
    shared = train[train["concept_id"] == SHARED]
    if "concept_genre" in train:
        of_genre = shared[shared["concept_genre"].isin(set(own["concept_genre"]))]
        shared = of_genre if len(of_genre) else shared
    positive, right = own["category"] == "positive", mine["category"] == "positive"

    def texts(*columns: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for column in columns for text in column))

    name = names.get(number)
    if name is None and "output_concept" in own and len(own[positive]):
        name = str(own[positive]["output_concept"].iloc[0])
    shown = texts(own[positive]["output"])
    prompts: dict[str, str] = {}
    if "input" in own:
        asked = own[positive]["input"].fillna("").astype(str)
        prompts = dict(zip(own[positive]["output"], asked, strict=True))
    return ConceptRows(
        name or f"concept {number}",
        shown,
        tuple(prompts.get(text, "") for text in shown),
        texts(own[~positive]["output"], shared["output"]),
        texts(mine[right]["output"]),
        texts(mine[~right]["output"]),
    )
