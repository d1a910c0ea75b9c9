"""Step folders and the manifest that makes one whole: its files with sizes and sha256."""

import json
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torchtune.checkpoint.disk import Digest, file_digest, flush, write_flushed

__all__ = [
    "LATEST",
    "MANIFEST",
    "Manifest",
    "damage",
    "damaged_files",
    "latest_step",
    "parse_manifest",
    "read_manifest",
    "seal",
    "step_name",
    "whole_before",
    "whole_steps",
]

LATEST = "latest"
MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step_\d{6,}")


class Manifest(NamedTuple):
    """What manifest.json says of a step folder.

    Attributes:
        step: The optimizer step after which it was saved.
        order: Which save of the run it is, from 1: a run that went back to an earlier step saves
            newer folders with smaller steps.
        files: Path inside the folder, with ``/``, to its digest.
        launchers: Who started the processes that saved it (`torchtune.distributed.launch_names`).
    """

    step: int
    order: int
    files: dict[str, Digest]
    launchers: frozenset[str] = frozenset()


def step_name(step: int) -> str:
    """Return the name of the folder saved after `step` optimizer steps."""
    return f"step_{step:06d}"


def seal(
    folder: Path,
    *,
    step: int,
    order: int,
    digests: Mapping[Path, Digest],
    launchers: Collection[str] = (),
) -> None:
    """Write the manifest of `folder`, last, and flush its lists of names.

    Args:
        folder: What was saved.
        step: After which optimizer step.
        order: Which save of the run this is.
        digests: Of every file, flushed already, by path.
        launchers: Who started the processes that save.
    """
    files = {
        path.relative_to(folder).as_posix(): digests[path]._asdict() for path in sorted(digests)
    }
    fields = {"step": step, "order": order, "files": files, "launchers": sorted(launchers)}
    text = json.dumps(fields, indent=2) + "\n"
    write_flushed(folder / MANIFEST, text.encode())
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        flush(path)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder` if the folder is whole: every file there, in its size.

    Contents are not read (`damaged_files` does that): all was flushed before the manifest was
    written, so that a crash cannot leave a right size with wrong bytes.
    """
    manifest = _parsed(folder)
    return manifest if manifest and not _wrong_sizes(folder, manifest) else None


def parse_manifest(text: str | bytes) -> Manifest | None:
    """Return what the `text` of a manifest.json says; None where it is damaged."""
    try:
        fields = json.loads(text)
        files = {name: Digest(**digest) for name, digest in fields["files"].items()}
        launchers = frozenset(fields.get("launchers", ()))
        return Manifest(int(fields["step"]), int(fields["order"]), files, launchers)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _parsed(folder: Path) -> Manifest | None:
    try:
        return parse_manifest((folder / MANIFEST).read_bytes())
    except OSError:
        return None


def _wrong_sizes(folder: Path, manifest: Manifest) -> dict[str, str]:
    found = {}
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            found[name] = "is missing"
        elif (size := path.stat().st_size) != digest.size:
            found[name] = f"has {size:,} bytes instead of {digest.size:,}"
    return found


def damage(folder: Path) -> dict[str, str]:
    """Return what is wrong with files of a step folder by its manifest, such as ``is missing``.

    Reads every byte in a few threads (about 2 GB/s each); a resume reads them anyway. Without a
    manifest that can be read it is that one which is named.
    """
    manifest = _parsed(folder)
    if manifest is None:
        return {MANIFEST: "is damaged" if (folder / MANIFEST).is_file() else "is missing"}
    found = _wrong_sizes(folder, manifest)
    names = [name for name in manifest.files if name not in found]
    with ThreadPoolExecutor(max_workers=4) as threads:
        digests = threads.map(lambda name: file_digest(folder / name), names)
        for name, digest in zip(names, digests, strict=True):
            if digest != manifest.files[name]:
                found[name] = "was changed"
    return dict(sorted(found.items()))


def damaged_files(folder: Path) -> list[str]:
    """Return the files of a step folder that are missing or not what its manifest says, sorted.

    Reads every byte. Without a manifest that can be read it gives the manifest's own name.
    """
    return list(damage(folder))


def whole_before(folder: Path) -> Path | None:
    """Return the newest undamaged step folder beside `folder` that was saved before it.

    Where the manifest of `folder` cannot be read, steps tell what was before.
    """
    damaged = _parsed(folder)
    for path in whole_steps(folder.parent):
        manifest = read_manifest(path)
        if path == folder or manifest is None:
            continue
        earlier = manifest.order < damaged.order if damaged else path.name < folder.name
        if earlier and not damage(path):
            return path
    return None


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
