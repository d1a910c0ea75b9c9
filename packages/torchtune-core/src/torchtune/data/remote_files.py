"""Files and folders on another machine (``s3://``, ``gs://``, ...), through fsspec."""

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from torchtune.errors import ConfigError, MissingError

__all__ = ["cache_folder", "is_remote", "local_copy", "remote_place"]


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Say whether `path` is a URL that fsspec is to read, such as ``s3://bucket/rows.jsonl``."""
    return "://" in os.fspath(path)


def cache_folder() -> Path:
    """Return where copies of remote files are kept: ``TUNE_CACHE``, by default ``~/.cache/torchtune``."""
    return Path(os.environ.get("TUNE_CACHE") or "~/.cache/torchtune").expanduser()


def remote_place(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a `url`, and the path in it.

    Credentials are what the file system's own package looks for, such as ``AWS_PROFILE``.

    Raises:
        MissingError: E-REMOTE-PACKAGE: that package is not installed.
        ConfigError: E-REMOTE: no file system has that name.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        kind = url.partition(":")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
        do = f"pip install {package.get(kind, kind)}"
        what = f"a package is not installed: {error}"
        raise MissingError("E-REMOTE-PACKAGE", what, where=url, do=do) from None
    except ValueError as error:
        do = "give a local path, or a URL such as s3://bucket/folder"
        raise ConfigError("E-REMOTE", f"not a place of fsspec: {error}", where=url, do=do) from None
    return fs, path


def local_copy(url: str) -> Path:
    """Return a local copy of a remote file or folder, or of all files that a pattern with ``*`` means.

    It is made once a machine and content: what fsspec tells of the files (size, time, tag) is part
    of its name. Several processes may ask at once.

    Args:
        url: What to copy. Of a pattern the folder of the files is returned.

    Raises:
        MissingError: E-DATA-MISSING: there is no such file; E-REMOTE-PACKAGE.
        ConfigError: E-REMOTE.
    """
    from filelock import FileLock

    fs, path = remote_place(url)
    files = _files(fs, path)
    if not files:
        what = f"there is no file or folder {url!r}"
        raise MissingError("E-DATA-MISSING", what, where=url, do="look at the name and your rights")
    told = repr([url, *((file, str(fs.checksum(file))) for file in files)])
    folder = cache_folder() / "files" / hashlib.sha256(told.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            _copy(fs, path, files, folder)
    return folder if "*" in path else folder / PurePosixPath(path).name


def _files(fs: Any, path: str) -> list[str]:
    if "*" in path:
        return sorted(file for file in fs.glob(path) if fs.isfile(file))
    return [path] if fs.isfile(path) else sorted(fs.find(path))


def _copy(fs: Any, path: str, files: list[str], folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    parent = PurePosixPath(path.partition("*")[0] if "*" in path else path).parent
    for file in files:
        inside = PurePosixPath(file)
        place = partial / (inside.name if "*" in path else inside.relative_to(parent))
        place.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(file, str(place))
    partial.rename(folder)
