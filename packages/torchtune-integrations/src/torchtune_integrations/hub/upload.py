"""The calls to the hub: one commit with all files, and errors that say what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torchtune.errors import ConfigError, MissingError, TuneError

from torchtune_integrations.hub.files import belongs_to_model
from torchtune_integrations.hub.licence import Licence, licence_of_card

if TYPE_CHECKING:
    from torchtune_integrations.hub.publication import Publication

__all__ = ["check_repo", "published_licence", "push"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]{0,95}")


def check_repo(repo: str, *, where: str) -> None:
    """Refuse what cannot be a model's name on the hub.

    Raises:
        ConfigError: E-HUB-NAME.
    """
    name = repo.rpartition("/")[2]
    doubled = "--" in name or ".." in name
    if not _REPO.fullmatch(repo) or doubled or name.endswith((".git", "-", ".")):
        what = f"{repo!r} is no name of a model on the hub"
        do = "write USER/NAME, of letters, digits, '-', '_' and '.'"
        raise ConfigError("E-HUB-NAME", what, where=where, do=do)


def published_licence(repo: str, token: str | None = None) -> Licence | None:
    """Return the licence that a model's card on the hub gives; None where that cannot be learnt."""
    try:
        with _explained(repo):
            card = _api(token).model_info(repo).card_data
    except TuneError:
        return None
    return licence_of_card(card.to_dict()) if card else None


def push(publication: "Publication", *, token: str | None = None) -> str:
    """Make the repository where there is none, and send card and files as one commit.

    Whoever downloads meanwhile gets all of it or nothing. Large files go first, each once: after a
    broken upload the same call sends only those that had not arrived whole. Weights that an earlier
    push left there under other names are deleted.

    Args:
        publication: From `prepare`.
        token: Of an account that may write there, used where neither HF_TOKEN nor a login gives one.

    Returns:
        The model's address.

    Raises:
        ConfigError: E-LICENCE without one in public; E-HUB-PRIVATE if it is there already, in
            public, and was to be private; E-CARD if the hub refuses the head of the card.
        MissingError: No network, no token or not one that may write.
        TuneError: The hub refuses, is busy, or the upload broke off.
    """
    publication.check()
    repo, private = publication.repo, publication.private
    with _explained(repo):
        api = _api(token)
        api.create_repo(repo, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repo).private:
            what = f"{repo} is there already, and in public"
            do = "make it private on its page, or choose another name"
            raise ConfigError("E-HUB-PRIVATE", what, where="--private", do=do)
        after = f", step {publication.step}" if publication.step is not None else ""
        api.create_commit(
            repo,
            _operations(publication, api.list_repo_files(repo)),
            commit_message=f"Upload {repo.rpartition('/')[2]}{after}",
        )
    return f"{api.endpoint}/{repo}"


def _operations(publication: "Publication", there: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {**publication.files, "README.md": publication.card.encode()}
    stale = [name for name in there if name not in files and belongs_to_model(name)]
    return [
        *(CommitOperationDelete(name) for name in stale),
        *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
    ]


def _api(token: str | None) -> Any:
    """Return the hub's client; HF_TOKEN or the hub's login goes before `token`."""
    import huggingface_hub

    return huggingface_hub.HfApi(token=huggingface_hub.get_token() or token)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises into errors that say what to do."""
    from huggingface_hub import errors

    http: Any = errors.HfHubHTTPError.__bases__[0]  # of whichever library it is built on
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refused(error, repo) from error
    except errors.HFValidationError as error:
        raise ConfigError("E-HUB-NAME", str(error), where="--repo") from error
    except (http, ConnectionError, TimeoutError, RuntimeError) as error:  # the last of large files
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(error.__cause__, repo) from error
        what = f"the hub cannot be reached, or the connection broke: {_one_line(error)}"
        raise MissingError("E-HUB-NETWORK", what, where=repo, do=_AGAIN) from error
    except ValueError as error:  # what the hub says of the card's head, and of large files
        kind = "E-CARD" if "README" in str(error) else "E-HUB-REFUSED"
        raise ConfigError(kind, _one_line(error), where=repo) from error


_AGAIN = "run the command again: files that have arrived are not sent again"
_TOKENS = "https://huggingface.co/settings/tokens"
_ANSWERS: dict[int, tuple[type[TuneError], str, str, str]] = {
    401: (
        MissingError,
        "E-HUB-TOKEN",
        "the hub wants a token that is valid",
        f"make one that may write at {_TOKENS}, then `hf auth login`, HF_TOKEN or --hf-token",
    ),
    403: (
        MissingError,
        "E-HUB-TOKEN",
        "this token may not write there",
        f"take one that may write, of the account or organisation that USER names: {_TOKENS}",
    ),
    404: (
        MissingError,
        "E-HUB-MISSING",
        "the hub has no such model, or hides it from this token",
        "see to the spelling, and to the token's account",
    ),
    409: (TuneError, "E-HUB-CONFLICT", "somebody else is changing it too", "run the command again"),
    412: (TuneError, "E-HUB-CONFLICT", "somebody else has changed it", "run the command again"),
    413: (
        TuneError,
        "E-HUB-REFUSED",
        "the hub finds it too large",
        "see the limits of the account",
    ),
    429: (TuneError, "E-HUB-BUSY", "the hub gets too many calls", "wait a few minutes, then again"),
}


def _refused(error: Any, repo: str) -> TuneError:
    status = error.response.status_code
    if status in _ANSWERS:
        kind, code, what, do = _ANSWERS[status]
    elif status >= 500:
        kind, code, what = TuneError, "E-HUB-DOWN", "the hub has trouble of its own"
        do = f"later {_AGAIN}"
    else:
        kind, code, what, do = TuneError, "E-HUB-REFUSED", "the hub refuses", ""
    said = _one_line(error.server_message or "")
    return kind(code, f"{what} ({status}{': ' + said if said else ''})", where=repo, do=do)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]
