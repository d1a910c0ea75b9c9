"""What of this machine matters to a run, and what is missing; without paths of the user, or secrets.

Nothing of torchtune is imported until it is known that no other package has taken its name.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchtune_recipes.plugins import installed

__all__ = ["Report", "diagnose", "without_names"]

Report = dict[str, dict[str, str]]
OURS = ("torchtune-core", "torchtune-recipes", "torchtune-integrations")
MIN_FREE_GB, MIN_FILES, MIN_SHARED_GB = 10, 1024, 1


def diagnose() -> tuple[Report, list[str], list[str]]:
    """Look at this machine and try a tiny run.

    Returns:
        The facts by section; what is missing and needed; and what failed in the self-test.
    """
    missing = [*_older_package(), *_python(), *_needed()]
    report: Report = {"versions": _versions(), "optional": _optional()}
    failed: list[str] = []
    if missing:
        report["self-test"] = {"result": "not tried, for what is missing"}
    else:
        report["devices"] = _devices()
        report["self-test"], failed = _tried()
    report["system"] = _system()
    return report, missing, failed


def without_names(text: str) -> str:
    """Return `text` with the home folder as ``~`` and without the user's name."""
    home = str(Path.home())
    user = Path(home).name
    text = text.replace(home, "~") if len(home) > 1 else text
    return re.sub(rf"\b{re.escape(user)}\b", "~", text) if user and user != "root" else text


def _older_package() -> list[str]:
    versions = [version for name, version, _ in installed() if name == "torchtune"]
    return [
        f"the older package torchtune {version} has the same import name: "
        "pip uninstall -y torchtune && "
        "pip install --force-reinstall --no-deps torchtune-core torchtune-recipes"
        for version in versions
    ]


def _python() -> list[str]:
    old = sys.version_info < (3, 10)
    return [f"Python {platform.python_version()} is older than 3.10"] if old else []


def _needed() -> list[str]:
    """Name what torchtune-core needs and is not installed."""
    wanted = [name for name, extra in _requirements("torchtune-core") if not extra]
    return [f"{name}: pip install {name}" for name in wanted if _version(name) is None]


def _requirements(package: str) -> list[tuple[str, str]]:
    """Return what a package asks for: each name, and the extra that wants it."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        found.append((re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0], extra[1] if extra else ""))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    others = [name for name, extra in _requirements("torchtune-core") if not extra]
    names = dict.fromkeys([*OURS, *others])
    versions = {name: _version(name) or "not installed" for name in names}
    return {"python": platform.python_version(), "system": platform.platform(), **versions}


def _optional() -> dict[str, str]:
    """Return the extras: the version of each one's library, or how to get it."""
    if _version("torchtune-integrations") is None:
        return {"all": "pip install torchtune-integrations"}
    return {
        extra: f"{name} {version}"
        if (version := _version(name))
        else f"{name} is not installed: pip install 'torchtune-integrations[{extra}]'"
        for name, extra in _requirements("torchtune-integrations")
        if extra
    }


def _devices() -> dict[str, str]:
    import torch
    from torchtune.distributed import available_backends, device_facts

    facts = device_facts()
    found = {"torch build": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"}
    for number in range(facts.cuda_devices):
        card = torch.cuda.get_device_properties(number)
        free = torch.cuda.mem_get_info(number)[0]
        memory = f"{card.total_memory / 2**30:.1f} GiB, {free / 2**30:.1f} free"
        found[f"cuda:{number}"] = f"{card.name}, {memory}, bf16 {_yes(facts.cuda_bf16)}"
    if facts.mps:
        found["mps"] = f"Apple GPU, bf16 {_yes(facts.mps_bf16)}"
    found["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} used, bf16 yes{_memory()}"
    found["processes"] = ", ".join(available_backends()) or "one only: torch has no backend"
    found["torch.compile"] = _compiler(cuda=facts.cuda_devices > 0)
    return found


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return ""
    return f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB memory"


def _compiler(*, cuda: bool) -> str:
    """Say what torch.compile would use: a C++ compiler, and triton for GPUs."""
    names = [name for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name]
    found = next((Path(path).name for path in map(shutil.which, names) if path), None)
    parts = [found or "no C++ compiler: install g++ or clang"]
    if cuda:
        triton = importlib.util.find_spec("triton")
        parts.append("triton" if triton else "no triton: pip install triton")
    return ", ".join(parts)


def _tried() -> tuple[dict[str, str], list[str]]:
    from torchtune.errors import TuneError

    from torchtune_recipes.self_test import self_test

    start = time.perf_counter()
    try:
        done = self_test()
    except (TuneError, RuntimeError, OSError, ImportError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        return {"result": "failed"}, [what]
    seconds = time.perf_counter() - start
    losses = " then ".join(f"{loss:.3f}" for loss in done.losses)
    facts = {
        "result": "failed" if done.faults else f"passed in {seconds:.1f} s on {done.device}",
        "two steps": f"loss {losses}",
        "generated": f"{done.tokens} tokens, the same before saving and after",
    }
    return facts, done.faults


def _system() -> dict[str, str]:
    found = {"disk here": _room(Path.cwd(), MIN_FREE_GB), "disk for temporary files": ""}
    found["disk for temporary files"] = _room(Path(tempfile.gettempdir()), MIN_FREE_GB)
    if Path("/dev/shm").is_dir():
        found["shared memory"] = _room(Path("/dev/shm"), MIN_SHARED_GB)
    found |= _limits()
    found["hub login"] = _login()
    return found


def _room(place: Path, wanted: float) -> str:
    free = shutil.disk_usage(place).free / 1e9
    little = f", which is little: a checkpoint may need {wanted} GB" if free < wanted else ""
    return f"{free:,.1f} GB free{little}"


def _limits() -> dict[str, str]:
    try:
        import resource
    except ImportError:  # Windows has none
        return {}

    def text(limit: int, wanted: int, unit: str) -> str:
        number = resource.getrlimit(limit)[0]
        if number == resource.RLIM_INFINITY:
            return "unlimited"
        return f"{number:,}{unit}" + (
            ", which is little: ulimit -n 4096" if number < wanted else ""
        )

    return {
        "open files": text(resource.RLIMIT_NOFILE, MIN_FILES, ""),
        "file size": text(resource.RLIMIT_FSIZE, 0, " bytes"),
        "locked memory": text(resource.RLIMIT_MEMLOCK, 0, " bytes"),
    }


def _login() -> str:
    """Say whether the hub's library has a token; never which."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return "unknown: huggingface_hub is not installed"
    known: Callable[[], Any] = get_token
    return "yes" if known() else "no (needed for gated models and to publish: hf auth login)"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
