"""The copy of a run's folder on another machine (``s3://``, ``gs://``, ...), where nothing is renamed."""

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from torchtune.checkpoint.manifest import (
    LATEST,
    MANIFEST,
    STEP_FOLDER,
    parse_manifest,
    read_manifest,
    whole_steps,
)
from torchtune.data import cache_folder, remote_place
from torchtune.errors import TuneError

__all__ = ["RemoteFolder", "newest_remote_step"]

RECORDS = ("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "loss.png")


class RemoteFolder:
    """The remote side of a run's folder. A run works in a folder of this machine, and pushes it.

    A step folder goes file by file and its manifest last: without one, or with files of other sizes,
    it counts as not there. Methods are the main process's alone.

    Args:
        url: The folder, as fsspec has it.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._path = remote_place(self.url)

    def working_folder(self) -> Path:
        """Return the folder of this machine that the run works in, the same for the same URL.

        It lies in ``TUNE_CACHE`` (``~/.cache/torchtune``); processes on several machines need one
        that they share.
        """
        mark = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        return cache_folder() / "runs" / f"{PurePosixPath(self._path).name}-{mark}"

    def newest(self) -> str | None:
        """Return the name of the whole step that was saved last, if there is one."""
        return max(self._whole_steps(), default=(0, None))[1]

    def pull(self, folder: Path) -> None:
        """Bring the newest whole step, and what was logged up to it, unless `folder` is as new.

        Raises:
            TuneError: E-REMOTE-READ: the file system does not answer.
        """
        try:
            whole = self._whole_steps()
            if not whole:
                return
            order, name = max(whole)
            mine = [read_manifest(step) for step in whole_steps(folder)]
            if any(manifest and manifest.order >= order for manifest in mine):
                return
            self._bring(name, folder)
        except OSError as error:
            do = "look at the network and your rights"
            what = f"the folder cannot be read: {error}"
            raise TuneError("E-REMOTE-READ", what, where=self.url, do=do) from error

    def push(self, folder: Path) -> None:
        """Copy what is new in `folder`, and delete the steps that are no longer in it.

        Raises:
            OSError: A file could not be written; what was pushed whole before is intact.
        """
        steps = whole_steps(folder)
        there = {name: order for order, name in self._whole_steps()}
        for step in reversed(steps):
            manifest = read_manifest(step)
            if manifest and there.get(step.name) != manifest.order:
                self._push_step(step, [*manifest.files])
        if steps:
            self._fs.pipe_file(self._place(LATEST), f"{steps[0].name}\n".encode())
            self._delete({*there} - {step.name for step in steps})
        for name in RECORDS:
            if (folder / name).is_file():
                self._fs.put_file(str(folder / name), self._place(name))

    def _place(self, *parts: str) -> str:
        return "/".join((self._path, *parts))

    def _whole_steps(self) -> list[tuple[int, str]]:
        """Return order and name of the step folders that are whole."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self._path):
            return []
        found = []
        for place in self._fs.ls(self._path, detail=False):
            name = PurePosixPath(place).name
            if STEP_FOLDER.fullmatch(name) and (order := self._whole(name)):
                found.append((order, name))
        return found

    def _whole(self, name: str) -> int | None:
        place = self._place(name, MANIFEST)
        if not self._fs.exists(place):
            return None
        manifest = parse_manifest(self._fs.cat_file(place))
        entries = self._fs.find(self._place(name), detail=True)
        sizes = {key: int(entry["size"]) for key, entry in entries.items()}
        if manifest is None:
            return None
        files = manifest.files.items()
        fits = all(sizes.get(self._place(name, file)) == digest.size for file, digest in files)
        return manifest.order if fits else None

    def _push_step(self, step: Path, files: Collection[str]) -> None:
        if self._fs.exists(self._place(step.name)):  # an earlier one of that name, or half of one
            self._fs.rm(self._place(step.name), recursive=True)
        for file in (*files, MANIFEST):
            self._fs.makedirs(
                str(PurePosixPath(self._place(step.name, file)).parent), exist_ok=True
            )
            self._fs.put_file(str(step / file), self._place(step.name, file))

    def _delete(self, names: Collection[str]) -> None:
        for name in names:
            self._fs.rm_file(self._place(name, MANIFEST))  # first, so that no half of it is found
            self._fs.rm(self._place(name), recursive=True)

    def _bring(self, name: str, folder: Path) -> None:
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for place in self._fs.find(self._place(name)):
            file = partial / PurePosixPath(place).relative_to(self._place(name))
            file.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(place, str(file))
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)
        for record in RECORDS:
            if self._fs.exists(self._place(record)):
                self._fs.get_file(self._place(record), str(folder / record))


def newest_remote_step(url: str) -> str:
    """Return the URL of the newest whole step in a run's remote folder, or `url` itself without one."""
    remote = RemoteFolder(url)
    name = remote.newest()
    return f"{remote.url}/{name}" if name else url
