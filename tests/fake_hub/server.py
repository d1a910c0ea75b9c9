"""A fake of the Hugging Face Hub on this machine, for tests and shows without a network.

It speaks as much of the hub's HTTP API as huggingface_hub uses to download and upload models, and
fails when told to: see `FakeHub`. From a shell, ``python tests/fake_hub/server.py --root DIR``
serves the models in ``DIR/USER/NAME/`` until it is stopped; its first line is its URL. There,
``POST /_fake/fail`` takes the arguments of `FakeHub.fail` as JSON.
"""

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.append(str(Path(__file__).resolve().parents[1]))  # `fake_hub`, also when run as a file
from fake_hub.api import BAD_TOKEN, READER, ROUTES, STRANGER, TOKEN, Api, Asked, Reply
from fake_hub.repos import Refused, Repos

__all__ = ["READER", "STRANGER", "TOKEN", "FakeHub", "Seen"]

# What `FakeHub.fail` answers for each kind; the others happen to the connection or the bytes.
ANSWERS = {
    "401": BAD_TOKEN,
    "403": Refused(403, "", "You don't have the rights for this"),
    "gated": Refused(403, "GatedRepo", "Access to this model is restricted"),
    "404": Refused(404, "RepoNotFound", "Repository not found"),
    "429": Refused(429, "", "We had to rate limit you"),
    "500": Refused(500, "", "Internal Error - We're working hard to fix this"),
    "503": Refused(503, "", "Service Unavailable"),
}
KINDS = (*ANSWERS, "cut", "corrupt", "hang")


class Seen(NamedTuple):
    """One request as it came; `status` is what it got, 0 if the connection was cut before."""

    method: str
    path: str
    headers: dict[str, str]
    status: int

    @property
    def range(self) -> str:
        """What bytes it asked for (``bytes=100-``), or an empty word."""
        return self.headers.get("range", "")


@dataclass
class Failure:
    """What shall go wrong, at the next `times` requests that `pattern` finds."""

    kind: str
    pattern: str
    times: int
    after: int
    seconds: float


