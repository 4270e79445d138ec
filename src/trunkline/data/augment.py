"""New rows out of a task's own: words replaced by their neighbors, and texts of pairs put together anew.

Such rows have no labels: a teacher answers them. They are made of token ids, so that nothing is encoded twice, and the
same rows give the same new ones, in whatever order they come.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trunkline.core.types import Encoded
from trunkline.data.tokenize import cut_row

N_NEIGHBORS = 8
"""A word is replaced by one of so many that are nearest to it."""
LEAST_SHARE, MOST_SHARE = 0.15, 0.30
"""Share of a row's words that are replaced: drawn anew for each new row, at least one word."""
RECOMBINED_SHARE = 0.5
"""Share of the new rows of a pair task that are recombined."""
_CHUNK = 512


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """Which word may stand for which.

    Attributes:
        near: Token id of a word -> int64 ids of its nearest words, sorted, itself not among them.
        pieces: Ids of tokens that go on with the word before them.
    """

    near: Mapping[int, np.ndarray]
    pieces: frozenset[int]


def find_neighbors(vocabulary: Mapping[int, str], table: np.ndarray, rows: Iterable[Encoded]) -> Neighbors:
    """Find the nearest words, by cosine in a backbone's own table of word embeddings, of the words of some rows.

    A word is a token of letters alone that begins a word: without ``##`` in WordPiece, with the sign for a space
    (``Ġ`` or ``▁``) in vocabularies that have one. Pieces, digits, punctuation and special tokens are left as they are.

    Args:
        vocabulary: Token id -> its text, special tokens left out (`Tokenizer.vocabulary`).
        table: (ids, width) float32.
        rows: Whose words are looked up.
    """
    words, pieces = _words_and_pieces(vocabulary)
    used = np.unique(np.concatenate([row.token_ids for row in rows]))
    wanted = used[np.isin(used, words)]
    directions = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    near: dict[int, np.ndarray] = {}
    n_near = min(N_NEIGHBORS, len(words) - 1)
    for start in range(0, len(wanted) if n_near > 0 else 0, _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        cosines = directions[chunk] @ directions[words].T
        cosines[chunk[:, None] == words[None, :]] = -np.inf
        nearest = np.argpartition(-cosines, n_near - 1, axis=1)[:, :n_near]
        # Sorted by id: which of them is drawn does not depend on the last bit of a cosine.
        near.update(zip(chunk.tolist(), np.sort(words[nearest], axis=1), strict=True))
    return Neighbors(near=near, pieces=pieces)


def augment_rows(rows: Sequence[Encoded], neighbors: Neighbors, *, n_each: int, max_length: int) -> list[list[Encoded]]:
    """Make new rows; those of a row depend on its content, and for pairs on which other rows there are.

    Args:
        rows: Texts, or pairs.
        neighbors: Of their words.
        n_each: New rows for each row; the first of them are the same for every number.
        max_length: Most tokens of a row; longer recombined pairs are cut.

    Returns:
        For each row its new rows: `n_each`, or none where the row has neither a word to replace nor a second text.
        They may be equal to each other or to a row.
    """
    partners = sorted((row for row in rows if (row.sequence == 1).any()), key=Encoded.key)
    return [_new_rows(row, neighbors, partners, n_each=n_each, max_length=max_length) for row in rows]


def _new_rows(
    row: Encoded, neighbors: Neighbors, partners: Sequence[Encoded], *, n_each: int, max_length: int
) -> list[Encoded]:
    rng = np.random.default_rng(list(hashlib.sha256(row.key()).digest()))
    places = _word_places(row, neighbors)
    is_pair = bool((row.sequence == 1).any())
    made = []
    for _ in range(n_each):
        if is_pair and (not len(places) or rng.random() < RECOMBINED_SHARE):
            made.append(cut_row(_recombined(row, partners[int(rng.integers(len(partners)))]), max_length))
        elif len(places):
            made.append(_replaced(row, places, neighbors, rng))
    return made


def _replaced(row: Encoded, places: np.ndarray, neighbors: Neighbors, rng: np.random.Generator) -> Encoded:
    n_replaced = max(1, round(rng.uniform(LEAST_SHARE, MOST_SHARE) * len(places)))
    token_ids = row.token_ids.copy()
    for place in rng.choice(places, size=n_replaced, replace=False):
        near = neighbors.near[int(token_ids[place])]
        token_ids[place] = near[rng.integers(len(near))]
    return replace(row, token_ids=token_ids)


def _recombined(row: Encoded, partner: Encoded) -> Encoded:
    """The first text of one pair with the second of another, special tokens between and behind them as they were."""
    head, tail = slice(0, int(np.argmax(row.sequence == 1))), slice(int(np.argmax(partner.sequence == 1)), None)
    return Encoded(
        token_ids=np.concatenate([row.token_ids[head], partner.token_ids[tail]]),
        type_ids=np.concatenate([row.type_ids[head], partner.type_ids[tail]]),
        offsets=np.concatenate([row.offsets[head], partner.offsets[tail]]),
        sequence=np.concatenate([row.sequence[head], partner.sequence[tail]]),
        truncated=row.truncated or partner.truncated,
    )


def _word_places(row: Encoded, neighbors: Neighbors) -> np.ndarray:
    """(places,) int64: tokens that are a whole word and have neighbors."""
    ids = row.token_ids.tolist()
    goes_on = [following in neighbors.pieces for following in [*ids[1:], -1]]
    return np.array([i for i, token in enumerate(ids) if token in neighbors.near and not goes_on[i]], dtype=np.int64)


def _words_and_pieces(vocabulary: Mapping[int, str]) -> tuple[np.ndarray, frozenset[int]]:
    """Ids of whole words, sorted, and of what goes on with a word."""
    is_wordpiece = any(text.startswith("##") for text in vocabulary.values())
    words, pieces = [], []
    for number, text in vocabulary.items():
        begins = not text.startswith("##") if is_wordpiece else text.startswith(("Ġ", "▁"))
        if begins and text.lstrip("Ġ▁").isalpha():
            words.append(number)
        elif not begins and text.lstrip("#").isalnum():
            pieces.append(number)
    return np.array(sorted(words), dtype=np.int64), frozenset(pieces)
