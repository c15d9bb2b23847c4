"""Pictures that several pages share."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def bars(
    names: Sequence[str],
    parts: dict[str, Sequence[float]],
    labels: Sequence[str],
    colors: dict[str, str],
) -> tuple[Figure, Axes]:
    """A stacked horizontal bar per name, the first on top, with its label at the end; `parts` are
    {part: lengths}, and `colors` theirs.
    """
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.4), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(names)
    for part, sizes in parts.items():
        drawn = axes.barh(names, sizes, left=left, label=part, color=colors[part])
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    axes.bar_label(drawn, labels, size=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
