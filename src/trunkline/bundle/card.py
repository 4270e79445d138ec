"""The model card of a branch: facts for the people who meet it later."""

from trunkline.core.specs import BranchSpec

_LABELS_SHOWN = 30


def model_card(spec: BranchSpec, *, n_parameters: int) -> str:
    """Markdown text of a branch's ``README.md``; equal branches give equal text.

    Args:
        spec: What the branch is.
        n_parameters: How many numbers its own layers and head have.
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(spec, n_parameters))
    return f"""# Branch `{spec.task}`

One task's own layers and head, for the trunk named below. Without that trunk it answers nothing; Trunkline refuses
to put it on another one.

| fact | value |
|---|---|
{rows}

## Labels

{_labels(spec)}

## Limits

The dev metric was measured on the rows named by the task file and says nothing about other texts. Texts longer than
{spec.max_length} tokens are cut. `golden.json` holds synthetic inputs with the logits that this branch gave for them.
"""


def _facts(spec: BranchSpec, n_parameters: int) -> list[tuple[str, str]]:
    origin = spec.provenance
    return [
        ("kind", spec.kind),
        ("input", spec.input),
        ("metric", f"`{spec.metric}`"),
        ("metric on the selection slice", f"{origin.selection_metric:.2f} points"),
        ("metric on dev", "not measured" if origin.dev_metric is None else f"{origin.dev_metric:.2f} points"),
        ("backbone", _code(origin.backbone)),
        ("exit layer", f"{spec.exit_layer} trunk layers run before it"),
        ("own layers", str(spec.own_layers)),
        ("pooling", "every token" if spec.kind == "tagging" else spec.pooling),
        ("parameters", f"{n_parameters:,}"),
        ("longest row", f"{spec.max_length} tokens"),
        ("label schema version", str(spec.label_schema_version)),
        ("trunk digest at the exit", f"`{spec.trunk_digest}`"),
        ("trained on", f"{origin.train_rows:,} rows, digest `{origin.train_digest}`"),
        ("label teacher", _code(origin.label_teacher)),
        ("initialised from", _code(origin.init)),
        ("run", f"{_code(origin.run_id)}, seed {origin.seed}"),
        ("written", f"{origin.created_at} by Trunkline {origin.trunkline_version}"),
    ]


def _code(text: str | None) -> str:
    return "none" if text is None else "`" + text.replace("|", "\\|").replace("\n", " ") + "`"


def _labels(spec: BranchSpec) -> str:
    if not spec.labels:
        return "None: the answer is a score in the unit of the training data."
    shown = ", ".join(_code(label) for label in spec.labels[:_LABELS_SHOWN])
    rest = len(spec.labels) - _LABELS_SHOWN
    return f"{len(spec.labels)}: {shown}" + (f" and {rest} more (see `branch.json`)." if rest > 0 else ".")
