"""Step folders and the manifest that makes one whole: its files with sizes and sha256."""

import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torchtune.checkpoint.disk import Digest, file_digest, flush

__all__ = [
    "MANIFEST",
    "Manifest",
    "damaged_files",
    "latest_step",
    "read_manifest",
    "seal",
    "step_name",
    "whole_steps",
]

MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step_\d{6,}")


class Manifest(NamedTuple):
    """What manifest.json says of a step folder.

    Attributes:
        step: The optimizer step after which it was saved.
        order: Which save of the run it is, from 1: a run that went back to an earlier step saves
            newer folders with smaller steps.
        files: Path inside the folder, with ``/``, to its digest.
    """

    step: int
    order: int
    files: dict[str, Digest]


def step_name(step: int) -> str:
    """Return the name of the folder saved after `step` optimizer steps."""
    return f"step_{step:06d}"


def seal(folder: Path, *, step: int, order: int, known: Mapping[Path, Digest]) -> None:
    """Flush all of `folder` to disk and write its manifest, last.

    Args:
        folder: What was saved.
        step: After which optimizer step.
        order: Which save of the run this is.
        known: By absolute path, files already flushed and hashed; others are done here.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(max_workers=4) as threads:
        digests = threads.map(lambda path: known.get(path.absolute()) or _sealed(path), paths)
        files = {
            path.relative_to(folder).as_posix(): {"size": digest.size, "sha256": digest.sha256}
            for path, digest in zip(paths, digests, strict=True)
        }
    text = json.dumps({"step": step, "order": order, "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    flush(folder / MANIFEST)
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        flush(path)


def _sealed(path: Path) -> Digest:
    flush(path)
    return file_digest(path)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder` if the folder is whole: every file there, in its size.

    Contents are not read (`damaged_files` does that): all was flushed before the manifest was
    written, so that a crash cannot leave a right size with wrong bytes.
    """
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: Digest(**digest) for name, digest in fields["files"].items()}
        manifest = Manifest(int(fields["step"]), int(fields["order"]), files)
        sizes = {name: (folder / name).stat().st_size for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if all(sizes[name] == files[name].size for name in files) else None


def damaged_files(folder: Path) -> list[str]:
    """Return the files of a whole `folder` whose content is not what its manifest says, sorted.

    Reads every byte in a few threads (about 2 GB/s each); a resume reads them anyway. A folder
    that is not whole gives the manifest's own name.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return [MANIFEST]
    names = sorted(manifest.files)
    with ThreadPoolExecutor(max_workers=4) as threads:
        digests = threads.map(lambda name: file_digest(folder / name), names)
        pairs = zip(names, digests, strict=True)
        return [name for name, digest in pairs if digest != manifest.files[name]]


def whole_steps(folder: Path) -> list[Path]:
    """Return the whole step folders in `folder`, the one saved last first."""
    found = []
    for path in folder.glob("step_*"):
        if STEP_FOLDER.fullmatch(path.name) and (manifest := read_manifest(path)):
            found.append((manifest.order, path.name, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def latest_step(folder: str | os.PathLike[str]) -> Path | None:
    """Return the whole step folder that the run in `folder` saved last, or None.

    It is the one that ``latest`` names, unless a kill came between a save and that.
    """
    return next(iter(whole_steps(Path(folder))), None)
