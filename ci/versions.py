"""What CI has to know about versions and tags; standard library only.

python ci/versions.py lowest-core torchtune-recipes     the git ref to build the lowest core from
python ci/versions.py tag torchtune-core-v1.2.3         check a release, print its facts
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "torchtune-core": "torchtune",
    "torchtune-recipes": "torchtune_recipes",
    "torchtune-integrations": "torchtune_integrations",
}


def numbers(version: str) -> tuple[int, ...]:
    """Return ``"1.2.3"`` as (1, 2, 3); what follows a number (``rc1``) is left out."""
    return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", version))


def version_of(package: str) -> str:
    """Return the version that the package's source states."""
    init = ROOT / "packages" / package / "src" / MODULES[package] / "__init__.py"
    return re.findall(r'^__version__ = "(.+)"', init.read_text("utf-8"), re.MULTILINE)[0]


def tags_of(package: str) -> list[str]:
    """Return the package's release tags, the lowest version first."""
    git = ["git", "tag", "--list", f"{package}-v*"]
    tags = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return sorted(tags, key=lambda tag: numbers(tag.rpartition("-v")[2]))


def lowest_core(package: str, tags: list[str]) -> str:
    """Return the tag of the lowest core that `package` allows; the present tree before the first.

    Raises:
        SystemExit: Core has releases, and none of them is allowed.
    """
    project = (ROOT / "packages" / package / "pyproject.toml").read_text("utf-8")
    lowest, below = re.findall(r'"torchtune-core>=([\d.]+),<([\d.]+)"', project)[0]
    if not tags:
        return "HEAD"
    for tag in tags:
        if numbers(lowest) <= numbers(tag.rpartition("-v")[2]) < numbers(below):
            return tag
    if numbers(lowest) <= numbers(version_of("torchtune-core")) < numbers(below):
        return "HEAD"  # it needs the core that is about to be released
    raise SystemExit(f"{package} wants core >={lowest},<{below}; there are {', '.join(tags)}")


def check_tag(tag: str) -> dict[str, str]:
    """Return the package, its short name and version that a release tag names.

    Raises:
        SystemExit: The tag, the source and the changelog do not agree.
    """
    package, _, version = tag.rpartition("-v")
    if package not in MODULES:
        raise SystemExit(f"no package for tag {tag!r}; tags are {', '.join(MODULES)} and -v1.2.3")
    if version != version_of(package):
        raise SystemExit(f"tag {tag} does not fit: the source says {version_of(package)}")
    changelog = (ROOT / "packages" / package / "CHANGELOG.md").read_text("utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", changelog, re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md of {package} has no line '## {version} (YYYY-MM-DD)'")
    return {"package": package, "short": package.removeprefix("torchtune-"), "version": version}


def main(arguments: list[str]) -> int:
    match arguments:
        case ["lowest-core", package] if package in MODULES:
            print(lowest_core(package, tags_of("torchtune-core")))
        case ["tag", tag]:
            for key, value in check_tag(tag).items():
                print(f"{key}={value}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
