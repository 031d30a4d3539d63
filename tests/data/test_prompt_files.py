"""Prompts and pairs in every form that files come in."""

import codecs
import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.data.prompt_files import load_prompts, read_pairs, read_prompts
from steerlens.data.row_files import ENDINGS, read_row_file

PROMPTS = [
    "How do I bake bread?",
    'Say "hi", please; then stop.',
    "Was heißt\u2028„schön“?",
    "[ok] {x}",
]
SIDES = {"positive": PROMPTS, "negative": ["No."] * 4}


def write(path, rows):
    """The same rows of columns, in the form that the name ends in."""
    table = pd.DataFrame(rows)
    match path.suffix:
        case ".txt":
            path.write_text("\n".join(table.iloc[:, 0]) + "\n", encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(table.to_dict("records"), ensure_ascii=False), "utf-8")
        case ".jsonl":
            table.to_json(path, orient="records", lines=True, force_ascii=False)
        case ".csv":
            table.to_csv(path, index=False)
        case ".tsv":
            table.to_csv(path, index=False, sep="\t")
        case ".parquet":
            table.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_form_gives_the_same_prompts(tmp_path, ending):
    path = write(tmp_path / f"p{ending}", {"prompt": PROMPTS})
    assert read_prompts(path) == PROMPTS
    assert load_prompts(path) == {"all": PROMPTS}


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != ".txt"])
def test_every_table_gives_the_same_pairs(tmp_path, ending):
    path = write(tmp_path / f"pairs{ending}", {**SIDES, "label": range(4)})
    data = read_pairs(path)
    assert list(data.pairs) == list(zip(*SIDES.values(), strict=True))
    assert (data.name, dict(data.parts)) == ("pairs", {})
    named = write(tmp_path / f"named{ending}", {"harmless": SIDES["negative"], "harmful": PROMPTS})
    assert read_pairs(named, ("harmful", "harmless")).pairs == data.pairs


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
        .filter(str.strip), min_size=1, max_size=5,
    ),
    ending=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet"]),
)  # fmt: skip
def test_tables_hold_any_text(tmp_path_factory, texts, ending):
    path = write(
        tmp_path_factory.mktemp("any") / f"p{ending}", {"prompt": texts, "n": range(len(texts))}
    )
    assert read_prompts(path) == texts


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
    ],
    ids=["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "crlf", "cr"],
)
@pytest.mark.parametrize("ending", [".txt", ".json", ".jsonl", ".csv", ".tsv"])
def test_marks_and_line_ends_do_not_matter(tmp_path, ending, encode):
    path = write(tmp_path / f"p{ending}", {"prompt": PROMPTS})
    path.write_bytes(encode(path.read_bytes().decode()))
    assert read_prompts(path) == PROMPTS


def test_other_encodings_are_refused_by_name(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("Wo ist das Café?".encode("latin-1"))
    with pytest.raises(sl.SteerlensError, match=r"not UTF-8 text .byte 14.*Windows-1252.*iconv"):
        read_prompts(path)
    path.write_bytes("Hi.".encode("utf-16-le"))
    with pytest.raises(sl.SteerlensError, match=r"zero bytes.*UTF-16"):
        read_prompts(path)


def test_what_a_file_holds_counts_more_than_its_ending(tmp_path):
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    for name, content in {
        "lines.json": "\n".join(map(json.dumps, rows)),
        "list.jsonl": json.dumps(rows),
        "whole.jsonl": json.dumps(rows, indent=1),
        "list.txt": json.dumps(PROMPTS),
        "lines.txt": "\n".join(map(json.dumps, rows)),
        "list.prompts": json.dumps(rows),
    }.items():
        (tmp_path / name).write_text(content)
        assert read_prompts(tmp_path / name) == PROMPTS, name
    write(tmp_path / "table.parquet", {"prompt": PROMPTS}).rename(tmp_path / "table")
    assert read_prompts(tmp_path / "table") == PROMPTS
    (tmp_path / "bracket.txt").write_text("[INST] Hi.\n{not json}\n")
    assert read_prompts(tmp_path / "bracket.txt") == ["[INST] Hi.", "{not json}"]


def test_semicolons_part_columns_too(tmp_path):
    (tmp_path / "p.csv").write_text("prompt;label\nHi, you.;1\n")
    assert read_prompts(tmp_path / "p.csv") == ["Hi, you."]


def test_chats_are_prompts(tmp_path):
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."}]
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat})
    )
    assert read_prompts(tmp_path / "p.jsonl") == [chat, chat]


