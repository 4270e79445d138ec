"""What a study of the paper asks for, and which records of a ledger are its own. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trunkline.model.backbone import Backbone
from trunkline.model.cost import EncoderSizes, sizes_of
from trunkline.train.candidates import best_partial, candidates_of, comparable
from trunkline.train.spec import RunRecord, RunSpec, TrainRequest, teachers_of


@dataclass(frozen=True, slots=True)
class Study:
    """What is to be reproduced.

    Attributes:
        backbone: Its name.
        backbone_digest: The last value of its trunk chain.
        sizes: Of the backbone.
        requests: Task name -> what is asked for it, in the order of the columns.
    """

    backbone: str
    backbone_digest: str
    sizes: EncoderSizes
    requests: Mapping[str, TrainRequest]

    @staticmethod
    def of(backbone: Backbone, requests: Mapping[str, TrainRequest]) -> "Study":
        """A study on a backbone that is at hand."""
        return Study(backbone.name, backbone.chain[-1], sizes_of(backbone.config), requests)


def asked_records(study: Study, records: Sequence[RunRecord]) -> list[RunRecord]:
    """Of a ledger's records those that the study asks for, on the rows that were asked for last.

    Of the students those whose teachers have the length that is chosen now: others were of a choice that has changed.
    """
    own = [r for r in records if r.spec.task in study.requests and r.spec.backbone_digest == study.backbone_digest]
    asked = [r for r in comparable(own) if _is_asked(r.spec, study.requests[r.spec.task])]
    chosen = {task: _teacher_layers(request, asked, task) for task, request in study.requests.items()}
    known = {r.run_id: r.spec for r in asked}
    return [
        r
        for r in asked
        if r.spec.arm != "student"
        or _is_taught(r.spec, study.requests[r.spec.task], layers=chosen[r.spec.task], known=known)
    ]


def _is_asked(spec: RunSpec, request: TrainRequest) -> bool:
    same_way = spec.selection == request.selection and spec.cache_dtype == request.cache_dtype
    if not same_way or spec.seed not in request.seeds or spec.fit_rows is not None or spec.transfer is not None:
        return False
    preset = request.preset
    if spec.arm != "student":
        asked = preset.full if spec.arm == "full" else preset.for_layers(spec.own_layers)
        return spec.hyperparameters == asked
    return (
        spec.hyperparameters == preset.student
        and spec.distillation == preset.distillation
        and spec.taught_by == request.label_teacher
    )


def _teacher_layers(request: TrainRequest, records: Sequence[RunRecord], task: str) -> int | None:
    """L of the teacher as it is chosen now; None until every L that may teach has a run."""
    partial = [r for r in records if r.spec.task == task and r.spec.arm == "partial"]
    teachers = teachers_of(request)
    if not teachers or not set(teachers) <= {r.spec.own_layers for r in partial}:
        return None
    return best_partial(candidates_of([r for r in partial if r.spec.own_layers in teachers])).own_layers


def _is_taught(spec: RunSpec, request: TrainRequest, *, layers: int | None, known: Mapping[str, RunSpec]) -> bool:
    """Whether a student's teachers are of the chosen length; a full fine-tuning has all layers, whatever is chosen."""
    teachers = [known.get(run_id) for run_id in spec.label_teachers]
    fitting = all(each is not None and (each.arm == "full" or each.own_layers == layers) for each in teachers)
    if not fitting or spec.init != "teacher":
        return fitting and layers is not None
    start = known.get(spec.init_from or "")
    return start is not None and start.own_layers == (request.init_layers or layers)