class FakeHub:
    """A hub of its own for one test, alive in the ``with`` block.

    Three tokens are valid: `TOKEN` (user ``tester``, may write), `READER` (the same user, may only
    read) and `STRANGER` (user ``other``). A private model is there for its owner alone; a gated
    one can be seen by all and downloaded by its owner and those in ``granted``.

    Args:
        root: Where the repositories are, as `Repos` lays them out.
        port: 0 takes a free one.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        part_size: Uploads of more bytes go in parts of this size (LFS multipart).
        repos: The repositories; ``repos.commits()`` tells what was pushed.
        requests: All requests so far, oldest first.
    """

    def __init__(self, root: Path, *, port: int = 0) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.repos = Repos(root)
        self.part_size = 20 * 2**20
        self.requests: list[Seen] = []
        self._failures: list[Failure] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: Path | Mapping[str, bytes | str], **settings: Any) -> Path:
        """Make a model and return its folder.

        Args:
            repo: ``USER/NAME``; ``USER/NAME@REVISION`` is another revision of it.
            files: A folder to copy, or contents by name.
            settings: ``private=True``, ``gated="manual"``, ``granted=["user"]``.
        """
        return self.repos.add(repo, files, **settings)

    def fail(
        self, kind: str, pattern: str = "", *, times: int = 1, after: int = 0, seconds: float = 0
    ) -> None:
        """Let something go wrong.

        Args:
            kind: A status (``"401" "403" "404" "429" "500" "503"``), ``"gated"``, ``"cut"`` (the
                connection breaks in the middle of a body), ``"corrupt"`` (one byte of the body is
                another), ``"hang"`` (the answer comes late).
            pattern: A regular expression to be found in ``METHOD /path``.
            times: For how many requests.
            after: Bytes of the body that come through before a cut.
            seconds: How late a ``"hang"`` is; what a ``"429"`` says in ``Retry-After``.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        self._failures.append(Failure(kind, pattern, times, after, seconds))

    def seen(self, pattern: str) -> list[Seen]:
        """Return the requests whose ``METHOD /path`` holds the regular expression."""
        named = [(f"{seen.method} {unquote(seen.path)}", seen) for seen in self.requests]
        return [seen for name, seen in named if re.search(pattern, name)]

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that send a program's huggingface_hub here, with `home` as its home.

        No one is logged in there; ``HF_TOKEN`` is empty, which counts as none.
        """
        here = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        return {**here, "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        self._failures.clear()

    def failure_of(self, request: str) -> Failure | None:
        """Return what shall go wrong with the request ``METHOD /path``, and count it as done."""
        with self._lock:
            for failure in self._failures:
                if failure.times > 0 and re.search(failure.pattern, request):
                    failure.times -= 1
                    return failure
        return None


class _Handler(BaseHTTPRequestHandler):
    """Moves requests and replies over the socket, and lets them fail on the way."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        """Answer a request; those with other methods are no different here."""
        url = urlsplit(self.path)
        path, own = url.path, url.path.startswith("/_fake/")
        failure = None if own else self.hub.failure_of(f"{self.command} {unquote(path)}")
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            asked = Asked(parse_qs(url.query), headers, self._receive(failure))
            reply = self._own(path, asked) if own else self._reply(path, asked, failure)
        except Refused as refused:
            reply = _refusal(refused)
        except ConnectionAbortedError:
            self.close_connection = True
            reply = Reply(status=0)
        if not own:
            self.hub.requests.append(Seen(self.command, self.path, headers, reply.status))
        if reply.status:
            self._send(reply, failure)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Keep quiet: `FakeHub.requests` is the log."""

    def _receive(self, failure: Failure | None) -> bytes:
        """Read the body, sent whole or in chunks; a cut ends it in the middle."""
        if failure and failure.kind == "cut" and self.command != "GET":
            self.rfile.read(failure.after)
            raise ConnectionAbortedError
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _corrupt(body) if failure and failure.kind == "corrupt" else body

    def _reply(self, path: str, asked: Asked, failure: Failure | None) -> Reply:
        if failure and failure.kind in ANSWERS:
            answer = ANSWERS[failure.kind]
            wait = {"Retry-After": str(int(failure.seconds))} if failure.kind == "429" else {}
            raise Refused(answer.status, answer.code, answer.message, wait)
        if failure and failure.kind == "hang":
            time.sleep(failure.seconds)
        for methods, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                words = {name: unquote(word) for name, word in found.groupdict().items() if word}
                api = Api(self.hub.repos, self.hub.url, self.hub.part_size)
                return function(api, asked, **words)
        raise Refused(404, "", f"the fake hub has no {self.command} {path}")

    def _own(self, path: str, asked: Asked) -> Reply:
        """Do what another program asks of the fake itself."""
        if path == "/_fake/fail":
            self.hub.fail(**asked.json)
            return Reply({})
        requests = self.hub.requests
        return Reply([[seen.method, seen.path, seen.range, seen.status] for seen in requests])

    def _send(self, reply: Reply, failure: Failure | None) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if failure and failure.kind == "corrupt":
            body = _corrupt(body)
        if failure and failure.kind == "cut":
            body, self.close_connection = body[: failure.after], True
        if self.command != "HEAD":
            with suppress(BrokenPipeError, ConnectionResetError):  # it had enough, and left
                self.wfile.write(body)


def _refusal(refused: Refused) -> Reply:
    said = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
    headers = {name: text for name, text in said.items() if text}
    return Reply({"error": refused.message}, headers | refused.headers, refused.status)


def _corrupt(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="holds USER/NAME/ folders")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    args = parser.parse_args()
    with FakeHub(args.root, port=args.port) as hub:
        print(hub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
