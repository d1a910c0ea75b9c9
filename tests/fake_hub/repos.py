"""The repositories of the fake hub: plain folders, their digests, and the commits made to them."""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Commit", "File", "Refused", "Repos", "front_matter", "is_large"]

LARGE_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".model", ".onnx", "tokenizer.json")
LARGE_BYTES = 10 * 2**20


class Refused(Exception):
    """An answer that the hub gives with an error status.

    Args:
        status: Of HTTP.
        code: What ``X-Error-Code`` says; may be empty.
        message: What ``X-Error-Message`` says.
        headers: More of them, such as ``Retry-After``.
    """

    def __init__(
        self, status: int, code: str = "", message: str = "", headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers)


class File(NamedTuple):
    """One file of a repository; `sha256` is None unless the hub keeps it as a large file (LFS)."""

    path: Path
    size: int
    blob_id: str
    sha256: str | None


class Commit(NamedTuple):
    """What one push did; `paths` are the files that it wrote or deleted."""

    repo: str
    sha: str
    summary: str
    description: str
    paths: list[str]


class Repos:
    """Models in ``root/USER/NAME/``, other revisions of them in ``root/USER/NAME@REVISION/``.

    The folder as it lies there is the tip of ``main``, whoever changed it; its commit id follows
    from its content. A commit leaves what was there before as ``NAME@SHA``. What else the hub must
    know is in ``root/.hub/``: settings, commits.jsonl, and the large files that were uploaded.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".hub"
        self.lock = threading.RLock()
        (self.state / "lfs").mkdir(parents=True, exist_ok=True)

    def add(self, repo: str, files: Path | Mapping[str, bytes | str], **settings: Any) -> Path:
        """Make a repository from a folder or from names and contents, and return its folder."""
        name, _, revision = repo.partition("@")
        folder = self._revision(self.root / name, revision) if revision else self.root / name
        if isinstance(files, Path):
            shutil.copytree(files, folder, dirs_exist_ok=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                data = content.encode() if isinstance(content, str) else content
                (folder / name).write_bytes(data)
        if not revision:
            self._settings_file(repo).parent.mkdir(parents=True, exist_ok=True)
            self._settings_file(repo).write_text(json.dumps(settings))
        return folder

    def settings(self, repo: str) -> dict[str, Any]:
        """Return what `add` was told: ``private``, ``gated``, ``granted`` (users let in)."""
        path = self._settings_file(repo)
        return json.loads(path.read_text()) if path.is_file() else {}

    def _settings_file(self, repo: str) -> Path:
        return self.state / "settings" / f"{repo}.json"

    def find(self, repo: str, revision: str = "main") -> Path:
        """Return the folder of a revision: a name, or the commit id of any folder's content."""
        folder = self.root / repo
        if not folder.is_dir():
            raise Refused(404, "RepoNotFound", "Repository not found")
        named = folder if revision == "main" else self._revision(folder, revision)
        if named.is_dir():
            return named
        others = [folder, *folder.parent.glob(f"{folder.name}@*")]
        for other in others if re.fullmatch(r"[0-9a-f]{40}", revision) else ():
            if self.sha(other) == revision:
                return other
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _revision(self, folder: Path, name: str) -> Path:
        return folder.with_name(f"{folder.name}@{name.replace('/', '%2F')}")

    def files(self, folder: Path) -> dict[str, File]:
        """Return the files of a revision's folder by their paths in the repository."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): _file(path) for path in paths}

    def sha(self, folder: Path) -> str:
        """Return the commit id of a folder: 40 hexadecimal digits that follow from its content."""
        listing = [f"{file.blob_id} {name}" for name, file in self.files(folder).items()]
        return hashlib.sha1("\n".join(listing).encode()).hexdigest()

    def large_file(self, oid: str) -> Path:
        """Return where the upload with this sha256 is, or is to be."""
        return self.state / "lfs" / oid

    def commit(self, repo: str, lines: Iterable[dict[str, Any]]) -> Commit:
        """Apply the lines of a commit, as the hub's NDJSON has them, all or none."""
        with self.lock:
            folder = self.find(repo)
            header, *changes = lines
            parent = header["value"].get("parentCommit")
            if parent not in (None, self.sha(folder)):
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            contents = {change["value"]["path"]: self._content(change) for change in changes}
            if any(folder.iterdir()):
                kept = self._revision(folder, self.sha(folder))
                shutil.copytree(folder, kept, dirs_exist_ok=True)
            for name, content in contents.items():
                _write(folder / name, content)
            value = header["value"]
            words = value["summary"], value.get("description", "")
            done = Commit(repo, self.sha(folder), *words, list(contents))
            with (self.state / "commits.jsonl").open("a") as log:
                log.write(json.dumps(done._asdict()) + "\n")
            return done

    def commits(self) -> list[Commit]:
        """Return all commits made through the hub, the oldest first."""
        path = self.state / "commits.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [Commit(**json.loads(line)) for line in lines]

    def _content(self, change: dict[str, Any]) -> bytes | Path | None:
        kind, value = change["key"], change["value"]
        if kind == "file":
            return base64.b64decode(value["content"])
        if kind == "lfsFile":
            path = self.large_file(value["oid"])
            if not path.is_file():
                raise Refused(400, "", f"LFS pointer pointed to a file that does not exist: {path}")
            return path
        return None


def _write(path: Path, content: bytes | Path | None) -> None:
    """Put `content` at `path`; a path is a file to copy, None deletes the file or folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)


def front_matter(readme: Path | str) -> dict[str, Any]:
    """Return the YAML at the head of a README, given as a path or as text; nothing without it."""
    if isinstance(readme, Path):
        readme = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    head = re.match(r"---\n(.*?)\n---\n", readme, re.S)
    return yaml.safe_load(head[1]) or {} if head else {}


def is_large(name: str, size: int) -> bool:
    """Whether the hub keeps such a file as a large one."""
    return size > LARGE_BYTES or (size > 0 and name.endswith(LARGE_FILES))


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _file(path: Path) -> File:
    state = path.stat()
    return _digested(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digested(path: Path, size: int, _: int) -> File:
    data = path.read_bytes()
    if not is_large(path.name, size):
        return File(path, size, _git_id(data), None)
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return File(path, size, _git_id(pointer.encode()), sha256)