def test_other_projects_shapes_are_read_by_column(tmp_path):
    path = tmp_path / "p.json"
    alpaca = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La."},
    ]
    path.write_text(json.dumps(alpaca))
    with pytest.raises(
        sl.SteerlensError, match=r"--prompt-column instruction --prompt-column input \("
    ):
        read_prompts(path)
    assert read_prompts(path, columns=("instruction", "input")) == ["Add.\n\n1, 2", "Sing."]
    caa = [
        {
            "question": "Tea?",
            "answer_matching_behavior": "(A)",
            "answer_not_matching_behavior": "(B)",
        }
    ]
    path.write_text(json.dumps(caa))
    with pytest.raises(sl.SteerlensError, match="--prompt-column question"):
        read_prompts(path)
    axbench = write(
        tmp_path / "a.parquet", {"input": PROMPTS, "output": PROMPTS, "output_concept": PROMPTS}
    )
    with pytest.raises(sl.SteerlensError, match="--prompt-column input"):
        read_prompts(axbench)
    cast = {
        "train": [{"harmful": "Steal.", "harmless": "Bake."}],
        "test": [{"harmful": "Rob.", "harmless": "Sew."}],
    }
    path.write_text(json.dumps(cast))
    assert read_prompts(path, "test", ("harmful",)) == ["Rob."]
    data = read_pairs(path, ("harmful", "harmless"))
    assert list(data.part("test").pairs) == [("Rob.", "Sew.")]
    path.write_text(json.dumps({"train": [{"question": "Why?"}], "test": [{"question": "How?"}]}))
    assert read_prompts(path) == ["Why?", "How?"]
    path.write_text(json.dumps([["Love.", "Hate."]]))
    assert list(read_pairs(path).pairs) == [("Love.", "Hate.")]


def test_own_files_keep_their_parts(tmp_path):
    for name, part in load_prompts(sl.demo_file("questions.json")).items():
        assert read_prompts(sl.demo_file("questions.json"), name) == part
    topics = load_prompts(sl.demo_file("topics.json"))["test"]
    assert read_prompts(sl.demo_file("topics.json"), "test", ("legal",)) == topics["legal"]
    data = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    assert read_pairs(sl.demo_file("refusal.json")) == data
    assert read_prompts(sl.demo_file("refusal.json"), "train", ("negative",)) == [
        negative for _, negative in data.train.pairs
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "prompt,label\nHi.\n", r"line 2 .*has 1 values.*'prompt', 'label'"),
        ("p.csv", 'prompt\n"Hi.\n', r"line \d+ .*p.csv"),
        ("p.csv", "prompt,prompt\na,b\n", "two columns of one name"),
        ("p.csv", "prompt\n", "holds no prompts"),
        ("p.csv", "Why is it?,yes\nHow is it?,no\n", "has the columns Why is it., yes"),
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.jsonl", '{"prompt": "Hi."}\n{"prompt": \n', r"\(line 2\)' is not valid JSON"),
        ("p.jsonl", '{"prompt": "Hi."}\n3\n', "line 2 of"),
        ("p.jsonl", '{"prompt": "Hi."}\n{"text": "Ho."}\n', "row 1 of .* has the prompt None"),
        ("p.json", '["Hi.", ""]', "row 1 of .* empty prompt"),
        ("p.json", "[1]", "holds 1 in 'all'"),
        ("p.json", '{"prompt": "Hi."}', "is a table with the keys .'prompt'"),
        ("p.json", '{"format": "steerlens.search/1", "rows": []}', "format. is 'steerlens.s"),
        ("p.json", '{"format": "other", "partz": {}}', r"no .parts.*'format', 'partz'"),
        ("p.parquet", "PAR1", "not a readable Parquet file"),
        ("p.yaml", "- Hi.\n", r"ending '.yaml'.*expected .*\.jsonl"),
        ("p.xlsx", "PK\x03\x04", "a ZIP archive"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_answered_with_how(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(sl.SteerlensError, match=told):
        read_prompts(tmp_path / name)


def test_missing_parts_and_columns_are_named(tmp_path):
    path = write(tmp_path / "p.csv", SIDES)
    with pytest.raises(sl.SteerlensError, match=r"no part 'dev'; it has \['train', 'validation'"):
        read_prompts(sl.demo_file("questions.json"), "dev")
    with pytest.raises(sl.SteerlensError, match="no part 'dev'; it is one list"):
        read_prompts(path, "dev")
    with pytest.raises(sl.SteerlensError, match="no column 'harm'; its columns are positive, neg"):
        read_prompts(path, columns=("harm",))
    with pytest.raises(sl.SteerlensError, match="--pair-columns POSITIVE,NEGATIVE"):
        read_pairs(path, ("harm", "help"))
    with pytest.raises(sl.SteerlensError, match="holds single texts"):
        read_pairs(sl.demo_file("questions.json"))
    with pytest.raises(sl.SteerlensError, match="expected two, one for each side"):
        read_pairs(path, ("positive",))
    with pytest.raises(sl.SteerlensError, match="names its sides itself"):
        read_pairs(sl.demo_file("harmful.json"), ("a", "b"))
    with pytest.raises(sl.SteerlensError, match="there is no file"):
        read_row_file(tmp_path / "gone.txt")
