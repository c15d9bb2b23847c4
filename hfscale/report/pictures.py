"""Pictures that several pages share."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfscale.shown import one_line


def in_picture(text: str) -> str:
    """The text as Matplotlib's labels take it: in one line, and a $ begins no formula."""
    return one_line(text).replace("$", r"\$")


def bars(
    names: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    colors: Mapping[str, str],
) -> tuple[Figure, Axes]:
    """A stacked horizontal bar per name, the first on top, with its label at the end; `parts` are
    {part: lengths}, and `colors` theirs.
    """
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    names = [in_picture(name) for name in names]
    ends = [0.0] * len(names)
    for part, lengths in parts.items():
        last_part = axes.barh(names, lengths, left=ends, label=part, color=colors[part])
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.bar_label(last_part, labels, size=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
