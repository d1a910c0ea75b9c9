"""A function called in several processes of a world, for tests."""

import gc
import importlib
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from torchtune.errors import TuneError

__all__ = ["run_distributed"]

R = TypeVar("R")


def run_distributed(
    function: Callable[..., R], processes: int, *args: Any, timeout: float = 120.0
) -> list[R]:
    """Call ``function(*args)`` in each of `processes` fresh processes; return the results by rank.

    The function finds ``RANK`` and ``WORLD_SIZE`` set and calls `torchtune.distributed.join_world`
    itself, as a recipe does; it may leave without closing its world. Each process has one thread
    and sees no GPU. With one process the function runs here, in a world of one. On Linux the
    processes are copies of one that has loaded torch, and they end with the caller's process.

    Args:
        function: Defined at the top of an importable module or of a file, such as a test.
        processes: How many.
        args: Picklable.
        timeout: Seconds after which all are killed.

    Raises:
        TuneError: The first failing process's own error if it was one of ours; else E-PROCESS
            with its traceback, or what it printed before it died.
        TimeoutError: `timeout` has passed.
    """
    if processes == 1:
        with _without_ranks():
            return [function(*args)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _write_call(folder, function, args)
        # The parent holds the store on a port of the system's choice: no two runs can collide.
        store = _open_store()
        workers = _start(folder, processes, store.port)
        try:
            _wait(workers, folder, time.monotonic() + timeout)
        finally:
            for worker in workers:
                _end(worker)
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(processes)]


RANK_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@contextmanager
def _without_ranks() -> Iterator[None]:
    kept = {key: os.environ.pop(key) for key in RANK_KEYS if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _open_store() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _write_call(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    module = sys.modules[function.__module__]
    where = {"path": sys.path, "module": module.__name__, "file": getattr(module, "__file__", None)}
    (folder / "where.json").write_text(json.dumps(where))
    (folder / "call.pickle").write_bytes(pickle.dumps((function, args)))


def _start(folder: Path, size: int, port: int) -> list["subprocess.Popen[bytes]"]:
    """Start what becomes all ranks, or each rank where a process cannot be copied safely."""
    if sys.platform == "linux":
        return [_python(f"_copies({str(folder)!r}, {size}, {os.getpid()})", folder / "all", port)]
    calls = [f"_become({str(folder)!r}, {rank}, {size})" for rank in range(size)]
    return [_python(call, folder / str(rank), port) for rank, call in enumerate(calls)]


def _python(call: str, place: Path, port: int) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    code = f"from torchtune.distributed import processes; processes.{call}"
    with place.with_suffix(".output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(worker: "subprocess.Popen[bytes]") -> None:
    """Kill a process and its copies."""
    if worker.poll() is None and os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    worker.kill()
    worker.wait()


def _wait(workers: Sequence["subprocess.Popen[bytes]"], folder: Path, deadline: float) -> None:
    while any(worker.poll() is None for worker in workers):
        if any(worker.returncode for worker in workers):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"the processes were still running\n{_output(folder)}")
        time.sleep(0.01)
    if any(worker.returncode for worker in workers):
        raise _first_error(folder)


def _first_error(folder: Path) -> TuneError:
    # Peers of a failed process fail after it, when their collectives break.
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        error: TuneError = pickle.loads(errors[0].read_bytes())
        return error
    return TuneError("E-PROCESS", f"a process died\n{_output(folder)}")


def _output(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.output")))


def _copies(name: str, size: int, caller: int) -> NoReturn:
    """Become all ranks: load torch once, and go on in a copy for each; end when `caller` does."""
    importlib.import_module("torch.distributed.fsdp")
    gc.freeze()  # so that no copy has to write where this process's objects lie
    living, failed = {_copy(name, rank, size) for rank in range(size)}, False
    while living and not failed:
        number, status = os.waitpid(-1, os.WNOHANG)
        living.discard(number)
        failed = bool(status) or os.getppid() != caller
        time.sleep(0 if number else 0.01)
    for number in living:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    os._exit(int(failed))


def _copy(name: str, rank: int, size: int) -> int:
    if number := os.fork():
        return number
    output = os.open(Path(name, f"{rank}.output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _become(name, rank, size)


def _become(name: str, rank: int, size: int) -> NoReturn:
    values = (rank, size, rank, size)
    os.environ.update({key: str(value) for key, value in zip(RANK_KEYS, values, strict=True)})
    _work(name, str(rank))


def _work(name: str, rank: str) -> NoReturn:
    folder = Path(name)
    try:
        function, args = _read_call(folder)
        _write(folder / f"{rank}.result", function(*args))
        _leave()
    except TuneError as error:
        _write(folder / f"{rank}.error", error)
    except BaseException:  # whatever it was, it is raised again by the parent
        text = f"rank {rank} failed\n{traceback.format_exc()}"
        _write(folder / f"{rank}.error", TuneError("E-PROCESS", text))
    else:
        _flush()
        os._exit(0)  # gloo's threads can abort a tidy exit, after all work is done
    os._exit(1)  # at once: a tidy exit would wait for peers that wait for this process


def _read_call(folder: Path) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    where = json.loads((folder / "where.json").read_text())
    sys.path[:] = where["path"]
    if where["file"] and not _is_importable(where["module"], where["file"]):
        _load_file(where["module"], where["file"])
    function, args = pickle.loads((folder / "call.pickle").read_bytes())
    return function, args


def _is_importable(module: str, file: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin == file


def _load_file(module: str, file: str) -> None:
    """Make `module` importable by its name, as pytest does for files outside of packages."""
    parents = module.split(".")[:-1]
    for count in range(1, len(parents) + 1):
        parent = ".".join(parents[:count])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    # A script's own name is __main__; under another one its guarded part does not run.
    spec = importlib.util.spec_from_file_location(module.replace("__main__", "__script__"), file)
    if spec is None or spec.loader is None:
        raise TuneError("E-PROCESS", f"{file} cannot be loaded")
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])


def _write(path: Path, value: object) -> None:
    aside = path.with_suffix(".aside")
    aside.write_bytes(pickle.dumps(value))
    aside.replace(path)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()  # a process that leaves early makes gloo abort in its peers
        dist.destroy_process_group()
