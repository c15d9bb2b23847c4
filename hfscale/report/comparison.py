"""What runs beside each other have in common and what not: settings, and the held-out texts they
were judged on.
"""

from collections.abc import Sequence
from numbers import Number
from typing import Any, NamedTuple

TRAINING_TEXT = "train"
HELD_OUT = "validation"
OF_NO_RESULT = (
    "output_dir",
    "overwrite",
    "resume",
    "dry_run",
    "logging_dir",
    "run_name",
    "do_eval",
)
# In nats per token of the run's own tokenizer: other tokens, another measure. Bits per byte do not
# depend on them.
PER_TOKEN = ("loss", "perplexity")
NO_MEASURE = ("_runtime", "_per_second", "_preparation_time")  # of the text: how fast it was read
JUDGED = ("eval_", "before_eval_", "baseline_")


class Judged(NamedTuple):
    """Metrics of the runs that were judged on one held-out text."""

    part: str  # of the data: validation, or another that was held out
    text: str  # which text it is, and how large
    runs: list[str]
    rows: list[
        tuple[str, list[tuple]]
    ]  # name, and each run's value and interval; None: not measured


def differing_settings(records: Sequence[dict[str, Any]]) -> tuple[list[tuple], list[tuple]]:
    """The settings that are not the same in all runs; and those that only some of the recipes have,
    alike there. Each is a name and the value in each run, "" where a run has none.
    """
    settings = [_settings(record) for record in records]
    names = dict.fromkeys(name for own in settings for name in own)
    differing, not_shared = [], []
    for name in names:
        values = [own.get(name, "") for own in settings]
        given = [own[name] for own in settings if name in own]
        if any(value != given[0] for value in given):
            differing.append((name, values))
        elif len(given) < len(settings):
            not_shared.append((name, values))
    return differing, not_shared


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, and what it was asked of."""
    model, hardware = record["model"], record["hardware"]
    of_the_run = {
        "recipe": record["recipe"],
        "training text": _of_part(record, "fingerprint", TRAINING_TEXT),
        "held-out text": _of_part(record, "fingerprint", HELD_OUT),
        "parameters": model.get("parameters"),
        "processes": hardware.get("world_size"),
        "device": hardware.get("device"),
    }
    asked = {name: value for name, value in record["config"].items() if name not in OF_NO_RESULT}
    return {name: value for name, value in of_the_run.items() if value is not None} | asked


def _of_part(record: dict[str, Any], what: str, part: str) -> Any:
    """A fact about one part of a run's data; None: not known."""
    facts = record["data"].get(what)
    return facts.get(part) if isinstance(facts, dict) else None


def judged_on(record: dict[str, Any], name: str) -> str | None:
    """The part of the data that a metric was measured on; None: on none of them."""
    if not name.startswith(JUDGED) or name.endswith(NO_MEASURE):
        return None
    facts = record["data"].get("fingerprint")
    parts = facts if isinstance(facts, dict) else ()
    others = [part for part in parts if part not in (TRAINING_TEXT, HELD_OUT)]
    return next((part for part in others if f"eval_{part}_" in name), HELD_OUT)


def judged_tables(records: Sequence[dict[str, Any]]) -> list[Judged]:
    """A table for each held-out text, with the runs that were judged on it: numbers of one row can
    be compared.

    Numbers per token of runs that cut the text into other tokens stand in rows of their own.
    """
    tables: dict[tuple, dict[str, dict[str, Any]]] = {}
    for record in records:
        for name, value in record["metrics"].items():
            part = judged_on(record, name)
            if part and isinstance(value, Number) and not isinstance(value, bool):
                text = _of_part(record, "fingerprint", part)
                unknown = None if text else record["name"]  # of two streams nobody knows
                table = tables.setdefault((part, text, unknown), {})
                table.setdefault(record["name"], {})[name] = value
    by_name = {record["name"]: record for record in records}
    judged = []
    for (part, _, _), runs in tables.items():
        of_table = {name: by_name[name] for name in runs}
        text = _describe(next(iter(of_table.values())), part)
        judged.append(Judged(part, text, list(runs), _rows(part, of_table, runs)))
    return judged


def _describe(record: dict[str, Any], part: str) -> str:
    """One part of a run's data in a few words."""
    sizes = {what: _of_part(record, what, part) for what in ("documents", "bytes")}
    known = [f"{size:,} {what}" for what, size in sizes.items() if isinstance(size, int)]
    text = _of_part(record, "fingerprint", part) or f"of {record['name']}, which has no fingerprint"
    return ", ".join([f"held-out text {text}", *known]) + (f" ({part})" if part != HELD_OUT else "")


def _rows(
    part: str, records: dict[str, dict[str, Any]], metrics: dict[str, dict[str, Any]]
) -> list[tuple[str, list[tuple]]]:
    """The rows of a table: one for each metric, or one for each way to cut the text into tokens."""
    tokens = {run: _of_part(record, "tokens", part) for run, record in records.items()}
    rows = []
    for name in dict.fromkeys(name for own in metrics.values() for name in own):
        split = is_per_token(name) and len(set(tokens.values())) > 1
        for count in dict.fromkeys(tokens.values()) if split else [None]:
            cells = [
                (own[name], records[run]["metrics"].get(f"{name}_ci95"))
                if name in own and (not split or tokens[run] == count)
                else (None, None)
                for run, own in metrics.items()
            ]
            if any(value is not None for value, _ in cells):
                rows.append((f"{name}, of {count:,} tokens" if split and count else name, cells))
    return rows


def is_per_token(name: str) -> bool:
    """Whether a metric counts nats per token of the model's own tokenizer."""
    words = name.split("_")
    return words[-1] in PER_TOKEN and "word" not in words


def same_measure(record: dict[str, Any], part: str) -> tuple:
    """What two runs must share for their losses per token on a part to be numbers of one kind."""
    text = _of_part(record, "fingerprint", part)
    return (text, _of_part(record, "tokens", part)) if text else (record["name"],)


def beside(dictionaries: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """(name, the value in each) of every entry, inner ones as "outer, inner"; "" where one has
    none.
    """
    entries = [flat(dictionary) for dictionary in dictionaries]
    names = dict.fromkeys(name for own in entries for name in own)
    return [(name, [own.get(name, "") for own in entries]) for name in names]


def flat(dictionary: dict[str, Any]) -> dict[str, Any]:
    """Without dictionaries inside: their entries are called "outer, inner"."""
    entries: dict[str, Any] = {}
    for name, value in dictionary.items():
        if isinstance(value, dict) and value:
            entries |= {f"{name}, {inner}": each for inner, each in flat(value).items()}
        else:
            entries[name] = value
    return entries
