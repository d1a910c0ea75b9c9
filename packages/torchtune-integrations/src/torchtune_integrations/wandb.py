"""Metrics to Weights & Biases; needs the extra `wandb`."""

import secrets
from pathlib import Path
from typing import Any

from torchtune.errors import MissingError
from torchtune.training import Progress

__all__ = ["WandbLogger"]


class WandbLogger:
    """Send figures and configuration to one Weights & Biases run, which a resumed run goes on with.

    Args:
        project: Name of the project there.
        entity: User or team; that of the login where not given.
        group: Name under which runs are shown together.
        name: Name of the run; Weights & Biases makes one up where not given.
        mode: ``online``, ``offline`` (kept in `log_dir`, sent later by ``wandb sync``) or
            ``disabled``; the environment's WANDB_MODE, else ``online``, where not given.
        log_dir: The folder whose ``wandb/`` holds the run's files; `output_dir` where not given.
        output_dir: The run's folder; the recipe gives it.

    Raises:
        MissingError: The package wandb is not installed.
    """

    def __init__(
        self,
        project: str = "torchtune",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        mode: str | None = None,
        log_dir: str | None = None,
        output_dir: str = ".",
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingError(
                "E-PACKAGE",
                "the metric logger 'wandb' needs a package that is not installed",
                where="metric_logger",
                do="pip install 'torchtune-integrations[wandb]'",
            ) from error
        folder = Path(log_dir or output_dir)
        self._run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            name=name,
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            id=_run_id(folder / "wandb" / "run_id"),
            resume="allow",
        )

    def log_config(self, config: dict[str, Any]) -> None:
        """Show the resolved configuration as the run's; keys that changed on resume are replaced."""
        self._run.config.update(config, allow_val_change=True)

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Send the figures of one step, with its epoch."""
        self._run.log({"epoch": progress.epoch, **metrics}, step=progress.step)

    def close(self) -> None:
        """Send what is left and end the run."""
        self._run.finish()


def _run_id(file: Path) -> str:
    """Return the id that an earlier run left in `file`, or a new one, kept there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
