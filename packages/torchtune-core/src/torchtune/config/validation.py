"""Check a config file against its recipe without running it: what ``tune validate`` does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchtune.config.arguments import read_arguments
from torchtune.config.files import lacks_files
from torchtune.config.load import load, placed, raised
from torchtune.config.merge import RECIPE
from torchtune.config.names import nearest
from torchtune.config.reader import UNREAD, Node, read_file
from torchtune.config.recipe_file import read_params
from torchtune.config.registry import trust, trust_recipe
from torchtune.config.schema import keys_of
from torchtune.errors import ConfigError, MissingError, TuneError

__all__ = ["choose_recipe", "validate"]


def choose_recipe(config: str | Path, recipes: Mapping[str, str | Path]) -> str:
    """Return the name of the recipe that a config is for.

    It is the one that the file's ``recipe:`` names, else the only one whose Params hold all its
    keys, else the one that holds most of them (the others are then faults, each with its line).

    Args:
        config: The YAML file.
        recipes: The recipes that may be chosen, by name, with their files. A config may choose
            from these only: it is no way to have a file run.

    Raises:
        ConfigError: The file names no such recipe, or fits none, or several equally well.
        MissingError: There is no such file.
    """
    root, faults = read_file(config)
    if root.value is UNREAD:
        raise raised(faults)
    named = root.value.get(RECIPE)
    if named is not None:
        return _named(named, recipes)
    words = [word for word in root.value if word != RECIPE]
    keys = {name: keys_of(read_params(path)) for name, path in recipes.items()}
    unknown = {name: len([w for w in words if w not in known]) for name, known in keys.items()}
    fewest = min(unknown.values(), default=0)
    best = [name for name, count in unknown.items() if count == fewest]
    if len(best) == 1 and fewest < max(len(words), 1):
        return best[0]
    fits = f"fits {' and '.join(best)}" if fewest == 0 else "fits no recipe"
    what = f"this config {fits}; the recipes are {', '.join(recipes)}"
    do = "name one before the file, or in it as recipe: NAME"
    raise ConfigError("E-CONFIG-RECIPE", what, where=str(config), do=do)


def _named(node: Node, recipes: Mapping[str, str | Path]) -> str:
    if node.value in recipes:
        return str(node.value)
    what = f"there is no recipe '{node.plain()}'; there are {', '.join(recipes)}"
    do = nearest(node.text, recipes)
    raise ConfigError("E-CONFIG-RECIPE", what, where=f"{RECIPE}, {node.where}", do=do)


def validate(
    recipe: type | str | Path,
    config: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    here: bool = False,
    machine: Callable[[object], Sequence[TuneError]] | None = None,
) -> tuple[list[TuneError], list[TuneError]]:
    """Return the faults of a config, and notes of what only this machine lacks.

    Args:
        recipe: Its Params, or the recipe's file.
        config: The YAML file; None checks the overrides alone.
        overrides: Words of a command line: ``key=value``, ``~key``, flags, ``--trust PACKAGE``.
        here: Whether what this machine lacks is a fault, so that the exit code becomes 3.
        machine: Takes the params and returns what else this machine lacks for them, its devices
            for example, each with the key as ``where``. Called when there are no faults.

    Returns:
        All faults, each with its place and exit code (the first one's is the command's), and the
        notes. Without faults and notes the run can start.
    """
    params = recipe if isinstance(recipe, type) else read_params(recipe)
    arguments = read_arguments(overrides, keys_of(params))
    for package in arguments.trust:
        trust(package)
    if not isinstance(recipe, type):
        trust_recipe(recipe)
    made, faults, nodes = load(params, arguments, config)
    notes: list[TuneError] = [f for f in faults if isinstance(f, MissingError)]  # a package
    faults = [fault for fault in faults if fault not in notes]
    if faults or made is None:
        return (faults or notes, []) if here else (faults, notes)
    notes += lacks_files(made) + list(machine(made) if machine else [])
    notes = [placed(note, nodes) for note in notes]
    return (notes, []) if here else ([], notes)
