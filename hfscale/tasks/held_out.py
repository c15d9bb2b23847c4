"""Which examples are held out: always the same ones, and none that shares its text with one that is
trained on.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hfscale.tasks.conversations import CONVERSATIONS, opening_text
from hfscale.tasks.sources import Row
from hfscale.tasks.templates import as_text, read_column

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
LONG_CHARACTERS = (
    40  # texts of a column of prompts that repeat and are this long on average are contexts, too,
)
ROWS_PER_CONTEXT = 50  # unless more rows than this share one on average: then they are categories

HELD_OUT_BYTES = 32  # of the 256 values of a hash's first byte


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
    groups = _grouped(hashes, _contexts(rows, prompt_columns))
    first = {}  # the smallest hash of each group
    for group, value in zip(groups, hashes, strict=True):
        first[group] = min(value, first.get(group, value))
    sizes = Counter(groups)
    chosen, room = [], limit
    for group in sorted(first, key=first.get):
        if sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
    if not chosen:
        chosen = [min(first, key=lambda group: (sizes[group], first[group]))]
    inside = set(chosen)
    ranked = sorted(
        (i for i, group in enumerate(groups) if group in inside),
        key=lambda i: (first[groups[i]], hashes[i]),
    )
    train = [row for row, group in zip(rows, groups, strict=True) if group not in inside]
    return Split(train, [rows[i] for i in ranked[:limit]], max(0, len(ranked) - limit))


def row_hash(row: Row) -> str:
    """SHA-256 over what a row holds, wherever it stands."""
    return hashlib.sha256(json.dumps(row[1], sort_keys=True, default=str).encode()).hexdigest()


def is_held_out_key(key: str) -> bool:
    """Whether the examples of a made set with this key are held out: by its hash, one of eight."""
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_BYTES


def _contexts(rows: Sequence[Row], prompt_columns: Iterable[str]) -> list[list[tuple[str, str]]]:
    """For each row the (column, text) pairs that it may share with others."""
    found: list[list[tuple[str, str]]] = [[] for _ in rows]
    for name in _context_columns(rows, prompt_columns):
        texts = [_text_of(row, name) for _, row in rows]
        counts = Counter(filter(None, texts))
        for i, text in enumerate(texts):
            # What most rows have is no context, but a word for "none".
            if text and 2 * counts[text] <= len(rows):
                found[i].append((name, text))
    return found


def _context_columns(rows: Sequence[Row], prompt_columns: Iterable[str]) -> list[str]:
    """Those with a usual name; else the one of the prompt with the longest texts, if these are
    contexts. Of several, questions that repeat would tie all contexts to one another.
    """
    names = {name for _, row in rows for name in row}
    named = sorted(name for name in names if name.lower() in CONTEXT_NAMES)
    if named:
        return named
    counts = {
        name: Counter(_text_of(row, name) for _, row in rows)
        for name in sorted({*prompt_columns, *names.intersection(CONVERSATIONS)})
    }
    contexts = {name: texts for name, texts in counts.items() if _is_context(texts)}
    return [max(contexts, key=lambda name: _mean_length(contexts[name]))] if contexts else []


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


def _grouped(hashes: Sequence[str], contexts: Sequence[list[tuple[str, str]]]) -> list[int]:
    """The number of each row's group: rows that are equal or share a context, also by way of
    others.
    """
    parents = list(range(len(hashes)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    members = defaultdict(list)
    for i, value in enumerate(hashes):
        for key in (value, *contexts[i]):
            members[key].append(i)
    for first, *others in members.values():
        for i in others:
            parents[root(i)] = root(first)
    return [root(i) for i in range(len(hashes))]
