"""Whether a run that goes on is still the same run."""

from collections.abc import Mapping
from typing import Any

from torchtune.errors import ConfigError

__all__ = ["check_resumed"]


def check_resumed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Refuse to go on with other rows; return what else differs, which only changes rounding.

    Args:
        saved: The conditions that a checkpoint was written under.
        now: Those of this run: ``rows`` (`torchtune.data.Steps.identity`), and numbers such as the
            world size.

    Raises:
        ConfigError: The rows of the steps are others, so that some would be seen twice or never.
    """
    before = saved.get("rows", {})
    if changed := [key for key, value in now["rows"].items() if before.get(key) != value]:
        named = ", ".join(
            f"{key} (was {before.get(key)}, is {now['rows'][key]})" for key in changed
        )
        raise ConfigError(
            "E-RESUME-ROWS",
            f"the rows of the steps are not those of the checkpoint: {named}",
            where="resume_from_checkpoint",
            do="resume with the same data, or begin a new run with the step folder as checkpoint",
        )
    return [
        f"{key} was {saved.get(key)} and is {value}: what follows is equal to rounding, not to the bit"
        for key, value in now.items()
        if key != "rows" and saved.get(key) != value
    ]
