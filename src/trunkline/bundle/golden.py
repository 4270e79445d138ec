"""Golden inputs: synthetic texts and the logits a branch gave for them when it was written."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from trunkline.core.errors import NonFiniteError, VerificationError
from trunkline.core.specs import InputForm, Spec
from trunkline.core.types import Example

TOLERANCE_FP32 = 1e-4
TOLERANCE_BF16 = 0.02
TOLERANCE_INT8 = 0.25
"""Of a probability, where the label is another one. Golden inputs are no usual texts, so int8 has most trouble with
them: 0.16 was the largest difference on those of twelve real tasks (decision 0017). It is not written into branches:
what int8 costs is judged by the gate, and these inputs find damage."""
LARGEST_TOLERANCE: Mapping[str, float] = {"fp32": TOLERANCE_FP32, "bf16": TOLERANCE_BF16}

_TEXTS = (
    "Set an alarm for seven tomorrow morning, please.",
    "Is it going to rain in Copenhagen this weekend?",
    "I can't believe how good this was -- thank you so much!",
    "a",
    "Order no. 40-7731: 3 x 12.50 EUR, due 2024-02-29 (50% off?) #refund @support",
    "明天早上七点叫我起床。",
    "naïve café 😀👍 ok",
    (
        "We drove from the old harbor to the lighthouse, then along the coast road until the sun went down, and on the "
        "way we stopped three times: once for fuel, once because the youngest of us was sure that she had seen a seal, "
        "and once because the bridge was raised to let a sailing boat pass; nobody was in a hurry, so we sat on the "
        "warm stones, ate what was left of the bread, and tried to remember the names of all the villages that we had "
        "gone through that day, and which of them had had a bakery that was open on a Sunday."
    ),
)
_PARTNERS = (
    "Wake me at 7 am tomorrow.",
    "Play some quiet music in the kitchen.",
    "This was excellent; many thanks!",
    "b",
    "Order 40-7731 is due on 29 February 2024.",
    "明早七点请叫醒我。",
    "naive cafe, ok",
    "The trip along the coast took a whole day, because we kept stopping.",
)


class GoldenInput(Spec, frozen=True, kw_only=True):
    """One synthetic input: a text, or a pair."""

    text: str
    text_pair: str | None = None


class Golden(Spec, frozen=True, kw_only=True):
    """What a branch must answer (``golden.json``).

    Attributes:
        inputs: Synthetic or consented texts, never users' data.
        logits: For each input its lines of float32 logits: one line for a sentence task, one for each token
            (special tokens included) for tagging. Each input was run alone, in a batch of one row.
        tolerance: Largest allowed absolute difference of a logit, by precision.
    """

    inputs: tuple[GoldenInput, ...]
    logits: tuple[tuple[tuple[float, ...], ...], ...]
    tolerance: dict[str, float] = msgspec.field(default_factory=lambda: dict(LARGEST_TOLERANCE))

    def examples(self) -> tuple[Example, ...]:
        """The inputs as the engine takes them."""
        return tuple(Example(text=row.text, text_pair=row.text_pair) for row in self.inputs)


def golden_inputs(form: InputForm) -> tuple[Example, ...]:
    """Synthetic texts written for this project: English, digits, punctuation, Chinese, emoji, one long.

    Args:
        form: What the task takes; for ``"pair"`` each text has a partner.
    """
    if form == "text":
        return tuple(Example(text=text) for text in _TEXTS)
    return tuple(Example(text=text, text_pair=partner) for text, partner in zip(_TEXTS, _PARTNERS, strict=True))


def make_golden(inputs: Sequence[Example], logits: Sequence[np.ndarray]) -> Golden:
    """Keep inputs and the logits that a branch gave for them.

    Args:
        inputs: The texts, as from `golden_inputs`.
        logits: For each input (lines, n_outputs) float32, as from `trunkline.model.golden_run.golden_logits`.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
        VerificationError: There is not one array of two dimensions for each input.
    """
    if len(inputs) != len(logits):
        raise VerificationError(
            f"golden inputs: {len(logits)} answers for {len(inputs)} inputs; one for each is needed; run them again"
        )
    for number, lines in enumerate(logits):
        if lines.ndim != 2:
            raise VerificationError(
                f"golden input {number}: logits of shape {lines.shape}; (lines, n_outputs) is needed; add an axis"
            )
        if not np.isfinite(lines).all():
            raise NonFiniteError(
                f"golden input {number}: a logit is NaN or infinite; only finite answers may be stored; "
                "train the branch again, with a lower learning rate"
            )
    return Golden(
        inputs=tuple(GoldenInput(text=row.text, text_pair=row.text_pair) for row in inputs),
        logits=tuple(tuple(tuple(_shortest(value) for value in line) for line in lines) for lines in logits),
    )


def _shortest(value: np.float32) -> float:
    # The shortest decimals that give the same float32 back: a third of the bytes of the float64 spelling.
    return float(str(np.float32(value)))
