"""A name and a file name → a file on this machine, without the network wherever it is not needed."""

import socket
from pathlib import Path

import pytest

from triptych import hub, pretrained
from triptych.errors import CheckpointError, MissingFileError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path) -> Path:
    """A hub cache that holds config.json of owner/model and knows that it has no absent.json."""
    model = tmp_path / "cache" / "models--owner--model"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}/sub", f".no_exist/{COMMIT}"):
        (model / part).mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs" / "aa").write_text('{"from": "cache"}')
    (model / "snapshots" / COMMIT / "config.json").symlink_to("../../blobs/aa")
    (model / "snapshots" / COMMIT / "sub" / "config.json").symlink_to("../../../blobs/aa")
    (model / ".no_exist" / COMMIT / "absent.json").touch()
    return tmp_path / "cache"


def test_a_local_folder_never_touches_the_network(tmp_path, no_network):
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub" / "config.json").write_text("{}")
    assert hub.resolve_file(tmp_path, "config.json") == tmp_path / "config.json"
    assert hub.resolve_file(str(tmp_path), "config.json", subfolder="sub") == tmp_path / "sub" / "config.json"
    assert hub.resolve_file(tmp_path, "nothing.json", required=False) is None
    with pytest.raises(MissingFileError, match=r"nothing\.json is not in .*config\.json, sub/"):
        hub.resolve_file(tmp_path, "nothing.json")


@pytest.fixture(autouse=True)
def rested(monkeypatch):
    """No test knows of another's failure to reach the hub."""
    monkeypatch.setitem(hub._rest, "until", 0.0)


def test_after_a_failure_to_reach_the_hub_the_next_files_are_looked_for_in_the_cache_alone(cache, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo, filename, *, local_files_only, **options):
        asked.append((filename, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError("out of reach")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for file in ("a.json", "b.json"):
        assert hub.resolve_file("owner/model", file, cache_dir=cache, required=False) is None
    monkeypatch.setitem(hub._rest, "until", 0.0)  # as it is a minute later
    assert hub.resolve_file("owner/model", "c.json", cache_dir=cache, required=False) is None
    assert asked == [("a.json", False), ("b.json", True), ("c.json", False)]


def test_a_cached_file_never_touches_the_network(cache, no_network):
    for options in ({}, {"revision": "main"}, {"revision": COMMIT}, {"subfolder": "sub"}):
        path = hub.resolve_file("owner/model", "config.json", cache_dir=cache, **options)
        assert path.read_text() == '{"from": "cache"}'
    assert hub.resolve_file("owner/model", "absent.json", cache_dir=cache, required=False) is None
    with pytest.raises(MissingFileError, match=r"owner/model has no absent\.json"):
        hub.resolve_file("owner/model", "absent.json", cache_dir=cache)


def test_what_is_not_cached_is_missing_when_the_hub_is_switched_off(cache, no_network):
    for name, file in (("owner/model", "unknown.json"), ("owner/other", "config.json")):
        with pytest.raises(MissingFileError, match=f"{file} of {name} is not in the cache"):
            hub.resolve_file(name, file, cache_dir=cache, local_files_only=True)
        assert hub.resolve_file(name, file, cache_dir=cache, local_files_only=True, required=False) is None


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(tmp_path, no_network):
    with pytest.raises(MissingFileError, match="folder or as OWNER/NAME"):
        hub.resolve_file(tmp_path / "nowhere", "config.json")


def test_a_file_stands_for_itself_where_one_of_its_kind_is_needed(tmp_path, no_network):
    file = tmp_path / "my.json"
    file.write_text("{}")
    assert hub.resolve_file(file, "config.json") == file
    assert hub.resolve_file(file, "generation_config.json", required=False) is None
    with pytest.raises(MissingFileError, match=r"my\.json is a file"):
        hub.resolve_file(file, "model.safetensors")


def test_a_model_in_the_package_comes_before_the_hub_and_after_a_folder(tmp_path, monkeypatch, no_network):
    inside = tmp_path / "package" / "tales"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text("inside")
    monkeypatch.setattr(pretrained, "folder", lambda name: inside if name == "triptych/tales" else None)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve_file("triptych/tales", "config.json").read_text() == "inside"
    own = tmp_path / "triptych" / "tales"
    own.mkdir(parents=True)
    (own / "config.json").write_text("own")
    assert hub.resolve_file("triptych/tales", "config.json").read_text() == "own"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("RepositoryNotFoundError", MissingFileError, "neither a folder here nor a model on the hub"),
        ("GatedRepoError", CheckpointError, "is gated"),
        ("RevisionNotFoundError", MissingFileError, "has no revision 'v2'"),
        ("EntryNotFoundError", MissingFileError, r"has no x\.json"),
        ("LocalEntryNotFoundError", MissingFileError, "not in the cache"),
        ("OfflineModeIsEnabled", CheckpointError, "cannot be fetched"),
    ],
)
def test_each_answer_of_the_hub_gives_its_own_error(cache, monkeypatch, error, kind, message):
    import huggingface_hub

    def answer(*args, **kwargs):
        error_class = getattr(huggingface_hub.errors, error)
        raise error_class.__new__(error_class)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
    with pytest.raises(kind, match=message):
        hub.resolve_file("owner/model", "x.json", cache_dir=cache, revision="v2")


def test_the_hub_options_are_taken_out_of_the_keyword_arguments():
    kwargs = {"revision": "v1", "token": "t", "subfolder": None, "trust_remote_code": True, "num_labels": 3}
    options = hub.pop_options(kwargs)
    assert kwargs == {"num_labels": 3}
    assert options == {
        "cache_dir": None,
        "force_download": False,
        "local_files_only": False,
        "proxies": None,
        "revision": "v1",
        "subfolder": "",
        "token": "t",
    }
    assert hub.pop_options({"use_auth_token": "old"})["token"] == "old"
    with pytest.raises(ValueError, match="Pass `token` alone"):
        hub.pop_options({"use_auth_token": "old", "token": "new"})
