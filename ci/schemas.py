"""Keep the JSON Schemas of the shipped recipes' configs: `python ci/schemas.py --write`.

They lie in torchtune_recipes/schemas/<recipe>.json and are made from the recipes' Params and the
components of our own packages, so all three packages must be installed. Without `--write` the
script compares, and names what is out of date.
"""

import argparse
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

from torchtune.config import json_schema, read_params

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "packages" / "torchtune-recipes" / "src" / "torchtune_recipes"
OURS = "torchtune-integrations"


def schemas() -> dict[Path, str]:
    """Return the text of each file."""
    recipes = sorted((PACKAGE / "recipes").glob("[!_]*.py"))
    return {PACKAGE / "schemas" / f"{path.stem}.json": _text(path) for path in recipes}


def _text(recipe: Path) -> str:
    return json.dumps(json_schema(read_params(recipe), recipe=recipe.stem), indent=1) + "\n"


def _installed() -> set[str]:
    points = entry_points(group="torchtune.components")
    return {point.dist.name for point in points if point.dist is not None}


def main() -> int:
    """Write or compare the files; return 1 where one is out of date, 3 in a wrong environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files")
    write = parser.parse_args().write
    if _installed() != {OURS}:
        print(f"install {OURS} and no other plug-in: its components are listed", file=sys.stderr)
        return 3
    stale = {path: text for path, text in schemas().items() if not _is(path, text)}
    for path, text in stale.items():
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            print(f"{path.relative_to(ROOT)} is out of date: `hatch run schemas`", file=sys.stderr)
    return 1 if stale and not write else 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
