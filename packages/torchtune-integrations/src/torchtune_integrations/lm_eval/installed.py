"""Whether the harness is there."""

from torchtune.errors import MissingError

__all__ = ["check_installed"]


def check_installed(where: str) -> None:
    """Import lm-evaluation-harness.

    Args:
        where: What asks for it, for the message.

    Raises:
        MissingError: E-PACKAGE: it is not installed.
    """
    try:
        import datasets  # noqa: F401 - its log goes where stderr is when it is imported
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise MissingError(
            "E-PACKAGE",
            f"evaluation needs {error.name or 'lm_eval'!r}, which is not installed",
            where=where,
            do="pip install 'torchtune-integrations[eval]'",
        ) from error
