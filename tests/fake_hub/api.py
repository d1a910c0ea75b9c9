"""What the fake hub answers: one function for each call of the hub's API, free of sockets."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fake_hub.repos import File, Refused, Repos, front_matter, is_large

__all__ = ["BAD_TOKEN", "READER", "ROUTES", "STRANGER", "TOKEN", "Api", "Asked", "Reply"]

TOKEN = "hf_fakeTokenThatMayWrite"
READER = "hf_fakeTokenThatMayOnlyRead"
STRANGER = "hf_fakeTokenOfSomeoneElse"
ACCOUNTS = {TOKEN: ("tester", "write"), READER: ("tester", "read"), STRANGER: ("other", "write")}
BAD_TOKEN = Refused(401, "", "Invalid credentials in Authorization header")
NO_TOKEN = Refused(401, "", "Invalid username or password.")


class Asked(NamedTuple):
    """A request: `query` as `urllib.parse.parse_qs` gives it, header names in lower case."""

    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Reply(NamedTuple):
    """What goes back: bytes, or what becomes JSON."""

    body: Any = b""
    headers: Mapping[str, str] = {}
    status: int = 200


class Api(NamedTuple):
    """The hub's calls, over its repositories.

    Args:
        repos: The repositories.
        url: Where the hub is reached.
        part_size: Uploads of more bytes go in parts of this size (LFS multipart).
    """

    repos: Repos
    url: str
    part_size: int

    def whoami(self, asked: Asked) -> Reply:
        """Tell whose token came."""
        name, role = _account(asked) or _refuse(NO_TOKEN)
        token = {"displayName": "of the tests", "role": role}
        return Reply({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": token}})

    def info(self, asked: Asked, repo: str, revision: str = "main") -> Reply:
        """Describe a model: commit, files (with sizes if asked for), card, who may see it."""
        folder, settings = self._visible(asked, repo, revision), self.repos.settings(repo)
        files = self.repos.files(folder)
        siblings = [{"rfilename": name} for name in files]
        if "blobs" in asked.query:
            siblings = [_sibling(name, file) for name, file in files.items()]
        names = {"_id": repo, "id": repo, "modelId": repo, "author": repo.partition("/")[0]}
        access = {"private": bool(settings.get("private")), "gated": settings.get("gated", False)}
        content = {"siblings": siblings, "cardData": front_matter(folder / "README.md")}
        return Reply({**names, "sha": self.repos.sha(folder), **access, **content})

    def tree(self, asked: Asked, repo: str, revision: str, under: str = "") -> Reply:
        """List the files of a revision, all folders deep."""
        files = self.repos.files(self._visible(asked, repo, revision))
        return Reply([_entry(name, file) for name, file in files.items() if name.startswith(under)])

    def paths_info(self, asked: Asked, repo: str, revision: str) -> Reply:
        """List those of the paths asked for that exist."""
        files = self.repos.files(self._visible(asked, repo, revision))
        return Reply([_entry(name, files[name]) for name in asked.json["paths"] if name in files])

    def resolve(self, asked: Asked, repo: str, revision: str, name: str) -> Reply:
        """Send a file, or the bytes of it that were asked for."""
        folder = self._visible(asked, repo, revision)
        self._check_may_read(asked, repo)
        commit = {"X-Repo-Commit": self.repos.sha(folder)}
        file = self.repos.files(folder).get(name)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found", commit)
        headers = {**commit, "ETag": f'"{file.sha256 or file.blob_id}"', "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
        return _in_range(file.path.read_bytes(), asked.headers.get("range", ""), headers)

    def create(self, asked: Asked) -> Reply:
        """Make an empty repository."""
        fields = asked.json
        repo = f"{fields.get('organization') or _user(asked)}/{fields['name']}"
        _check_may_write(asked, repo)
        answer = {"url": f"{self.url}/{repo}", "name": repo}
        if (self.repos.root / repo).is_dir():
            return Reply({**answer, "error": "You already created this model repo"}, {}, 409)
        private = fields.get("visibility") == "private" or bool(fields.get("private"))
        self.repos.add(repo, {}, private=private)
        return Reply(answer)

    def validate(self, asked: Asked) -> Reply:
        """Check the YAML at the head of a README."""
        try:
            fields = front_matter(asked.json["content"])
        except yaml.YAMLError as error:
            return Reply({"errors": [{"message": str(error)}], "warnings": []}, {}, 400)
        empty = [{"message": "empty or missing yaml metadata in repo card"}]
        return Reply({"errors": [], "warnings": [] if fields else empty})

    def preupload(self, asked: Asked, repo: str, revision: str) -> Reply:
        """Say of each file whether it goes as a large one, and which id it has there already."""
        _check_may_write(asked, repo)
        there = self.repos.files(self._visible(asked, repo, revision))
        files = []
        for file in asked.json["files"]:
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            old = there.get(file["path"])
            known = {"oid": old.sha256 or old.blob_id} if old else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return Reply({"files": files})

    def batch(self, asked: Asked, repo: str) -> Reply:
        """Say where each large file is to be sent."""
        _check_may_write(asked, repo)
        return Reply({"objects": [self._upload(file) for file in asked.json["objects"]]})

    def _upload(self, file: dict[str, Any]) -> dict[str, Any]:
        """Say where a large file goes; nowhere if it came before, whole."""
        oid, size, part = file["oid"], file["size"], self.part_size
        if self.repos.large_file(oid).is_file():
            return {"oid": oid, "size": size}
        there = f"{self.url}/lfs/{oid}"
        upload: dict[str, Any] = {"href": there}
        if size > part:
            parts = {f"{n + 1:05}": f"{there}/{n + 1}" for n in range(-(-size // part))}
            upload = {"href": f"{there}/complete", "header": {"chunk_size": str(part), **parts}}
        actions = {"upload": upload, "verify": {"href": f"{there}/verify"}}
        return {"oid": oid, "size": size, "actions": actions}

    def put(self, asked: Asked, oid: str, part: str | None = None) -> Reply:
        """Take a large file, or a part of one."""
        self.repos.large_file(f"{oid}.{part or 'whole'}").write_bytes(asked.body)
        return Reply(headers={"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"'})

    def complete(self, asked: Asked, oid: str) -> Reply:
        """Join the parts of a large file."""
        place = self.repos.large_file
        numbers = [part["partNumber"] for part in asked.json["parts"]]
        whole = b"".join(place(f"{oid}.{number}").read_bytes() for number in numbers)
        place(f"{oid}.whole").write_bytes(whole)
        return Reply({})

    def verify(self, asked: Asked, oid: str) -> Reply:
        """Keep a large file if it is the one that was announced."""
        came = self.repos.large_file(f"{oid}.whole")
        if not came.is_file() or hashlib.sha256(came.read_bytes()).hexdigest() != oid:
            raise Refused(422, "", "the uploaded file is not the one that was announced")
        came.replace(self.repos.large_file(oid))
        return Reply({})

    def commit(self, asked: Asked, repo: str, revision: str) -> Reply:
        """Change the tip of main."""
        _check_may_write(asked, repo)
        done = self.repos.commit(repo, [json.loads(line) for line in asked.body.splitlines()])
        url = f"{self.url}/{repo}/commit/{done.sha}"
        return Reply({"success": True, "commitOid": done.sha, "commitUrl": url, "hookOutput": ""})

    def _visible(self, asked: Asked, repo: str, revision: str) -> Path:
        """Return the revision's folder; what is private is as good as missing."""
        user = _user(asked)
        hidden = self.repos.settings(repo).get("private") and user != repo.partition("/")[0]
        if hidden or not (self.repos.root / repo).is_dir():
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        return self.repos.find(repo, revision)

    def _check_may_read(self, asked: Asked, repo: str) -> None:
        settings, user = self.repos.settings(repo), _user(asked)
        may = {repo.partition("/")[0], *settings.get("granted", ())}
        if settings.get("gated") and user not in may:
            what = f"Access to model {repo} is restricted"
            raise Refused(403 if user else 401, "GatedRepo", what)


