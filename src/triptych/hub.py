"""A folder or a hub name, and the name of a file → the file on this machine.

A local folder, a model that ships with the package and a file that is already in the hub's cache never touch the
network (force_download=True asks for the newest version). HF_HUB_OFFLINE=1, or local_files_only=True, forbids it
altogether.
"""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

from triptych.errors import CheckpointError, MissingFileError

StrPath = str | os.PathLike[str]


class HubOptions(TypedDict):
    """The keyword arguments of every `from_pretrained` that say where files come from."""

    cache_dir: StrPath | None
    force_download: bool
    local_files_only: bool
    proxies: dict[str, str] | None
    revision: str | None
    subfolder: str
    token: str | bool | None


# Accepted as documented, without effect: downloads always resume, and no code ever comes from a checkpoint.
_IGNORED = (
    "resume_download",
    "trust_remote_code",
    "code_revision",
    "mirror",
    "user_agent",
    "_from_auto",
    "_commit_hash",
)


# Each file that cannot be asked for costs the hub's client half a minute of retries. After the first such failure the
# cache alone is looked at for a while.
REST_AFTER_FAILURE = 60.0  # seconds
_rest = {"until": 0.0}  # in time.monotonic()'s seconds


def pop_options(kwargs: MutableMapping[str, Any]) -> HubOptions:
    """Take the hub's keyword arguments out of `kwargs`; those that have no effect here are dropped.

    Raises: ValueError if both `token` and its old name `use_auth_token` are given.
    """
    for name in _IGNORED:
        kwargs.pop(name, None)
    token, old_token = kwargs.pop("token", None), kwargs.pop("use_auth_token", None)
    if token is not None and old_token is not None:
        raise ValueError("`use_auth_token` is the old name of `token`, and both were given. Pass `token` alone.")
    return HubOptions(
        cache_dir=kwargs.pop("cache_dir", None),
        force_download=bool(kwargs.pop("force_download", False)),
        local_files_only=bool(kwargs.pop("local_files_only", False)),
        proxies=kwargs.pop("proxies", None),
        revision=kwargs.pop("revision", None),
        subfolder=kwargs.pop("subfolder", None) or "",
        token=token if token is not None else old_token,
    )


def local_folder(name_or_folder: StrPath, subfolder: str = "") -> Path | None:
    """The folder that a name stands for on this machine: itself, or the one inside the package; else None."""
    folder: Path | None = Path(name_or_folder)
    if not Path(name_or_folder).is_dir():
        from triptych import pretrained  # here, because only this line needs it

        folder = pretrained.folder(os.fspath(name_or_folder))
    return folder / subfolder if folder is not None else None


@overload
def resolve_file(
    name_or_folder: StrPath,
    filename: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    proxies: dict[str, str] | None = None,
    required: Literal[True] = True,
) -> Path: ...
@overload
def resolve_file(
    name_or_folder: StrPath,
    filename: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    proxies: dict[str, str] | None = None,
    required: bool,
) -> Path | None: ...
def resolve_file(
    name_or_folder: StrPath,
    filename: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    proxies: dict[str, str] | None = None,
    required: bool = True,
) -> Path | None:
    """Find `filename` in a folder, in a model that ships with the package, or on the hub.

    A path to a file stands for itself where a file of that kind (the same ending) is required. `proxies` has no
    effect: the hub's client takes them from the environment (HTTPS_PROXY).

    Returns: the file's path; None if it is not there and not `required`.
    Raises: MissingFileError if it is not there; CheckpointError if the hub refuses or cannot be reached.
    """
    path = Path(name_or_folder)
    if path.is_file():
        if path.suffix == Path(filename).suffix and required:
            return path
        return _missing(f"{path} is a file, so {filename} cannot be in it. Give the folder.", required)
    folder = local_folder(path, subfolder)
    if folder is not None:
        if (folder / filename).is_file():
            return folder / filename
        return _missing(f"{filename} is not in {folder}, which holds {listing(folder)}.", required)
    return _resolve_on_hub(
        os.fspath(name_or_folder),
        f"{subfolder}/{filename}" if subfolder else filename,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        required=required,
    )


def listing(folder: Path) -> str:
    """The names in a folder, as an error message quotes them: at most 20."""
    if not folder.is_dir():
        return "nothing, as there is no such folder"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) + more) or "nothing"


def _missing(message: str, required: bool) -> Path | None:
    if required:
        raise MissingFileError(message)
    return None


def _resolve_on_hub(
    repo: str,
    filename: str,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: StrPath | None,
    local_files_only: bool,
    force_download: bool,
    required: bool,
) -> Path | None:
    import huggingface_hub  # a quarter of a second, spent only by those who name a hub model
    from huggingface_hub import errors

    cache_dir = Path(cache_dir) if cache_dir is not None else None
    local_files_only = local_files_only or time.monotonic() < _rest["until"]
    at = f" at revision {revision!r}" if revision else ""
    try:
        found: Any = None
        if not force_download:
            found = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision)
        if found is None:
            found = huggingface_hub.hf_hub_download(
                repo,
                filename,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
    except errors.HFValidationError as error:
        raise MissingFileError(
            f"A model is named by a folder or as OWNER/NAME on the hub; {repo!r} is neither. Check the path."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if not local_files_only:
            _rest["until"] = time.monotonic() + REST_AFTER_FAILURE
        if not required:
            return None
        raise MissingFileError(
            f"{filename} of {repo}{at} is not in the cache, and the hub is switched off (local_files_only=True or "
            f"HF_HUB_OFFLINE=1) or out of reach. If {repo!r} is meant to be a folder, it does not exist here."
        ) from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated. Ask for access on its hub page, then pass token=… or run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"{repo!r} is neither a folder here nor a model on the hub. Check the name; a private one needs token=…."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(f"{repo} has no revision {revision!r}. Check its branches and tags.") from error
    except errors.EntryNotFoundError as error:
        if not required:
            return None
        raise MissingFileError(f"{repo}{at} has no {filename}. Check the name of the file.") from error
    except OSError as error:
        raise CheckpointError(f"{filename} of {repo}{at} cannot be fetched: {error}. Try again later.") from error
    if found is huggingface_hub._CACHED_NO_EXIST:
        return _missing(f"{repo}{at} has no {filename}. Check the name of the file.", required)
    return Path(found)
