"""The ledger of runs: append-only, one JSON line a finished run, the only truth about what was run.

A line is written whole and fsynced under a lock. A torn last line (the process was killed while writing) is
not a record: readers pass over it, and the next writer cuts it off.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from filelock import FileLock, Timeout

from trunkline.bundle.files import fsync_folder
from trunkline.bundle.store import read_branch
from trunkline.core.errors import BundleError, TrainingError
from trunkline.train.spec import RunRecord, RunSpec

Needed: TypeAlias = Literal["record", "branch", "model"]
"""What must still lie beside a record: nothing, its branch, or the kept weights of a full fine-tuning."""


class Ledger:
    """Records of finished runs in ``FOLDER/ledger.jsonl``.

    Args:
        folder: The runs folder; made by the first write.
        name: Of the file, where records alone are kept in another place.
    """

    def __init__(self, folder: Path, *, name: str = "ledger.jsonl") -> None:
        self.folder = folder
        self.path = folder / name

    def records(self) -> list[RunRecord]:
        """All records, in the order they were finished.

        Raises:
            TrainingError: The file cannot be read, or a whole line is not a record.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TrainingError(
                f"ledger {self.path}: cannot be read ({error.strerror or error}); check the folder and its permissions"
            ) from error
        return [self._decode(line, number) for number, line in enumerate(lines[:-1], start=1) if line]

    def find(self, spec: RunSpec, *, needed: Needed = "branch") -> RunRecord | None:
        """The latest record of an equal spec; None if there is none, or what is needed is gone or no longer the same.

        Args:
            spec: What was asked for.
            needed: What the record must come with.
        """
        run_id = spec.run_id
        latest = next((record for record in reversed(self.records()) if record.run_id == run_id), None)
        if latest is None or needed == "record":
            return latest
        if needed == "model" and not self.model_file(run_id).exists():
            return None
        return latest if latest.branch_digest in (None, self._branch_digest(run_id)) else None

    def is_running(self, run_id: str) -> bool:
        """Whether another process is at this run."""
        lock = FileLock(self.folder / "runs" / f"{run_id}.lock")
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False  # Nothing was run here yet.

    @contextmanager
    def running(self, run_id: str, *, on_wait: Callable[[], None]) -> Iterator[None]:
        """Held by the one process that runs this; another that asks for the same run waits and then finds its record.

        Args:
            run_id: Which run.
            on_wait: Called when another process is running it.

        Raises:
            TrainingError: The folder cannot be written.
        """
        lock = FileLock(self.folder / "runs" / f"{run_id}.lock")
        with self._writing():
            (self.folder / "runs").mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_wait()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def get(self, run_id: str) -> RunRecord:
        """The latest record with this id; a run whose branch was removed is run, and recorded, again.

        Raises:
            TrainingError: There is none.
        """
        for record in reversed(self.records()):
            if record.run_id == run_id:
                return record
        raise TrainingError(f"run {run_id!r} is not in {self.path}; run `trunkline train` again")

    def renew(self, record: RunRecord) -> None:
        """Record again that a run was asked for, if the task's latest record is of other rows, labels or selection.

        What was asked for last is what is planned.
        """
        latest = next((each for each in reversed(self.records()) if each.spec.task == record.spec.task), None)
        if latest is not None and latest.spec.variant != record.spec.variant:
            self.append(record)

    def make_folder(self) -> None:
        """Make the folder, so that what cannot be written is refused before a run and not after it.

        Raises:
            TrainingError: It cannot be made or written.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
            fsync_folder(self.folder)
            fsync_folder(self.folder.parent)

    def append(self, record: RunRecord) -> None:
        """Add one record; it is on disk when this returns.

        Raises:
            TrainingError: It cannot be written; a part of a line that is left is not read and cut off later.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
                _cut_torn_line(file.fileno())
                file.seek(0, os.SEEK_END)
                file.write(msgspec.json.encode(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def run_folder(self, run_id: str) -> Path:
        """Where a run's files lie."""
        return self.folder / "runs" / run_id

    def branch_folder(self, run_id: str) -> Path:
        """Where a run's branch lies, in the same form as inside a bundle."""
        return self.run_folder(run_id) / "branch"

    def model_file(self, run_id: str) -> Path:
        """Where the weights of a full fine-tuning lie, if they were kept."""
        return self.run_folder(run_id) / "model.safetensors"

    def _branch_digest(self, run_id: str) -> str | None:
        try:
            return read_branch(self.branch_folder(run_id)).digest
        except BundleError:
            return None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"ledger {self.path}: cannot be written ({error.strerror or error}); "
                "free space, or choose another folder"
            ) from error

    def _decode(self, line: bytes, number: int) -> RunRecord:
        try:
            return msgspec.json.decode(line, type=RunRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TrainingError(
                f"ledger {self.path} line {number}: not a run record ({error}); restore the file or remove the line"
            ) from error


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, size, 0)
    whole = content.rfind(b"\n") + 1
    if whole != size:
        os.ftruncate(descriptor, whole)
