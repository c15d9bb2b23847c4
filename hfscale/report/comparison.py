"""What runs beside each other have in common and what not: settings, and the held-out texts they
were judged on.
"""

from collections.abc import Sequence
from numbers import Number
from typing import Any, NamedTuple, TypeAlias

TRAINING_TEXT = "train"
HELD_OUT = "validation"
# What they are called among the settings.
TRAINED_TEXT = "training text"
HELD_OUT_TEXT = "held-out text"
# Settings that change no number of a run.
OF_NO_RESULT = (
    "output_dir",
    "overwrite",
    "resume",
    "dry_run",
    "logging_dir",
    "run_name",
    "do_eval",
    "save_words",
)
# In nats per token of the run's own tokenizer: other tokens, another measure. Bits per byte do not
# depend on them.
PER_TOKEN = ("loss", "perplexity")
# Ends of names that say how fast a text was read, nothing of how well it was predicted.
NO_MEASURE = ("_runtime", "_per_second", "_preparation_time")
# Ends of names of what is measured beside a metric: counts, and the ends of its interval.
BESIDE_A_METRIC = ("_tokens", "_ci95", "_ci90", "_floor")
# Beginnings of the names of what was measured on a held-out text.
JUDGED = ("eval_", "before_eval_", "baseline_")


# The value and interval of a metric in each run; None: not measured.
Cells: TypeAlias = list[tuple[Any, Any]]


class Judged(NamedTuple):
    """Metrics of the runs that were judged on one held-out text."""

    part: str  # of the data: validation, or another that was held out
    text: str  # which text it is, and how large
    runs: list[str]
    rows: list[tuple[str, Cells]]


def differing_settings(
    records: Sequence[dict[str, Any]],
) -> tuple[list[tuple[str, list]], list[tuple[str, list]]]:
    """The settings that are not the same in all runs; and those that only some of the recipes have,
    alike there. Each is a name and the value in each run, "" where a run has none.
    """
    settings = [settings_of(record) for record in records]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    differing = []
    not_shared = []
    for name in names:
        values = [of_run.get(name, "") for of_run in settings]
        present = [of_run[name] for of_run in settings if name in of_run]
        if any(value != present[0] for value in present):
            differing.append((name, values))
        elif len(present) < len(settings):
            not_shared.append((name, values))
    return differing, not_shared


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, and what it was asked of."""
    of_the_run = {
        "recipe": record["recipe"],
        TRAINED_TEXT: of_part(record, "fingerprint", TRAINING_TEXT),
        HELD_OUT_TEXT: of_part(record, "fingerprint", HELD_OUT),
        "parameters": record["model"].get("parameters"),
        "processes": record["hardware"].get("world_size"),
        "device": record["hardware"].get("device"),
    }
    known = {name: value for name, value in of_the_run.items() if value is not None}
    asked = {name: value for name, value in record["config"].items() if name not in OF_NO_RESULT}
    return known | asked


def of_part(record: dict[str, Any], fact: str, part: str) -> Any:
    """A fact about one part of a run's data; None: not known."""
    facts = record["data"].get(fact)
    return facts.get(part) if isinstance(facts, dict) else None


def judged_on(record: dict[str, Any], name: str) -> str | None:
    """The part of the data that a metric was measured on; None: on none of them."""
    if not name.startswith(JUDGED) or name.endswith(NO_MEASURE):
        return None
    fingerprints = record["data"].get("fingerprint")
    parts = fingerprints if isinstance(fingerprints, dict) else ()
    for part in parts:
        if part not in (TRAINING_TEXT, HELD_OUT) and f"eval_{part}_" in name:
            return part
    return HELD_OUT


def is_quality(name: str) -> bool:
    """Whether a metric says how good the trained model is on a held-out text."""
    return name.startswith("eval_") and not name.endswith((*NO_MEASURE, *BESIDE_A_METRIC))


