"""A model from the hub into a folder: only what is needed, checked, and taken up where it stopped."""

import glob
import json
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torchtune.checkpoint.hub_errors import OUT_OF_REACH, gated, hub_errors
from torchtune.checkpoint.hub_files import HubFile, chosen_files, damage
from torchtune.errors import ConfigError, MissingError

__all__ = ["download", "download_folder", "hub_source"]

SOURCE = "hub_source.json"
_LIBRARY = Path(".cache", "huggingface")  # what huggingface_hub notes of a folder, to go on later


def download(
    repo: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    token: str | None = None,
) -> Path:
    """Bring a model or an adapter from the Hugging Face Hub, whole or not at all said to be there.

    Of the repository's top folder it takes the safetensors, config, tokenizer, chat templates, card
    and licence; never pickles, nor the same weights in other formats. Every file is compared with
    the size and hash that the hub knows. Called again it goes on: what came whole is kept, a file
    in whose middle the process died begins anew, and what is all there costs one request, or none
    where the hub is out of reach. Tells on stderr what it does.

    Args:
        repo: ``USER/NAME``; HF_ENDPOINT is asked for it.
        folder: Made where absent; one that holds something else is refused.
        revision: A branch, tag or commit; None is the newest of main.
        include: Patterns of names, as of a shell; these files come, in place of the choice above.
        exclude: Patterns of names that do not come, whatever chose them.
        token: Used where neither HF_TOKEN nor ``hf auth login`` gives one. Nothing keeps it.

    Returns:
        The folder, with hub_source.json in it; see `hub_source`.

    Raises:
        ConfigError: E-HUB-NAME, E-HUB-REVISION, E-HUB-FOLDER, E-HUB-FILES.
        MissingError: E-HUB-MISSING, E-HUB-GATED, E-HUB-TOKEN, E-HUB-WEIGHTS, E-DISK-SPACE; E-HUB-BUSY,
            E-HUB-DOWN, E-HUB-NETWORK; E-HUB-DAMAGED for a file that came otherwise than it was sent.
    """
    from huggingface_hub import get_token

    folder, token = Path(folder), None if get_token() else token
    request = [revision or "main", list(include), list(exclude)]
    _check_folder(folder, repo)
    try:
        with hub_errors(repo, revision, token):
            sha, files, is_gated = _look_up(repo, revision, token)
            chosen = chosen_files(repo, files, include, exclude)
            missing = _missing(folder, sha, chosen)
            if missing:
                if is_gated and not (token or get_token()):
                    raise gated(repo)
                _check_space(repo, folder, missing)
                _note(folder, repo, sha, of_commit=files)
                _fetch(repo, folder, sha, missing, token)
            else:
                _say(f"all of {repo} that was asked for is in {folder} already")
            _note(folder, repo, sha, of_commit=files, whole=chosen, request=request)
    except MissingError as error:
        if error.code not in OUT_OF_REACH or not _is_there(folder, request):
            raise
        _say(f"{error.what}\nall of {repo} that was asked for is in {folder} already")
    return folder


def download_folder(repo: str) -> Path:
    """Return where ``tune download`` puts a model: in ``./models``, under the last part of `repo`."""
    return Path("models", repo.rpartition("/")[2])


