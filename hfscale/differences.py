"""How messages name what two runs do not agree in."""

from collections.abc import Container, Mapping
from typing import Any


def describe_differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignored: Container[str] = (),
    wording: str = "{name} was {before}, is {now}",
) -> str:
    """What two sets of settings do not agree in, as messages name it: `seed was 1, is 2; ...`.

    Args:
        before: the settings of the run that is there.
        now: those of the run that is asked for. A name that only one of the two has is None in the
            other.
        ignored: names that may differ.
        wording: one difference, with the places {name}, {before} and {now}.

    Returns:
        An empty text where nothing differs.
    """
    differences = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new and name not in ignored:
            differences.append(wording.format(name=name, before=old, now=new))
    return "; ".join(differences)