def _account(asked: Asked) -> tuple[str, str] | None:
    """Return user and role of the token that came, None where none came."""
    token = asked.headers.get("authorization", "").removeprefix("Bearer ")
    if token and token not in ACCOUNTS:
        raise BAD_TOKEN
    return ACCOUNTS[token] if token else None


def _user(asked: Asked) -> str | None:
    account = _account(asked)
    return account[0] if account else None


def _check_may_write(asked: Asked, repo: str) -> None:
    account = _account(asked) or _refuse(NO_TOKEN)
    if account != (repo.partition("/")[0], "write"):
        raise Refused(403, "", f"You don't have the rights to write to {repo}")


def _refuse(refused: Refused) -> Any:
    raise refused


def _large(file: File, name: str) -> dict[str, Any]:
    return {name: file.sha256, "size": file.size, "pointerSize": 134}


def _sibling(name: str, file: File) -> dict[str, Any]:
    large = {"lfs": _large(file, "sha256")} if file.sha256 else {}
    return {"rfilename": name, "size": file.size, "blobId": file.blob_id, **large}


def _entry(name: str, file: File) -> dict[str, Any]:
    large = {"lfs": _large(file, "oid")} if file.sha256 else {}
    return {"type": "file", "path": name, "size": file.size, "oid": file.blob_id, **large}


def _in_range(data: bytes, wanted: str, headers: dict[str, str]) -> Reply:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if not found:
        return Reply(data, headers)
    first, last = int(found[1]), int(found[2] or len(data) - 1)
    if first >= len(data):
        raise Refused(416, "", "range", {"Content-Range": f"bytes */{len(data)}"})
    said = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Reply(data[first : last + 1], headers | said, 206)


_REPO, _REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
_MODEL, _OBJECT = rf"/api/models/{_REPO}", r"/lfs/(?P<oid>[0-9a-f]{64})"
# Methods, path, and what answers.
ROUTES: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("GET", "/api/whoami-v2", Api.whoami),
    ("GET", _MODEL, Api.info),
    ("GET", f"{_MODEL}/revision/{_REVISION}", Api.info),
    ("GET", rf"{_MODEL}/tree/{_REVISION}(?:/(?P<under>.+))?", Api.tree),
    ("POST", f"{_MODEL}/paths-info/{_REVISION}", Api.paths_info),
    ("GET HEAD", rf"/{_REPO}/resolve/{_REVISION}/(?P<name>.+)", Api.resolve),
    ("POST", "/api/repos/create", Api.create),
    ("POST", "/api/validate-yaml", Api.validate),
    ("POST", f"{_MODEL}/preupload/{_REVISION}", Api.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Api.batch),
    ("PUT", rf"{_OBJECT}(?:/(?P<part>\d+))?", Api.put),
    ("POST", f"{_OBJECT}/complete", Api.complete),
    ("POST", f"{_OBJECT}/verify", Api.verify),
    ("POST", f"{_MODEL}/commit/{_REVISION}", Api.commit),
)
