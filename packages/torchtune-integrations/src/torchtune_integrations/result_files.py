"""Which files of a finished run a logger sends when it is asked to."""

from pathlib import Path

from torchtune.checkpoint import find_checkpoint

__all__ = ["model_files", "result_files"]

RESULTS = ("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "loss.png")
OURS_ALONE = ("manifest.json",)  # it lists the training state too, which is not sent


def result_files(output_dir: str | Path) -> list[Path]:
    """Return the files in a run's folder that say what it did, those of them that are there."""
    return [path for path in (Path(output_dir, name) for name in RESULTS) if path.is_file()]


def model_files(output_dir: str | Path) -> list[Path]:
    """Return the files of a run's last checkpoint that others load: all but its training state.

    Raises:
        MissingError: The run has saved no checkpoint.
    """
    folder = find_checkpoint(output_dir, check_base=False).folder
    found = (path for path in sorted(folder.iterdir()) if path.is_file())
    return [path for path in found if path.name not in OURS_ALONE]
