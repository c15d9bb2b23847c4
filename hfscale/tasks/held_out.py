"""Which examples are held out: always the same ones, and none that shares its text with one that is
trained on.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hfscale.data.templates import as_text, read_column
from hfscale.tasks.conversations import CONVERSATIONS, opening_text
from hfscale.tasks.sources import Row

# Columns, in any case, whose text several questions are asked about.
CONTEXT_NAMES = (
    "context",
    "contexts",
    "passage",
    "document",
    "article",
    "paragraph",
    "story",
    "background",
)
# Texts of a column of prompts that repeat and are this long on average are contexts, too: a
# sentence, not a name.
LONG_CHARACTERS = 40
# Unless more rows than this share one on average: then they are categories.
ROWS_PER_CONTEXT = 50
# Of the 256 values of a hash's first byte: one key of eight.
HELD_OUT_BYTES = 32


class Split(NamedTuple):
    """Rows to train on, rows held out, and how many are neither because they share a text with one
    held out.
    """

    train: list[Row]
    held_out: list[Row]
    left_out: int


def hold_out(rows: Sequence[Row], limit: int, prompt_columns: Iterable[str]) -> Split:
    """At most `limit` rows are held out, those with the smallest hashes; the order of the others is
    kept.

    Rows that are equal, or share a context, stay together: whole groups are held out as long as
    they fit. Where not even the smallest does, a part of it is held out and the rest left out. With
    a single group none is left to train on.
    """
    hashes = [row_hash(row) for row in rows]
    groups = _group_rows(hashes, _contexts(rows, prompt_columns))
    smallest_hash: dict[int, str] = {}  # of each group
    for group, value in zip(groups, hashes, strict=True):
        smallest_hash[group] = min(value, smallest_hash.get(group, value))
    chosen = _choose_groups(smallest_hash, Counter(groups), limit)
    train = [row for row, group in zip(rows, groups, strict=True) if group not in chosen]
    candidates = [i for i, group in enumerate(groups) if group in chosen]
    candidates.sort(key=lambda i: (smallest_hash[groups[i]], hashes[i]))
    held_out = [rows[i] for i in candidates[:limit]]
    return Split(train, held_out, left_out=len(candidates) - len(held_out))


def _choose_groups(smallest_hash: dict[int, str], sizes: Counter[int], limit: int) -> set[int]:
    """The groups in the order of their hashes as long as they fit, else the smallest one."""
    chosen = set()
    room = limit
    for group in sorted(smallest_hash, key=lambda group: smallest_hash[group]):
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    if not chosen:
        chosen.add(min(smallest_hash, key=lambda group: (sizes[group], smallest_hash[group])))
    return chosen


def row_hash(row: Row) -> str:
    """SHA-256 over what a row holds, wherever it stands."""
    _, columns = row
    text = json.dumps(columns, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def is_held_out_key(key: str) -> bool:
    """Whether the examples of a made set with this key are held out: by its hash, one of eight."""
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_BYTES


def _contexts(rows: Sequence[Row], prompt_columns: Iterable[str]) -> list[list[tuple[str, str]]]:
    """For each row the (column, text) pairs that it may share with others."""
    contexts: list[list[tuple[str, str]]] = [[] for _ in rows]
    for name in _context_columns(rows, prompt_columns):
        texts = [_text_of(row, name) for _, row in rows]
        counts = Counter(filter(None, texts))
        for i, text in enumerate(texts):
            # What most rows have is no context, but a word for "none".
            if text and 2 * counts[text] <= len(rows):
                contexts[i].append((name, text))
    return contexts


def _context_columns(rows: Sequence[Row], prompt_columns: Iterable[str]) -> list[str]:
    """Those with a usual name; else the one of the prompt with the longest texts, if these are
    contexts. Of several, questions that repeat would tie all contexts to one another.
    """
    names = {name for _, row in rows for name in row}
    named = sorted(name for name in names if name.lower() in CONTEXT_NAMES)
    if named:
        return named
    possible = {*prompt_columns, *names.intersection(CONVERSATIONS)}
    counts = {name: Counter(_text_of(row, name) for _, row in rows) for name in sorted(possible)}
    contexts = {name: texts for name, texts in counts.items() if _is_context(texts)}
    if not contexts:
        return []
    return [max(contexts, key=lambda name: _mean_length(contexts[name]))]


def _is_context(texts: Counter) -> bool:
    """Whether the texts of a column are long, and shared by some rows but not by many."""
    rows = texts.total()
    shared = len(texts) < rows <= len(texts) * ROWS_PER_CONTEXT
    return shared and _mean_length(texts) >= LONG_CHARACTERS


def _mean_length(texts: Counter) -> float:
    """Characters of a column's different texts, on average."""
    return sum(map(len, texts)) / len(texts)


def _text_of(row: dict[str, Any], name: str) -> str:
    """What stands in a column as one text; of a conversation how it begins. Nothing: it has no such
    text.
    """
    try:
        value = read_column(row, name)
        return opening_text(value) if name in CONVERSATIONS else as_text(value)
    except (KeyError, TypeError):
        return ""


def _group_rows(hashes: Sequence[str], contexts: Sequence[list[tuple[str, str]]]) -> list[int]:
    """The number of each row's group: rows that are equal or share a context, also by way of
    others (union-find).
    """
    parents = list(range(len(hashes)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    rows_of_key: dict[str | tuple[str, str], list[int]] = defaultdict(list)
    for i, value in enumerate(hashes):
        keys: list[str | tuple[str, str]] = [value, *contexts[i]]
        for key in keys:
            rows_of_key[key].append(i)
    for first, *others_of_key in rows_of_key.values():
        for i in others_of_key:
            parents[root(i)] = root(first)
    return [root(i) for i in range(len(hashes))]
