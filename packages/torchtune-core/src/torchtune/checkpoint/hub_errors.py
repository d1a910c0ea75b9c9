"""What a user can read and act on, for every way in which the hub can fail a download."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torchtune.errors import ConfigError, MissingError, TuneError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["OUT_OF_REACH", "gated", "hub_errors"]

OUT_OF_REACH = ("E-HUB-NETWORK", "E-HUB-BUSY", "E-HUB-DOWN")
"""Codes of the errors that say nothing about the model: what is on disk may be all there is."""

_AGAIN = "run the same command again; it goes on with what is missing"
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def hub_errors(repo: str, revision: str | None, token: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises in the block into a `TuneError`.

    Args:
        repo: The model that the block is about.
        revision: The revision asked for; None is main.
        token: The one that was given; None means that the library looks for one itself.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # With its bases come the errors of whichever HTTP library it is built on; hf_xet, which moves
    # the large files, raises RuntimeError for a broken network.
    transport: Any = (*HfHubHTTPError.__bases__, OSError, RuntimeError)
    try:
        yield
    except HFValidationError:
        raise _no_name(repo) from None
    except transport as error:
        raise _explained(error, repo, revision, token) from error


def _no_name(repo: str) -> ConfigError:
    what = f"{repo!r} is not the name of a model on the hub, which is USER/NAME"
    said = "/".join(repo.split("://", 1)[-1].split("/")[1:3])
    do = f"did you mean {said}?" if "://" in repo and said.count("/") == 1 else ""
    return ConfigError("E-HUB-NAME", what, do=do)


def _explained(
    error: BaseException, repo: str, revision: str | None, token: str | None
) -> TuneError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # what happened, before the library looked into its cache
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, GatedRepoError):
        return gated(repo)
    if isinstance(error, RevisionNotFoundError):
        do = f"{page}/commits/main lists them"
        return ConfigError("E-HUB-REVISION", f"{repo} has no revision {revision!r}", do=do)
    if isinstance(error, RepositoryNotFoundError):
        what = f"there is no model {repo} at {constants.ENDPOINT}, or it is private"
        do = "check the name; for a private one log in with `hf auth login`, or set HF_TOKEN"
        return MissingError("E-HUB-MISSING", what, do=do)
    if isinstance(error, HfHubHTTPError):
        return _status(error, repo, token)
    return _transport(error, constants.ENDPOINT)


def gated(repo: str) -> MissingError:
    """Return the error that tells a user how to get a model with a licence to be accepted."""
    from huggingface_hub import constants, get_token

    what = f"{repo} is gated: its terms must be accepted first, by the account that downloads it"
    again = "" if get_token() else ", then `hf auth login` (or set HF_TOKEN)"
    do = f"accept them at {constants.ENDPOINT}/{repo}{again}"
    return MissingError("E-HUB-GATED", what, do=do)


def _status(error: "HfHubHTTPError", repo: str, token: str | None) -> TuneError:
    """Explain an HTTP status that says nothing of the model itself."""
    status, said = error.response.status_code, error.server_message or ""
    if status in (401, 403):
        whose = "the token that was given" if token else "the token of HF_TOKEN or `hf auth login`"
        what = f"the hub does not let {whose} read {repo}: {said or status}"
        return MissingError("E-HUB-TOKEN", what, do="make a new one in the hub's settings, Tokens")
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        after = f"wait {wait} s, then {_AGAIN}" if wait else f"wait some minutes, then {_AGAIN}"
        return MissingError("E-HUB-BUSY", "the hub gets too many requests from here", do=after)
    if status >= 500:
        what = f"the hub has a fault of its own: status {status}"
        return MissingError("E-HUB-DOWN", what, do=f"later {_AGAIN}")
    return MissingError("E-HUB-REFUSED", f"the hub refuses {repo}: status {status}. {said}".strip())


def _transport(error: BaseException, endpoint: str) -> TuneError:
    """Explain what is not an answer of the hub: the network's errors and the disk's."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    number = getattr(error, "errno", None)
    where = str(getattr(error, "filename", None) or "")
    if number in _FULL:
        do = f"free space, then {_AGAIN}"
        return MissingError("E-DISK-SPACE", "the disk is full", where=where, do=do)
    if number is not None and where:
        return TuneError(
            "E-DISK", f"cannot write: {error}", where=where, do="check path and rights"
        )
    if isinstance(error, OfflineModeIsEnabled):
        what, do = "HF_HUB_OFFLINE is set: the hub is not asked", "unset it"
        return MissingError("E-HUB-NETWORK", what, do=do)
    said = re.sub(r"\[Errno -?\d+\] ", "", f"{error}").partition("\n")[0] or type(error).__name__
    do = f"check the network, a proxy or HF_ENDPOINT; then {_AGAIN}"
    return MissingError("E-HUB-NETWORK", f"cannot reach {endpoint}: {said}", do=do)