def hub_source(folder: str | Path) -> dict[str, Any] | None:
    """Return where a folder's files came from, if `download` brought them.

    Returns:
        ``repo``; ``revision``, the commit's sha; ``files``, the sizes of what is whole by name;
        ``requests``, what was asked for and is all there: revision, included, excluded. None for
        other folders.
    """
    try:
        source = dict(json.loads((Path(folder) / SOURCE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return source if source.keys() >= {"repo", "revision"} else None


def _look_up(repo: str, revision: str | None, token: str | None) -> tuple[str, list[HubFile], bool]:
    """Ask the hub for the commit that a revision is, its files, and whether it has terms."""
    from huggingface_hub import HfApi, constants

    api, seconds = HfApi(token=token), constants.HF_HUB_ETAG_TIMEOUT
    info = api.model_info(repo, revision=revision, files_metadata=True, timeout=seconds)
    files = [
        HubFile(
            file.rfilename,
            file.size or 0,
            file.blob_id or "",
            file.lfs.sha256 if file.lfs else None,
        )
        for file in info.siblings or ()
    ]
    return str(info.sha), files, bool(info.gated)


def _check_folder(folder: Path, repo: str) -> None:
    source = hub_source(folder)
    held = source["repo"] if source else "other files"
    if source is None:
        begun = (folder / _LIBRARY).is_dir()
        strange = folder.is_file() or (folder.is_dir() and not begun and any(folder.iterdir()))
    else:
        strange = held.casefold() != repo.casefold()
    if strange:
        do = "choose another folder: --output-dir DIR"
        raise ConfigError("E-HUB-FOLDER", f"{folder} holds {held}, not {repo}", do=do)


def _missing(folder: Path, sha: str, chosen: Sequence[HubFile]) -> list[HubFile]:
    """Return the files that are not known to be whole, as this commit has them."""
    source = hub_source(folder) or {}
    whole = source.get("files", {}) if source.get("revision") == sha else {}
    return [
        file
        for file in chosen
        if whole.get(file.name) != file.size or _size(folder / file.name) != file.size
    ]


def _is_there(folder: Path, request: list[Any]) -> bool:
    """Whether the hub need not be asked: this came before, and lies there still."""
    source = hub_source(folder) or {}
    files = source.get("files", {})
    there = all(_size(folder / name) == size for name, size in files.items())
    return there and request in source.get("requests", ())


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _check_space(repo: str, folder: Path, missing: Sequence[HubFile]) -> None:
    _drop_cut_files(folder)
    needed = _to_download(folder, missing)
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        what = f"{repo} needs {_amount(needed)}, and {_amount(free)} are free"
        do = "free space, or choose a folder on another disk: --output-dir DIR"
        raise MissingError("E-DISK-SPACE", what, where=str(folder), do=do)


def _to_download(folder: Path, files: Sequence[HubFile]) -> int:
    return sum(file.size for file in files if _size(folder / file.name) != file.size)


def _fetch(
    repo: str, folder: Path, sha: str, missing: Sequence[HubFile], token: str | None
) -> None:
    from huggingface_hub import snapshot_download

    from torchtune.checkpoint.hub_progress import progress_bar

    needed = _to_download(folder, missing)
    _say(f"{repo}: {len(missing)} files, {_amount(needed)} to download, into {folder}")
    with progress_bar(needed) as bar:
        snapshot_download(
            repo,
            revision=sha,
            local_dir=folder,
            allow_patterns=[glob.escape(file.name) for file in missing],
            token=token,
            tqdm_class=bar,
        )
    _drop_cut_files(folder)
    _check_content(folder, missing)


def _drop_cut_files(folder: Path) -> None:
    """Delete what killed downloads left: nothing takes it up, and live ones write all the time."""
    for path in (folder / _LIBRARY / "download").rglob("*.incomplete"):
        if time.time() - path.stat().st_mtime > 60:
            path.unlink(missing_ok=True)


def _check_content(folder: Path, files: Sequence[HubFile]) -> None:
    """Compare with the hub's hashes, which the library does not; a bad file does not stay."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        faults = list(threads.map(lambda file: damage(folder / file.name, file), files))
    bad = [(file.name, fault) for file, fault in zip(files, faults, strict=True) if fault]
    for name, _ in bad:
        (folder / name).unlink()
    if bad:
        what = f"{bad[0][0]} came damaged and was deleted: {bad[0][1]}"
        what += f"; so were {', '.join(name for name, _ in bad[1:])}" if bad[1:] else ""
        do = "run the same command again: it brings what is missing"
        raise MissingError("E-HUB-DAMAGED", what, where=str(folder), do=do)


def _note(
    folder: Path,
    repo: str,
    sha: str,
    *,
    of_commit: Sequence[HubFile],
    whole: Sequence[HubFile] = (),
    request: list[Any] | None = None,
) -> None:
    """Write hub_source.json, and delete files of an older commit that this one does not have.

    Args:
        folder: Where the files are, or will be.
        repo: What the user asked for.
        sha: The commit that it is.
        of_commit: All files of it.
        whole: Those that are in the folder, checked.
        request: What of it the user asked for, once that is there.
    """
    source = hub_source(folder) or {}
    for name in source.get("files", {}).keys() - {file.name for file in of_commit}:
        (folder / name).unlink(missing_ok=True)
    if source.get("revision") != sha:
        source = {}
    files = {**source.get("files", {}), **{file.name: file.size for file in whole}}
    requests = source.get("requests", [])
    if request and request not in requests:
        requests = [*requests, request]
    fields = {"repo": repo, "revision": sha, "files": files, "requests": requests}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _amount(size: int) -> str:
    units = (size / 1e9, "GB") if size >= 1e8 else (size / 1e6, "MB")
    return f"{units[0]:.1f} {units[1]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
