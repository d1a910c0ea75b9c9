"""Which files of a model on the hub are needed here, and whether one came as it was sent."""

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from torchtune.checkpoint.disk import file_digest
from torchtune.errors import ConfigError, MissingError

__all__ = ["HubFile", "chosen_files", "damage", "matching"]

_NEEDED = (
    *("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors"),
    *("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"),
    *("README.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*"),
)
# Not what lies in folders (the same weights once more: original/, onnx/), nor what is of pickles.
_NOT_NEEDED = ("*/*", "*.bin.index.json", "consolidated*")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".h5", ".msgpack")


class HubFile(NamedTuple):
    """A file of a revision, as the hub describes it.

    Attributes:
        name: Path in the repository.
        size: Bytes.
        blob_id: Git's id of it.
        sha256: Of its content; None for the small files, which the hub keeps in git itself.
    """

    name: str
    size: int
    blob_id: str
    sha256: str | None


def chosen_files(
    repo: str, files: Iterable[HubFile], include: Sequence[str], exclude: Sequence[str]
) -> list[HubFile]:
    """Return the files that a download brings, by the rules of `torchtune.checkpoint.download`.

    Raises:
        ConfigError: E-HUB-FILES if the user's patterns leave nothing.
        MissingError: E-HUB-WEIGHTS without weights that can be read here, if the user named none.
    """
    files = list(files)
    needed = [file for file in files if matching(file.name, include or _NEEDED)]
    if not include:
        needed = [file for file in needed if not matching(file.name, _NOT_NEEDED)]
        _check_weights(repo, [file.name for file in files], [file.name for file in needed])
    left = [file for file in needed if not matching(file.name, exclude)]
    if not left:
        what = f"no file of {repo} is left by these patterns; it has {_some(files)}"
        raise ConfigError("E-HUB-FILES", what, where=" ".join([*include, *exclude]))
    return left


def matching(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern of the shell's kind fits all of `name`; ``*`` goes beyond slashes."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def damage(path: Path, file: HubFile) -> str:
    """Say how the file at `path` differs from the hub's, or nothing where it does not."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes, on the hub {file.size}"
    if file.sha256 is None:
        data = path.read_bytes()
        came, wanted = hashlib.sha1(b"blob %d\0" % size + data).hexdigest(), file.blob_id
    else:
        came, wanted = file_digest(path).sha256, file.sha256
    kind = "sha256" if file.sha256 else "git id"
    return "" if came == wanted else f"its {kind} is {came[:12]}…, on the hub {wanted[:12]}…"


def _check_weights(repo: str, names: Sequence[str], needed: Sequence[str]) -> None:
    if any(name.endswith(".safetensors") for name in needed):
        return
    others = [name for name in names if name.endswith((*_PICKLES, *_OTHER_WEIGHTS))]
    pickles = [name for name in others if name.endswith(_PICKLES)]
    if pickles:
        what = f"{repo} has pickled weights alone ({pickles[0]}), and those can run code when read"
        do = (
            "look for a revision with safetensors (--revision refs/pr/1), or write them with "
            "transformers' save_pretrained"
        )
    else:
        has = f"its weights are {others[0]}" if others else "it has no weights"
        what = f"{repo} holds no model.safetensors: {has}"
        do = "--include-patterns brings the files that you name"
    raise MissingError("E-HUB-WEIGHTS", what, do=do)


def _some(files: Sequence[HubFile]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
