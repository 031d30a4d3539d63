"""A directory of AxBench's form with two planted concepts."""

import json

import pandas as pd

ABOUT = ("boats and the sea", "bread and the oven")
OPENINGS = ("I like", "She wrote about", "They talk of", "Never mind", "We saw", "He sings of")


def texts_of(subject, n, start):
    return [
        f"{OPENINGS[number % len(OPENINGS)]} {subject} number {number}."
        for number in range(start, start + n)
    ]


def rows_of(subject, concept, category, n, start=0, genre="text"):
    return [
        {"output": text, "concept_id": concept, "category": category, "concept_genre": genre}
        for text in texts_of(subject, n, start)
    ]


def written(folder, train=None, evaluation=None, names=True):
    """A directory of AxBench with two concepts and shared negatives of two genres."""
    if train is None:
        train = [
            *rows_of("code", -1, "negative", 8, genre="code"),
            *rows_of("the weather", -1, "negative", 12),
            *rows_of(ABOUT[0], 0, "positive", 12),
            *rows_of(ABOUT[1], 1, "positive", 12),
        ]
    if evaluation is None:
        evaluation = [
            *rows_of(ABOUT[0], 0, "positive", 6, 20),
            *rows_of("the weather", 0, "negative", 6, 20),
            *rows_of("the sale", 0, "hard negative", 2, 20),
            *rows_of(ABOUT[1], 1, "positive", 6, 20),
            *rows_of("the weather", 1, "negative", 6, 20),
        ]
    pd.DataFrame(train).to_parquet(folder / "train_data.parquet")
    pd.DataFrame(evaluation).to_parquet(folder / "latent_eval_data.parquet")
    if names:
        lines = [{"concept_id": number, "concept": name} for number, name in enumerate(ABOUT)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder
