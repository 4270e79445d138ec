"""What a search is counted and will cost: full fine-tuning to compare with, the frozen trunk, and runs to come.

The trunk is counted as if nothing had been cached, whoever cached it.
"""

from collections.abc import Sequence

from trunkline.model.cost import branch_flops, folds, layer_flops, sizes_of
from trunkline.train.bench import Workbench
from trunkline.train.cache import row_key
from trunkline.train.choices import Choice
from trunkline.train.jobs import run_fields
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import planned_flops
from trunkline.train.search_runs import SearchRuns
from trunkline.train.spec import CacheDtype, Preset, RunSpec


def full_flops(bench: Workbench, task: PreparedTask, preset: Preset) -> float:
    """What one full fine-tuning of a task costs, its measurements included."""
    spec = RunSpec(
        **run_fields(bench, task, seed=0, pooling=task.spec.pooling),
        arm="full",
        exit_layer=0,
        own_layers=bench.backbone.config.n_layers,
        hyperparameters=preset.full,
    )
    return planned_flops(task, spec, sizes_of(bench.backbone.config))


class TrunkAccount:
    """Fills the cache for a search and counts what that costs from nothing, whoever filled it before.

    Args:
        bench: Whose cache and trunk.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.flops = 0.0
        self.seconds = 0.0
        self._sizes = sizes_of(bench.backbone.config)
        self._kept: dict[tuple[int, CacheDtype], set[bytes]] = {}
        self._keys: dict[Split, list[bytes]] = {}
        self._bytes: dict[tuple[Split, int, CacheDtype], int] = {}
        self._prices: dict[tuple[Split, frozenset[int], CacheDtype], float] = {}

    def fill(self, rows: Split, exits: Sequence[int], *, dtype: CacheDtype) -> None:
        """Have the states of rows at several exits, in one pass up the trunk; what does not fit is left to the runs.

        Args:
            rows: Whose states.
            exits: Where, the most wanted first.
            dtype: Of the states.
        """
        bench, fitting = self.bench, self.fitting(rows, exits, dtype=dtype)
        if not fitting:
            return
        new = self._new(rows, fitting, dtype)
        before = bench.cache.seconds
        bench.cache.fill(bench.trunk, bench.backbone, [rows.rows[i] for i in new], exits=fitting, dtype=dtype)
        self.seconds += bench.cache.seconds - before
        self.flops += self.price(rows, fitting, dtype=dtype)
        for exit_layer in fitting:
            self._kept.setdefault((exit_layer, dtype), set()).update(self._keys_of(rows))
        self._bytes.clear()
        self._prices.clear()

    def fitting(self, rows: Split, exits: Sequence[int], *, dtype: CacheDtype) -> list[int]:
        """Those of the exits that the cache has room for, one after the other; arguments as of `fill`."""
        room, found = self.bench.cache.room_bytes(), []
        for exit_layer in exits:
            n_bytes = self._missing_bytes(rows, exit_layer, dtype)
            if n_bytes <= room:
                room -= n_bytes
                found.append(exit_layer)
        return found

    def price(self, rows: Split, exits: Sequence[int], *, dtype: CacheDtype) -> float:
        """What `fill` would count now if all exits fitted; arguments as of `fill`."""
        asked = (rows, frozenset(exits), dtype)
        if asked not in self._prices:
            lengths = [len(rows.rows[i].token_ids) for i in self._new(rows, exits, dtype)]
            self._prices[asked] = max(exits) * layer_flops(self._sizes, lengths) if lengths else 0.0
        return self._prices[asked]

    def holds(self, rows: Split, exit_layer: int, *, dtype: CacheDtype) -> bool:
        """Whether all of these rows are counted here."""
        return self._kept.get((exit_layer, dtype), set()).issuperset(self._keys_of(rows))

    def _new(self, rows: Split, exits: Sequence[int], dtype: CacheDtype) -> list[int]:
        """Indices of the distinct rows that are not counted yet at one of the exits."""
        kept = [self._kept.get((exit_layer, dtype), set()) for exit_layer in exits]
        first = {key: i for i, key in reversed(list(enumerate(self._keys_of(rows))))}
        return sorted(i for key, i in first.items() if any(key not in there for there in kept))

    def _keys_of(self, rows: Split) -> list[bytes]:
        if rows not in self._keys:
            self._keys[rows] = [row_key(row) for row in rows.rows]
        return self._keys[rows]

    def _missing_bytes(self, rows: Split, exit_layer: int, dtype: CacheDtype) -> int:
        asked = (rows, exit_layer, dtype)
        if asked not in self._bytes:
            cache = self.bench.cache
            self._bytes[asked] = cache.missing_bytes(self.bench.backbone, rows.rows, exit_layer=exit_layer, dtype=dtype)
        return self._bytes[asked]


class Estimate:
    """What runs will cost before any of them is run; for whole runs, and rungs of known choices, never too little.

    Args:
        runs: What choices are as runs.
        trunk: What of the frozen trunk is counted already.
    """

    def __init__(self, runs: SearchRuns, trunk: TrunkAccount) -> None:
        self._runs = runs
        self._trunk = trunk
        self._answers: dict[tuple[str, int, str, int | None], float] = {}

    def final(self, choice: Choice, teacher: Choice | None) -> float:
        """Of training a choice on all rows, once a seed; the teacher's answers are not in it.

        Args:
            choice: A teacher or a student.
            teacher: Of a student.
        """
        n_seeds = len(self._runs.request.seeds)
        return n_seeds * self._runs.flops(choice, None) + self._frozen([choice], None, teacher, n_runs=n_seeds)

    def pair(self, teacher: Choice, students: Sequence[Choice]) -> float:
        """Of training a teacher and then students that read where it does on all rows, everything included.

        Args:
            teacher: What is trained first.
            students: None of them, or what is trained after it.
        """
        if not students:
            return self.final(teacher, None)
        n_seeds, both = len(self._runs.request.seeds), [*students, teacher]
        own = n_seeds * sum(self._runs.flops(choice, None) for choice in both)
        return own + self.answers(students[0], teacher, None) + self._frozen(both, None, teacher, n_runs=n_seeds)

    def answers(self, student: Choice, teacher: Choice, n_rows: int | None) -> float:
        """Of what a teacher answers to the rows that its students learn from, once for all of them.

        Args:
            student: Any of them.
            teacher: Its own layers answer.
            n_rows: Learned from; None for all.
        """
        key = (student.stage, teacher.own_layers, teacher.pooling, n_rows)
        if key not in self._answers:
            folded = folds(self._runs.task.spec.kind, teacher.pooling)
            lengths = self._runs.rows(student, n_rows).lengths
            own = branch_flops(self._runs.sizes, lengths, own_layers=teacher.own_layers, folded=folded)
            self._answers[key] = own
        return self._answers[key]

    def rung(self, choices: Sequence[Choice], n_rows: int, teacher: Choice | None, *, count: int) -> float:
        """Of so many of these choices on so many rows, as dear as they are on average.

        Args:
            choices: Those that may still be in the race.
            n_rows: Learned from.
            teacher: Of students, whose answers are in it.
            count: How many of them are measured.
        """
        mean = sum(self._runs.flops(choice, n_rows) for choice in choices) / len(choices)
        answers = 0.0 if teacher is None else self.answers(choices[0], teacher, n_rows)
        return count * mean + answers + self._frozen(choices, n_rows, teacher, n_runs=1)

    def _frozen(self, choices: Sequence[Choice], n_rows: int | None, teacher: Choice | None, *, n_runs: int) -> float:
        """Trunk passes: one for all that the cache has room for, else one in every epoch and measurement."""
        total = 0.0
        for part in self._runs.parts(choices, n_rows, teacher):
            fitting = self._trunk.fitting(part.rows, part.exits, dtype=part.dtype)
            if fitting:
                total += self._trunk.price(part.rows, fitting, dtype=part.dtype)
            unheld = sum(choice.exit_layer for choice in choices if choice.exit_layer not in fitting)
            n_layers = n_runs * part.n_passes * unheld
            if teacher is not None and teacher.exit_layer in part.exits and teacher.exit_layer not in fitting:
                n_layers += teacher.exit_layer
            if n_layers:
                total += n_layers * layer_flops(self._runs.sizes, part.rows.lengths)
        return total
