"""Successive halving: which trials stay, what Optuna proposes beside them, and the storage that lists them. No torch.

Who stays is decided from what the ledger says. The storage, a journal file beside the ledger or any database that
Optuna knows (PostgreSQL for many machines), is a copy for people and other programs; it decides nothing.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from trunkline.core.errors import TrainingError
from trunkline.train.choices import Choice
from trunkline.train.spec import RunRecord

JOURNAL = "search.journal"
RUNG_SHARES = (1 / 16, 1 / 8)
RUNG_ROWS = (256, 512)
"""A rung learns from this share of the rows, and from no fewer than so many."""
NOISE_SHARE = 0.5
"""Of the standard error of a share on the selection rows: what is closer than this to the best counts as equal."""
RATE_RANGE = (0.25, 4.0)
TEMPERATURE_RANGE = (1.0, 8.0)
N_ASKED = 20
"""So often Optuna is asked for a proposal that fits."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A trial on the rows of one rung.

    Attributes:
        choice: What was tried.
        record: Its run.
        worth: Its points, less what its layers must be worth.
    """

    choice: Choice
    record: RunRecord
    worth: float


def rungs_of(n_rows: int) -> list[int]:
    """How many rows each rung learns from; none where a part of so few rows says nothing."""
    rungs = [max(least, round(share * n_rows)) for share, least in zip(RUNG_SHARES, RUNG_ROWS, strict=True)]
    return [rows for rows in rungs if rows < n_rows // 2]


def by_worth(worth: Sequence[float], *, margin: float = 0.0) -> list[int]:
    """Indices, the most worth first.

    Args:
        worth: Of each.
        margin: Those that come so close to the best count as equal to it, and the earlier one goes first. Without it
            the luckiest of many trials on few selection rows would win against what mostly is best.
    """
    least = max(worth) - margin
    return sorted(range(len(worth)), key=lambda i: (-min(worth[i], least), i))


def noise(points: float, n_rows: int) -> float:
    """Half of the standard error of a share that was measured on so many rows; a rule of thumb for other metrics.

    Args:
        points: The metric itself, 0 to 100; what lies outside counts as the nearest share that varies.
        n_rows: Measured on.
    """
    share = min(max(points / 100, 0.01), 0.99)
    return NOISE_SHARE * 100 * math.sqrt(share * (1 - share) / n_rows)


def fate_of(each: Measured, measured: Sequence[Measured], standing: Sequence[Choice]) -> str:
    """What became of a trial at a rung, and why.

    Args:
        each: The trial.
        measured: All of the rung.
        standing: Those that go on.
    """
    reached = f"worth {each.worth:.1f}" if each.choice.stage == "student" else f"{each.worth:.1f}"
    if each.choice in standing:
        return f"kept: {reached}"
    best = max(measured, key=lambda other: other.worth)
    if each is best:
        return f"dropped: {reached}, within the noise of an earlier choice, or too dear to train out"
    return f"dropped: {reached}, the best is {best.worth:.1f} ({best.choice})"


def space_of(choices: Sequence[Choice]) -> dict[str, BaseDistribution]:
    """The fields that a stage searches, wide enough for these choices; a teacher's exit follows from its layers."""

    def spread(name: str, around: tuple[float, float]) -> tuple[float, float]:
        values = [getattr(choice, name) for choice in choices]
        return min(around[0], *values), max(around[1], *values)

    def counts(name: str) -> IntDistribution:
        values = [getattr(choice, name) for choice in choices]
        return IntDistribution(min(values), max(values))

    space: dict[str, BaseDistribution] = {
        "own_layers": counts("own_layers"),
        "epochs": IntDistribution(1, max(choice.epochs for choice in choices)),
        "rate_factor": FloatDistribution(*spread("rate_factor", RATE_RANGE), log=True),
    }
    if choices[0].stage == "teacher":
        return space | {"pooling": CategoricalDistribution(("cls", "mean"))}
    return space | {
        "exit_layer": counts("exit_layer"),
        "init": CategoricalDistribution(("teacher", "backbone")),
        "kd_temperature": FloatDistribution(*spread("kd_temperature", TEMPERATURE_RANGE), log=True),
        "alpha": FloatDistribution(0.0, 1.0),
    }


