"""Files are written whole or not at all, and errors name the file."""

import json
import os
from pathlib import Path

import pytest

from triptych.errors import InvalidFileError, MissingFileError, SaveError
from triptych.files import read_json, staged_folder, write_json


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"b": 1, "a": ["é", None, True, 0.5], "nested": {"x": {}}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    text = (tmp_path / "x.json").read_bytes()
    assert text.startswith(b'{\n  "b": 1,')
    assert text.endswith(b"}\n")
    assert "é".encode() in text


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "x.json") == {}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[1]", b"3", b"[" * 100_000])
def test_text_that_is_no_json_object_gives_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "broken.json").write_bytes(text)
    with pytest.raises(InvalidFileError, match=r"broken\.json"):
        read_json(tmp_path / "broken.json")


def test_a_missing_json_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.json"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(InvalidFileError, match="is a folder"):
        read_json(tmp_path)


def test_staged_files_arrive_together_in_a_folder_that_is_made(tmp_path):
    target = tmp_path / "new" / "deep"
    with staged_folder(target) as stage:
        (stage / "a").write_text("1")
        (stage / "sub").mkdir()
        (stage / "sub" / "b").write_text("2")
        assert contents(target) == {f"{stage.name}/a": "1", f"{stage.name}/sub/b": "2"}
    assert contents(target) == {"a": "1", "sub/b": "2"}
    assert sorted(path.name for path in target.iterdir()) == ["a", "sub"]


def test_files_of_an_earlier_version_go_once_the_new_ones_are_there(tmp_path):
    for name in ("old-1", "old-2", "other"):
        (tmp_path / name).write_text("before")
    with staged_folder(tmp_path, replaces=lambda name: name.startswith("old")) as stage:
        (stage / "old-1").write_text("after")
    assert contents(tmp_path) == {"old-1": "after", "other": "before"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interruption_while_writing_leaves_everything_as_it_was(tmp_path, error):
    (tmp_path / "a").write_text("before")

    def interrupted(target: Path) -> None:
        with staged_folder(target, replaces=lambda name: True) as stage:
            (stage / "a").write_text("after")
            raise error

    with pytest.raises(error):
        interrupted(tmp_path)
    with pytest.raises(error):
        interrupted(tmp_path / "x" / "y")
    assert contents(tmp_path) == {"a": "before"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, SaveError)])
def test_an_interruption_while_moving_leaves_everything_as_it_was(tmp_path, monkeypatch, links, failing, error, seen):
    before = {"a": "a before", "b": "b before", "stale": "s before"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links here")))
    calls = 0
    replace = Path.replace

    def failing_replace(self, target):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error("stop")
        return replace(self, target)

    def save() -> None:
        with staged_folder(tmp_path, replaces=lambda name: name == "stale") as stage:
            for name in ("a", "b", "new"):
                (stage / name).write_text("after")
            monkeypatch.setattr(Path, "replace", failing_replace)

    with pytest.raises(seen):
        save()
    assert contents(tmp_path) == before


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(SaveError, match=r"file is a file"), staged_folder(target):
            pass
    assert contents(tmp_path) == {"file": "mine"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(SaveError, match=f"Nothing can be written in {tmp_path}"), staged_folder(tmp_path):
        pass
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaveError, match="new cannot be made"), staged_folder(tmp_path / "new"):
        pass


def test_reading_json_takes_a_str_as_well_as_a_path(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    assert read_json(str(tmp_path / "x.json")) == {"a": 1}
