"""Shapes of torch values, spelt once; those of numpy are in `trunkline.core.types`."""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int64
from torch import Tensor

RowIds: TypeAlias = Int64[Tensor, "rows tokens"]
"""Token or type ids of padded rows."""
Mask: TypeAlias = Bool[Tensor, "rows tokens"]
"""True where a token is real, False where it is padding."""
HiddenStates: TypeAlias = Float[Tensor, "rows tokens width"]
"""What a layer reads and writes."""
QueryStates: TypeAlias = Float[Tensor, "rows queries width"]
"""States of the leading tokens alone, or of all."""
RowStates: TypeAlias = Float[Tensor, "rows width"]
"""One state a row: what a head of a sentence task reads."""
AttentionBiasValues: TypeAlias = Float[Tensor, "rows _ _ tokens"]
"""Added to the attention scores; heads and queries may be 1 and are then broadcast."""
RowLogits: TypeAlias = Float[Tensor, "rows outputs"]
"""One line a row: classification, multi-label, regression."""
TokenLogits: TypeAlias = Float[Tensor, "rows tokens outputs"]
"""One line a token: tagging."""
