"""Pictures of an evaluation: the confusion matrix and the reliability diagram, as SVG inside of <img>."""

import base64
import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NUMBERS = 12  # labels up to which the cells of a confusion matrix hold their numbers
MOST_NAMES = 80  # labels up to which the axes have names


def chart(name: str, data: Mapping[str, Any]) -> str:
    """One of `Scores.charts` as an <img>; nothing for a name that has no picture."""
    kind = name.split(",")[0].split(" (")[0]
    if kind == "confusion":
        side = 2.6 + 0.16 * len(data["labels"])
        return _image(name, (side + 0.6, side), lambda axes: _confusion(axes, data["labels"], data["counts"]))
    if kind == "calibration":
        return _image(name, (4.2, 3.6), lambda axes: _calibration(axes, data["bins"]))
    return ""


def _confusion(axes: "Axes", labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Rows are the true labels; colours are shares of a row."""
    table = np.array(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= MOST_NUMBERS:
        for row, column in np.ndindex(*table.shape):
            colour = "white" if shares[row, column] > 0.5 else "#333"
            axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", color=colour, fontsize=8)
    names = [_short(label) for label in labels] if len(labels) <= MOST_NAMES else []
    size = 9 if len(labels) <= MOST_NUMBERS else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted", color="#555")
    axes.set_ylabel("true", color="#555")


def _calibration(axes: "Axes", bins: Sequence[Mapping[str, float]]) -> None:
    """The area of a point is the number of its cases."""
    most = max(row["cases"] for row in bins)
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1, zorder=1)
    axes.scatter(
        [row["confidence"] for row in bins],
        [row["accuracy"] for row in bins],
        [12 + 160 * row["cases"] / most for row in bins],
        color="#2b6cb0",
        alpha=0.75,
        zorder=2,
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("confidence", color="#555")
    axes.set_ylabel("share that is right", color="#555")


def _short(label: str) -> str:
    return (label if len(label) <= 28 else label[:27] + "…").replace("$", r"\$")


def _image(name: str, size: tuple[float, float], draw: Callable[["Axes"], None]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text: the browser has the glyphs of every language, which the fonts here need not have.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(name.capitalize(), loc="left", fontsize=11, fontweight="bold", color="#222")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors="#555", length=2)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">'
