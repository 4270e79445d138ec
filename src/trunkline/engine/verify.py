"""Whether a bundle is whole and still answers as it did when its branches were written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trunkline.bundle.manifest import deepest_exit
from trunkline.bundle.store import Bundle, StoredBranch, StoredTrunk, open_bundle
from trunkline.core.errors import VerificationError
from trunkline.model.branch import load_branch
from trunkline.model.golden_run import golden_logits
from trunkline.model.trunk import Trunk


@dataclass(frozen=True, slots=True)
class VerifiedTask:
    """One task's golden inputs, replayed.

    Attributes:
        task: The task's name.
        branch: The branch's digest.
        n_inputs: How many golden inputs were run.
        largest_difference: Largest absolute difference of a logit.
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


def verify(path: Path) -> VerifyReport:
    """Check every file of a bundle and replay the golden inputs, one at a time, on the CPU in fp32.

    Args:
        path: The bundle's folder; it is only read.

    Raises:
        VerificationError: A task answers otherwise than it did; the message names task, input and difference.
        BundleError: A file is missing, damaged or foreign (see `trunkline.bundle.store`).
    """
    bundle = open_bundle(path)
    stored = bundle.trunk()
    branches = [bundle.branch(task) for task in bundle.manifest.tasks]  # All damage is found before anything is run.
    trunk = Trunk.build(stored.config, stored.tensors, depth=deepest_exit(bundle.manifest))
    tasks = tuple(_replay(bundle, branch, trunk, stored) for branch in branches)
    n_files = 1 + len(bundle.manifest.trunk.files) + sum(len(entry.files) for entry in bundle.manifest.tasks.values())
    return VerifyReport(path=path, trunk_digest=stored.chain[-1], n_files=n_files, tasks=tasks)


def _replay(bundle: Bundle, branch: StoredBranch, trunk: Trunk, stored: StoredTrunk) -> VerifiedTask:
    task, golden = branch.spec.task, branch.golden
    precision = bundle.manifest.trunk.precision
    if precision not in golden.tolerance:
        raise VerificationError(
            f"task {task!r}: its golden inputs have no tolerance for {precision!r}; there is one for "
            f"{', '.join(sorted(golden.tolerance)) or 'nothing'}; write the branch anew"
        )
    module = load_branch(branch.spec, stored.config, branch.tensors)
    found = golden_logits(trunk, module, stored.tokenizer, branch.spec, golden.examples())
    differences = [_difference(branch, number, values) for number, values in enumerate(found)]
    worst, tolerance = int(np.argmax(differences)), golden.tolerance[precision]
    if differences[worst] > tolerance:
        raise VerificationError(
            f"task {task!r}: golden input {worst} gives logits that differ by {differences[worst]:.3g}; "
            f"{tolerance:.3g} is allowed; the branch or this machine's libraries changed: write the branch anew"
        )
    return VerifiedTask(
        task=task,
        branch=branch.digest,
        n_inputs=len(found),
        largest_difference=differences[worst],
        tolerance=tolerance,
    )


def _difference(branch: StoredBranch, number: int, found: np.ndarray) -> float:
    """Largest absolute difference to the stored logits; infinite where shapes differ or a value is NaN."""
    stored = np.asarray(branch.golden.logits[number], dtype=np.float32)
    if stored.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(stored - found).max())
