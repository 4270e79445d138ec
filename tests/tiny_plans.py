"""Plans by the paper's rule, of candidates that are made up."""

from collections.abc import Sequence

from trunkline.train.candidates import Candidate
from trunkline.train.contest import PlanRequest, contest_of
from trunkline.train.plan import Plan, plan_contest


def rule_plan(candidates: Sequence[Candidate], *, min_gain: float, n_layers: int) -> Plan:
    """The branch of each run lies in ``/runs/<run id>``."""
    folders = {c.run_id: f"/runs/{c.run_id}" for c in candidates}
    contest = contest_of(candidates, backbone="tiny", n_layers=n_layers, branch_folders=folders)
    return plan_contest(contest, PlanRequest(min_gain=min_gain))