def judged_tables(records: Sequence[dict[str, Any]]) -> list[Judged]:
    """A table for each held-out text, with the runs that were judged on it: numbers of one row can
    be compared.

    Numbers per token of runs that cut the text into other tokens stand in rows of their own.
    """
    # (part, text, run of an unknown text) -> run -> metric -> value
    tables: dict[tuple, dict[str, dict[str, Any]]] = {}
    for record in records:
        for name, value in record["metrics"].items():
            part = judged_on(record, name)
            if not part or not isinstance(value, Number) or isinstance(value, bool):
                continue
            text = of_part(record, "fingerprint", part)
            # Of two streams nobody knows whether their texts are one: each is a table of its own.
            of_unknown_text = None if text else record["name"]
            table = tables.setdefault((part, text, of_unknown_text), {})
            table.setdefault(record["name"], {})[name] = value
    by_name = {record["name"]: record for record in records}
    judged = []
    for (part, _, _), metrics in tables.items():
        of_table = {run: by_name[run] for run in metrics}
        text = _describe(next(iter(of_table.values())), part)
        judged.append(Judged(part, text, list(metrics), _rows(part, of_table, metrics)))
    return judged


def _describe(record: dict[str, Any], part: str) -> str:
    """One part of a run's data in a few words."""
    text = of_part(record, "fingerprint", part) or f"of {record['name']}, which has no fingerprint"
    words = [f"held-out text {text}"]
    for unit in ("documents", "bytes"):
        size = of_part(record, unit, part)
        if isinstance(size, int):
            words.append(f"{size:,} {unit}")
    description = ", ".join(words)
    return description if part == HELD_OUT else f"{description} ({part})"


def _rows(
    part: str, records: dict[str, dict[str, Any]], metrics: dict[str, dict[str, Any]]
) -> list[tuple[str, Cells]]:
    """The rows of a table: one for each metric, or one for each way to cut the text into tokens."""
    tokens = {run: of_part(record, "tokens", part) for run, record in records.items()}
    rows = []
    for name in dict.fromkeys(name for of_run in metrics.values() for name in of_run):
        if not is_per_token(name) or len(set(tokens.values())) == 1:
            rows.append((name, _cells(name, records, metrics, list(records))))
            continue
        for count in dict.fromkeys(tokens.values()):
            of_count = [run for run in records if tokens[run] == count]
            cells = _cells(name, records, metrics, of_count)
            label = f"{name}, of {count:,} tokens" if count else name
            if any(value is not None for value, _ in cells):
                rows.append((label, cells))
    return rows


def _cells(
    name: str,
    records: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    shown: Sequence[str],
) -> Cells:
    """A metric and its interval in each run that is `shown`; nothing in the others."""
    cells: Cells = []
    for run, of_run in metrics.items():
        if run in shown and name in of_run:
            cells.append((of_run[name], records[run]["metrics"].get(f"{name}_ci95")))
        else:
            cells.append((None, None))
    return cells


def is_per_token(name: str) -> bool:
    """Whether a metric counts nats per token of the model's own tokenizer."""
    words = name.split("_")
    return words[-1] in PER_TOKEN and "word" not in words


def same_measure(record: dict[str, Any], part: str) -> tuple:
    """What two runs must share for their losses per token on a part to be numbers of one kind."""
    text = of_part(record, "fingerprint", part)
    if not text:  # nobody knows: the run shares it with none
        return (record["name"],)
    return text, of_part(record, "tokens", part)


def beside(dictionaries: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """(name, the value in each) of every entry, inner ones as "outer, inner"; "" where one has
    none.
    """
    flat_ones = [flat(dictionary) for dictionary in dictionaries]
    names = dict.fromkeys(name for entries in flat_ones for name in entries)
    return [(name, [entries.get(name, "") for entries in flat_ones]) for name in names]


def flat(dictionary: dict[str, Any]) -> dict[str, Any]:
    """Without dictionaries inside: their entries are called "outer, inner"."""
    entries: dict[str, Any] = {}
    for name, value in dictionary.items():
        if isinstance(value, dict) and value:
            entries |= {f"{name}, {inner}": entry for inner, entry in flat(value).items()}
        else:
            entries[name] = value
    return entries
