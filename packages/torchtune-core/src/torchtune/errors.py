"""The errors a user can cause, their exit codes, and how a program reports them."""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "ConfigError",
    "DataError",
    "Faults",
    "Interrupted",
    "MissingError",
    "TuneError",
    "report_errors",
    "reported_exit_code",
    "tell_launcher",
]


class TuneError(Exception):
    """Say in one to three lines what went wrong, where, and what to do; the root of our errors.

    Args:
        code: A stable name such as ``"E-LORA-TARGET"``, to search for.
        what: What was found and what was wanted, in the user's words.
        where: A key, a file and line, or a path; may be empty.
        do: What to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, code: str, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(code, what, where, do)
        self.code, self.what, self.where, self.do = code, what, where, do

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        lines += [f"  at {self.where}"] if self.where else []
        lines += [f"  {self.do}"] if self.do else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.what, self.where, self.do)


def _rebuild(kind: type[TuneError], code: str, what: str, where: str, do: str) -> TuneError:
    return kind(code, what, where=where, do=do)


class ConfigError(TuneError):
    """Wrong usage or configuration; exit code 2."""

    exit_code = 2


class MissingError(TuneError):
    """Something needed is missing: a file, a package, the network, a device; exit code 3."""

    exit_code = 3


class DataError(TuneError):
    """The data is bad; exit code 4."""

    exit_code = 4


class Interrupted(TuneError):
    """Stopped by a signal after saving; the run can be resumed; exit code 75."""

    exit_code = 75


class Faults(TuneError):
    """Several errors found in one pass, reported together; the exit code is the first one's.

    Args:
        faults: At least one error, in the order to be shown.
    """

    def __init__(self, faults: Sequence[TuneError]) -> None:
        super().__init__(faults[0].code, f"{len(faults)} faults")
        self.faults = list(faults)
        self.exit_code = faults[0].exit_code

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)

    def __reduce__(self) -> tuple[object, ...]:
        return Faults, (self.faults,)


INTERRUPTED = 130


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn a `TuneError` into its message on stderr and its exit code, without a traceback.

    ``TUNE_TRACEBACK=1`` shows the traceback too. Ctrl-C where nothing else takes it ends with 130,
    as shells have it. Under the launcher of ``tune run`` the message goes into the file that
    torchrun reads, so that only the first failing rank is heard.

    Raises:
        SystemExit: With the error's exit code, once it is told.
    """
    try:
        yield
    except TuneError as error:
        if os.environ.get("TUNE_TRACEBACK") == "1":
            traceback.print_exc()
        _tell(error)
        raise _exit(error.exit_code) from None
    except KeyboardInterrupt:
        if os.environ.get("TUNE_TRACEBACK") == "1":
            traceback.print_exc()
        print("interrupted", file=sys.stderr, flush=True)
        raise _exit(INTERRUPTED) from None


_reported: int | None = None


def _exit(code: int) -> SystemExit:
    global _reported
    _reported = code
    return SystemExit(code)


def reported_exit_code() -> int | None:
    """Return the exit code that `report_errors` raised last; None where it had nothing to report."""
    return _reported


def _tell(error: TuneError) -> None:
    if not tell_launcher(str(error), error.exit_code):
        print(error, file=sys.stderr, flush=True)


def tell_launcher(text: str, exit_code: int) -> bool:
    """Leave the launcher of ``tune run`` the text to print and its exit code.

    Args:
        text: What the user shall read.
        exit_code: What the command shall return.

    Returns:
        False, and nothing was done, where there is no such launcher.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or "TUNE_LAUNCHED" not in os.environ:
        return False
    # torchrun reads the file too, and insists on the timestamp
    extra = {"timestamp": str(int(time.time()))}
    message = {"message": text, "exit_code": exit_code, "extraInfo": extra}
    aside = f"{path}.aside"  # the launcher never sees half a message, of a process that is killed
    with open(aside, "w", encoding="utf-8") as file:  # noqa: PTH123 - imports stay few
        json.dump({"message": message}, file)
    os.replace(aside, path)  # noqa: PTH105
    return True
