import os
import stat

import pytest

import steerlens as sl
from steerlens.files import read_json, read_lines, require_writable, write_atomically, write_json


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"kept": True})

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="full"):
        write_atomically(path, fail)
    assert read_json(path) == {"kept": True}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_value_that_json_lacks_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert read_json(path) == 1


def test_files_are_as_readable_as_any_other(tmp_path):
    write_json(tmp_path / "ours.json", 1)
    (tmp_path / "theirs.json").write_text("1")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_missing_directories_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", "ß")
    assert read_json(tmp_path / "a" / "b" / "c.json") == "ß"


def test_an_unwritable_directory_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sl.SteerlensError, match=r"cannot write to the directory .*file/out"):
        require_writable(tmp_path / "file" / "out")
    called = []
    with pytest.raises(sl.SteerlensError, match="choose another output directory"):
        write_atomically(tmp_path / "file" / "x.json", called.append)
    assert not called


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": [1, 2', r"not valid JSON.*line 1, column \d+; the file may be truncated"),
        (b'{\n"a": nonsense}', "line 2, column 6"),
        (b"\xe9\xff", "not UTF-8 text .byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "not valid JSON"),
    ],
)
def test_malformed_json_is_refused_with_name_and_place(tmp_path, content, told):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(sl.SteerlensError, match=f"bad.json.*{told}"):
        read_json(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(sl.SteerlensError, match=r"there is no file .*gone.json"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(sl.SteerlensError, match="cannot read"):
        read_json(tmp_path)


def test_lines_come_without_ends_and_blanks(tmp_path):
    (tmp_path / "lines.txt").write_text("one\n\n  \ntwo\r\nthree")
    assert read_lines(tmp_path / "lines.txt") == ["one", "two", "three"]


def test_embedded_data_are_found_by_name():
    assert (sl.demo_file("tiny-chat") / "config.json").is_file()
    with pytest.raises(sl.SteerlensError, match="ships no demo data 'nothing'"):
        sl.demo_file("nothing")


@pytest.mark.parametrize(
    "path", [None, 3, b"a.txt", "a\0.txt", "a\ud800.txt", "x" * 300 + ".json"], ids=repr
)
def test_what_no_file_can_be_called_is_refused(unchecked, path):
    for use in (read_json, lambda path: write_json(path, {}), require_writable):
        with pytest.raises(sl.SteerlensError, match="as a file name; expected"):
            use(path)
