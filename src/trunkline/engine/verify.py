"""Whether a bundle is whole and still answers as it did when its branches were written."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trunkline.bundle.golden import TOLERANCE_INT8, Golden
from trunkline.bundle.store import open_bundle
from trunkline.core.errors import VerificationError
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Encoded
from trunkline.engine.backends.base import Backend, BackendName, Precision
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.runner import Runner
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk, load_branch, load_trunk
from trunkline.model.decode import probabilities

_ROOM: Mapping[Precision, float] = {"fp32": 1.0, "bf16": 3.0, "fp16": 3.0, "int8": math.inf}
"""How many times the tolerance a classifier may differ that gives the same label."""


@dataclass(frozen=True, slots=True)
class VerifiedTask:
    """One task's golden inputs, replayed.

    Attributes:
        task: The task's name.
        branch: The branch's digest.
        n_inputs: How many golden inputs were run.
        largest_difference: Largest absolute difference of a logit; of a probability in precisions below fp32.
        tolerance: What was allowed.
    """

    task: str
    branch: str
    n_inputs: int
    largest_difference: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A bundle that passed.

    Attributes:
        path: Its folder.
        trunk_digest: The last value of its chain.
        n_files: How many files were read and compared with their digests, the manifest included.
        tasks: What each task's golden inputs gave.
    """

    path: Path
    trunk_digest: str
    n_files: int
    tasks: tuple[VerifiedTask, ...]

    @property
    def largest_difference(self) -> float:
        """Largest absolute difference of a logit over all tasks; 0 where there are none."""
        return max((task.largest_difference for task in self.tasks), default=0.0)


def verify(path: Path, *, backend_name: BackendName | None = None) -> VerifyReport:
    """Check every file of a bundle and replay the golden inputs, one at a time, on the CPU in fp32.

    Args:
        path: The bundle's folder; it is only read.
        backend_name: Who runs them; None takes OpenVINO.

    Raises:
        VerificationError: A task answers otherwise than it did; the message names task, input and difference.
        BundleError: A file is missing, damaged or foreign (see `trunkline.bundle.store`).
    """
    bundle = open_bundle(path)
    stored = bundle.trunk()
    branches = [bundle.branch(task) for task in bundle.manifest.tasks]  # All damage is found before anything is run.
    backend = choose_backend(backend_name, precision="fp32")
    trunk = load_trunk(stored, backend, exits={branch.spec.exit_layer for branch in branches})
    tasks = tuple(
        replay(branch.golden, load_branch(branch, stored.config, backend), trunk, backend) for branch in branches
    )
    entries = bundle.manifest.tasks.values()
    n_files = 1 + len(bundle.manifest.trunk.files) + sum(len(entry.files) for entry in entries)
    n_files += (bundle.manifest.trunk.ranges is not None) + sum(entry.ranges is not None for entry in entries)
    return VerifyReport(path=path, trunk_digest=stored.chain[-1], n_files=n_files, tasks=tasks)


def replay(
    golden: Golden,
    loaded: LoadedBranch,
    trunk: LoadedTrunk,
    backend: Backend,
    *,
    most_tokens: int = 1,
    before_each: Callable[[], None] = lambda: None,
) -> VerifiedTask:
    """Run a branch's golden inputs and compare what comes with what is stored.

    Below fp32 a classifier that gives the same label may differ by more: in bf16 and fp16 by `_ROOM` times the
    tolerance, because a text that it is unsure of doubles what rounding does; in int8 by anything.

    Args:
        golden: Of the branch.
        loaded: The branch, ready to run.
        trunk: Ready to run, with a segment that ends at the branch's exit.
        backend: Compiled both.
        most_tokens: Inputs are run together as long as they have no more tokens; 1 runs each alone.
        before_each: Is called before each run, and may let others go first.

    Raises:
        VerificationError: It answers otherwise than it did, or there is no tolerance for the backend's precision.
    """
    spec = loaded.spec
    precision: Precision = "int8" if "int8" in loaded.form else backend.precision
    tolerances = {**golden.tolerance, "int8": TOLERANCE_INT8}
    if precision not in tolerances:
        raise VerificationError(
            f"task {spec.task!r}: its golden inputs have no tolerance for {precision!r}; there is one for "
            f"{', '.join(sorted(golden.tolerance)) or 'nothing'}; write the branch anew"
        )
    runner = Runner(backend)
    found: list[np.ndarray] = []
    for rows in _together(trunk.tokenizer.encode(golden.examples(), max_length=spec.max_length), most_tokens):
        before_each()
        (ran,) = runner.run(trunk, rows, {loaded: np.arange(len(rows))})
        found += [logits.reshape(-1, spec.n_outputs) for logits in ran.logits]
    answers = [np.asarray(lines, dtype=np.float32) for lines in golden.logits]
    differences = [_difference(spec, *pair, precision) for pair in zip(answers, found, strict=True)]
    tolerance = tolerances[precision]
    wrong = [
        number
        for number, difference in enumerate(differences)
        if difference > tolerance * (_ROOM[precision] if _same_label(spec, answers[number], found[number]) else 1.0)
    ]
    if wrong:
        worst = max(wrong, key=lambda number: differences[number])
        raise VerificationError(
            f"task {spec.task!r}: golden input {worst} gives {_measured(spec, precision)} that differ by "
            f"{differences[worst]:.3g}; {tolerance:.3g} is allowed; the branch or this machine's libraries changed: "
            "write the branch anew"
        )
    return VerifiedTask(
        task=spec.task,
        branch=loaded.digest,
        n_inputs=len(found),
        largest_difference=max(differences),
        tolerance=tolerance,
    )


def _together(rows: Sequence[Encoded], most_tokens: int) -> Iterator[list[Encoded]]:
    """Rows in their order, as many at a time as have so many tokens; at least one."""
    held: list[Encoded] = []
    for row in rows:
        if held and sum(len(each.token_ids) for each in (*held, row)) > most_tokens:
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _same_label(spec: BranchSpec, expected: np.ndarray, found: np.ndarray) -> bool:
    is_label = spec.kind == "classification" and expected.shape == found.shape and np.isfinite(found).all()
    return bool(is_label and (expected.argmax(axis=1) == found.argmax(axis=1)).all())


def _difference(spec: BranchSpec, expected: np.ndarray, found: np.ndarray, precision: Precision) -> float:
    """Largest absolute difference to the stored answer; infinite where shapes differ or a value is NaN.

    In fp32 logits are compared, in narrower precisions what users see: probabilities, or a standardized score.
    """
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    if _measured(spec, precision) == "probabilities":
        shares = np.abs(probabilities(expected, spec) - probabilities(found, spec)).max(axis=1)
        # A tagger is judged over all tokens of a text: at some of them two tags may be about equally likely.
        return float(shares.mean())
    return float(np.abs(expected - found).max())


def _measured(spec: BranchSpec, precision: Precision) -> str:
    return "logits" if precision == "fp32" or spec.kind == "regression" else "probabilities"
