"""Entry points of installed packages, read from their metadata folders without importing anything."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["EntryPoint", "entry_points", "installed", "module_path", "package_folder"]


class EntryPoint(NamedTuple):
    """One line of a package's ``entry_points.txt``.

    Args:
        name: What the user types.
        value: ``module`` or ``module:attribute``.
        extra: The extra of the package that brings what the module needs; may be empty.
        package: The distribution that declares it.
        version: That distribution's version.
    """

    name: str
    value: str
    extra: str
    package: str
    version: str


@cache
def installed() -> tuple[tuple[str, str, Path], ...]:
    """Return name, version and metadata folder of each installed distribution, the first of a name.

    Only folder names are read: a scan by ``importlib.metadata`` takes 40 to 100 ms, this one 2,
    and ``tune --help`` has 200.
    """
    found: dict[str, tuple[str, str, Path]] = {}
    for place in sys.path:
        try:
            inside = sorted(os.listdir(place or "."))  # noqa: PTH208 - iterdir builds every Path
        except OSError:  # sys.path may name a zip file, or what does not exist
            continue
        for folder in inside:
            if folder.endswith((".dist-info", ".egg-info")):
                name, version, *_ = [*folder.rpartition(".")[0].split("-"), ""]
                found.setdefault(name, (name.replace("_", "-"), version, Path(place, folder)))
    return tuple(found.values())


def entry_points(group: str) -> list[EntryPoint]:
    """Return what installed packages declare under `group`, sorted by name."""
    found: list[EntryPoint] = []
    for package, version, text in _declarations():
        found += [_entry_point(line, package, version) for line in _section(text, group)]
    return sorted(found)


@cache
def _declarations() -> tuple[tuple[str, str, str], ...]:
    """Read each package's ``entry_points.txt`` that mentions us."""
    files = ((name, version, folder / "entry_points.txt") for name, version, folder in installed())
    texts = ((name, version, _text(path)) for name, version, path in files)
    return tuple(found for found in texts if "[torchtune." in found[2])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # most packages declare nothing
        return ""


def _section(text: str, group: str) -> Iterator[str]:
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            yield line


def _entry_point(line: str, package: str, version: str) -> EntryPoint:
    name, _, value = (part.strip() for part in line.partition("="))
    value, _, extra = (part.strip(" ]") for part in value.partition("["))
    return EntryPoint(name, value, extra, package, version)


def package_folder(module: str) -> Path | None:
    """Return where a dotted module lies, less its suffix, without importing anything.

    None where its top-level package is not installed.
    """
    from importlib.util import find_spec

    top, *below = module.split(".")
    spec = find_spec(top)  # a top-level name is located without being imported
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]).joinpath(*below) if places else None


def module_path(module: str) -> Path | None:
    """Return the file of a dotted module, None where there is none; nothing is imported."""
    place = package_folder(module)
    files = [place.with_name(f"{place.name}.py"), place / "__init__.py"] if place else []
    return next((file for file in files if file.is_file()), None)
