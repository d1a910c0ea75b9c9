"""What tests of the plug-ins share: the real recipe, and a reader of wandb's offline files."""

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torchtune.testing import tiny_checkpoint
from warm_python import WarmPython

Sft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> Sft:
    """Run ``tune run sft WORDS`` on a tiny model; `.folder` is where, `.run` its output folder."""
    if find_spec("torchtune_recipes") is None:
        pytest.skip("needs torchtune-recipes, whose recipe it runs")
    folder = tmp_path_factory.mktemp("sft")
    tiny_checkpoint(folder / "my-model")
    rows = [{"instruction": f"Repeat: {n}", "output": str(n)} for n in range(24)]
    (folder / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def sft(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = ["--checkpoint=my-model", "--dataset=my.jsonl", "--output-dir=run", "dtype=fp32"]
        there = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        main = "torchtune_recipes.cli.main"
        return warm_python.run(main, "run", "sft", *given, *words, cwd=folder, env=there)

    sft.folder, sft.run = folder, folder / "run"  # type: ignore[attr-defined]
    return sft


@pytest.fixture(scope="session")
def wandb_records() -> Callable[[Path], list[Any]]:
    """A function that returns what wandb keeps of the offline runs in a folder, in order."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    def wandb_records(folder: Path) -> list[Any]:
        files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime)
        found = []
        for payload in (p for file in files for p in payloads(file.read_bytes())):
            found.append(Record())
            found[-1].ParseFromString(payload)
        return found

    return wandb_records


def payloads(data: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log, the format of wandb's offline files, after its header."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no record begins in the last bytes of a block
            place += 32768 - place % 32768
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""