def propose(measured: Mapping[Choice, float], *, fits: Callable[[Choice], bool]) -> Choice | None:
    """What a tree-structured Parzen estimator would try next; the same for the same figures.

    Args:
        measured: What each choice is worth, at one rung.
        fits: Whether a choice may be tried; others are asked for again.

    Returns:
        None where nothing that fits was found.
    """
    choices = list(measured)
    # Exit and length together, or most pairs would not fit the backbone.
    places = {f"{choice.exit_layer} + {choice.own_layers}": choice for choice in choices}
    space = {name: each for name, each in space_of(choices).items() if name not in ("exit_layer", "own_layers")}
    space["place"] = CategoricalDistribution(tuple(places))
    sampler = TPESampler(seed=len(choices), n_startup_trials=min(10, len(choices)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for choice, worth in measured.items():
        params = {name: getattr(choice, name) for name in space if name != "place"}
        params["place"] = f"{choice.exit_layer} + {choice.own_layers}"
        study.add_trial(create_trial(value=worth, params=params, distributions=space))
    for _ in range(N_ASKED):
        asked: dict[str, Any] = study.ask(space).params
        proposal = msgspec.structs.replace(places[asked.pop("place")], **asked)
        if proposal not in measured and fits(proposal):
            return proposal
    return None


class TrialList:
    """The trials of one stage in the storage; two processes that search list each choice once.

    Args:
        runs: The runs folder, where the journal lies.
        name: Of the study; says the task, the stage and all that the figures depend on.
        storage: A database URL; None takes the journal.

    Raises:
        TrainingError: The storage cannot be opened.
    """

    def __init__(self, runs: Path, name: str, *, storage: str | None) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self._where = f"search storage {storage or runs / JOURNAL}"
        self._lock = runs / "search.lock"
        self._trials: dict[Choice, Trial] = {}
        with self._at_storage():
            kept = JournalStorage(JournalFileBackend(str(runs / JOURNAL))) if storage is None else RDBStorage(storage)
            self._study: Study = optuna.create_study(
                study_name=name, storage=kept, direction="maximize", load_if_exists=True
            )

    def begin(self, choices: Sequence[Choice]) -> None:
        """List choices as running; those that are there are taken up again.

        Args:
            choices: Of one stage.

        Raises:
            TrainingError: The storage cannot be used, or the lock beside the ledger cannot be taken.
        """
        space = space_of(choices)
        # One process at a time, or two would list the same choice.
        with self._at_storage(), FileLock(self._lock):
            there = self._study.get_trials(deepcopy=False)
            for choice in choices:
                if self._found(there, choice, space) is None:
                    # Not through the queue: what a kill left waiting there would be taken for the next choice.
                    params = _params(choice, space)
                    self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=space))
            there = self._study.get_trials(deepcopy=False)
            for choice in choices:
                found = self._found(there, choice, space)
                if found is not None:
                    # How Optuna itself takes a trial up again.
                    self._trials[choice] = Trial(self._study, found._trial_id)  # noqa: SLF001

    def report(self, choice: Choice, worth: float, *, n_rows: int) -> None:
        """Write what a choice reached with so many rows; a trial that another worker has finished takes no more.

        Raises:
            TrainingError: The storage cannot be used.
        """
        trial = self._trials[choice]
        with self._at_storage():
            there = self._study.get_trials(deepcopy=False)[trial.number]
            if n_rows not in there.intermediate_values:
                with suppress(RuntimeError):
                    trial.report(worth, step=n_rows)

    def finish(self, choice: Choice, worth: float, *, pruned: bool) -> None:
        """Write that a trial is over; another worker may have.

        Raises:
            TrainingError: The storage cannot be used.
        """
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        with self._at_storage(), suppress(RuntimeError):
            # A pruned trial is worth what it last reported.
            told = None if pruned else worth
            self._study.tell(self._trials[choice], told, state=state, skip_if_finished=True)

    @staticmethod
    def _found(there: Sequence[FrozenTrial], choice: Choice, space: Mapping[str, object]) -> FrozenTrial | None:
        wanted = _params(choice, space)
        return next((trial for trial in there if trial.params == wanted), None)

    @contextmanager
    def _at_storage(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ImportError, ValueError, RuntimeError, SQLAlchemyError, StorageInternalError) as error:
            raise TrainingError(
                f"{self._where}: cannot be used ({error}); check the address, the runs folder {self._lock.parent}, and "
                "that the storage's driver is installed (PostgreSQL: pip install 'psycopg[binary]')"
            ) from error


def _params(choice: Choice, space: Mapping[str, object]) -> dict[str, Any]:
    return {name: getattr(choice, name) for name in space}
