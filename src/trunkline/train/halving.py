"""Successive halving over one storage: Optuna keeps the trials, proposes further ones and prunes. No torch.

The storage is a journal file beside the ledger, or any database that Optuna knows (PostgreSQL for many machines).
What a trial's run measured stands in the ledger; the storage has a copy of the figure that pruning looks at.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from trunkline.core.errors import TrainingError
from trunkline.core.specs import Pooling
from trunkline.train.choices import Choice, teacher_layers

JOURNAL = "search.journal"
RATE_RANGE = (0.25, 4.0)
EPOCH_RANGE = (1, 10)
TEMPERATURE_RANGE = (1.0, 8.0)
Read: TypeAlias = Callable[[Mapping[str, Any]], Choice | None]


class BestHalf(BasePruner):
    """Keeps the better half of the trials that measured the same step; to be asked once all of them have.

    Successive halving (Jamieson and Talwalkar 2016); every rung is waited for, which costs least where workers are few.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial is among the worse half at its last step."""
        step, every = trial.last_step, range(len(study.get_trials(deepcopy=False)))
        return step is not None and trial.number not in better_half(study, step, among=every)


def better_half(study: Study, n_rows: int, *, among: Collection[int]) -> set[int]:
    """Numbers of the better half of some trials, by what they reached with so many rows; a tie goes to the earlier.

    Args:
        study: Whose trials.
        n_rows: Learned from; trials that were not measured with so many are not among the better.
        among: Numbers of the trials that are compared.
    """
    trials = study.get_trials(deepcopy=False)
    rivals = [each for each in trials if each.number in among and n_rows in each.intermediate_values]
    order = sorted(rivals, key=lambda each: (-each.intermediate_values[n_rows], each.number))
    return {each.number for each in order[: max(1, len(order) // 2)]}


def teacher_space(n_layers: int, poolings: tuple[Pooling, ...]) -> dict[str, BaseDistribution]:
    """What of a teacher is searched."""
    layers = teacher_layers(n_layers)
    return {
        "own_layers": IntDistribution(layers[0], layers[-1]),
        "pooling": CategoricalDistribution(poolings),
        "epochs": IntDistribution(*EPOCH_RANGE),
        "rate_factor": FloatDistribution(*RATE_RANGE, log=True),
    }


def student_space(n_layers: int, student_layers: tuple[int, ...]) -> dict[str, BaseDistribution]:
    """What of a student is searched."""
    return {
        "exit_layer": IntDistribution(0, n_layers),
        "own_layers": IntDistribution(min(student_layers), max(student_layers)),
        "init": CategoricalDistribution(("teacher", "backbone")),
        "epochs": IntDistribution(*EPOCH_RANGE),
        "rate_factor": FloatDistribution(*RATE_RANGE, log=True),
        "kd_temperature": FloatDistribution(*TEMPERATURE_RANGE, log=True),
        "alpha": FloatDistribution(0.0, 1.0),
    }


def read_choice(params: Mapping[str, Any], *, like: Choice, n_layers: int) -> Choice | None:
    """The choice that a trial's parameters stand for; None where the layers do not fit.

    Args:
        params: By name.
        like: What they do not say is as here.
        n_layers: Of the backbone.
    """
    exit_layer = params.get("exit_layer", n_layers - params["own_layers"])
    if exit_layer + params["own_layers"] > n_layers:
        return None
    return msgspec.structs.replace(
        like, exit_layer=exit_layer, **{k: v for k, v in params.items() if k != "exit_layer"}
    )


def open_study(runs: Path, name: str, *, storage: str | None) -> Study:
    """A study by name, made when new.

    Args:
        runs: The runs folder, where the journal lies.
        name: Of the study; says the task, the stage and what the rows are.
        storage: A database URL; None takes the journal.

    Raises:
        TrainingError: The storage cannot be opened.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        kept = JournalStorage(JournalFileBackend(str(runs / JOURNAL))) if storage is None else RDBStorage(storage)
        return optuna.create_study(
            study_name=name,
            storage=kept,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=0),
            pruner=BestHalf(),
        )
    except (OSError, ImportError, ValueError, RuntimeError, SQLAlchemyError) as error:
        raise TrainingError(
            f"search storage {storage or runs / JOURNAL}: cannot be opened ({error}); check the address and that its "
            "driver is installed (PostgreSQL: pip install 'psycopg[binary]')"
        ) from error


def propose(
    study: Study, choices: Sequence[Choice], *, space: Mapping[str, BaseDistribution], n_more: int, read: Read
) -> list[tuple[Trial, Choice]]:
    """One trial a choice, in their order, then what Optuna proposes; what the storage has already is taken up again.

    Args:
        study: From `open_study`.
        choices: The prior's.
        space: Distribution of each parameter: the fields of a `Choice` that are searched.
        n_more: How many trials Optuna may propose beside them.
        read: Gives the choice that parameters stand for; None where they stand for none.
    """
    there = study.get_trials(deepcopy=False)
    taken: list[tuple[Trial, Choice]] = []
    for choice in choices:
        wanted = {name: getattr(choice, name) for name in space}
        found = next((trial for trial in there if trial.params == wanted), None)
        if found is None:
            study.enqueue_trial(wanted)
            taken.append((study.ask(dict(space)), choice))
        else:
            taken.append((_again(study, found), choice))
    listed = {trial.number for trial, _ in taken}
    more = [trial for trial in there if trial.number not in listed and set(trial.params) == set(space)]
    proposals = [_again(study, trial) for trial in more]
    proposals.extend(study.ask(dict(space)) for _ in range(len(proposals), n_more))
    for trial in proposals[:n_more]:
        choice_or_none = read(trial.params)
        if choice_or_none is None:
            with suppress(ValueError, RuntimeError):  # Told by another worker.
                study.tell(trial, state=TrialState.PRUNED)
        else:
            taken.append((trial, choice_or_none))
    return taken


def report(trial: Trial, points: float, *, n_rows: int) -> None:
    """Tell the storage what a trial reached with so many rows; once is enough."""
    if n_rows not in trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        with suppress(RuntimeError):  # A trial that another worker has finished takes no more reports.
            trial.report(points, step=n_rows)


def finish(trial: Trial, points: float, *, pruned: bool) -> None:
    """Tell the storage that a trial is over; another worker may have."""
    with suppress(ValueError, RuntimeError):
        trial.study.tell(trial, points, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)


def _again(study: Study, found: FrozenTrial) -> Trial:
    return Trial(study, found._trial_id)  # noqa: SLF001 - how Optuna itself takes a trial up again
