"""Pictures of a run: curves over its steps, confusion matrices, reliability diagrams. SVG inside of <img>."""

import base64
import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from instructrec_jax.evaluation.tables import clean, digits
from instructrec_jax.files import check_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fbf", "#c8501e", "#2b8a57", "#8a4fb0", "#a87900")
LINES_PER_PLOT = len(COLOURS)
POINTS_PER_LINE = 1000
MOST_NUMBERS = 12  # labels up to which the cells of a confusion matrix hold their numbers
MOST_NAMES = 80  # labels up to which the axes have names


def line_plot(
    title: str, curves: Mapping[str, Sequence[tuple[int, float]]], smooth: str = "", from_zero: bool = False
) -> str:
    """Curves of (step, value) by name; nothing when there are no points.

    Args:
      smooth: the curve that is drawn as a moving average too.
      from_zero: whether the y axis begins there.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
            _line(axes, name, points, colour, smooth=name == smooth)
        axes.set_xlabel("step", color="#555")
        axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(_axis_label)
        if from_zero:
            axes.set_ylim(bottom=0)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False, fontsize=9)

    last = "; ".join(f"{name} {digits(points[-1][1])} at step {points[-1][0]}" for name, points in curves.items())
    return _image(title, (5, 3), draw, says=f"{title} by step: {last}")


class Confusion(TypedDict):
    """Rows of counts are the true labels."""

    labels: list[str]
    counts: list[list[float]]


class Bin(TypedDict):
    """Cases of similar confidence."""

    cases: float
    confidence: float
    accuracy: float


class Calibration(TypedDict):
    """A reliability diagram."""

    bins: list[Bin]


def chart(name: str, data: Mapping[str, Any]) -> str:
    """One of `Scores.charts` as an <img>; nothing for a name that has no picture."""
    kind = name.split(",")[0].split(" (")[0]
    where = f"evaluation.json, chart {name!r}"
    if kind == "confusion":
        check_type(data, Confusion, where)
        if [len(row) for row in data["counts"]] != [len(data["labels"])] * len(data["labels"]) or not data["labels"]:
            raise ValueError(f"{where}: counts should have a row and a column for each of the labels.")
        side = 2.6 + 0.16 * len(data["labels"])
        return _image(
            name.capitalize(), (side + 0.6, side), lambda axes: _confusion(axes, data["labels"], data["counts"])
        )
    if kind == "calibration":
        check_type(data, Calibration, where)
        if not all(row["cases"] > 0 for row in data["bins"]) or not data["bins"]:
            raise ValueError(f"{where}: bins should be a list of bins that hold cases.")
        return _image(name.capitalize(), (4.2, 3.6), lambda axes: _calibration(axes, data["bins"]))
    return ""


def _confusion(axes: "Axes", labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Rows are the true labels; colours are shares of a row."""
    table = np.array(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= MOST_NUMBERS:
        for row, column in np.ndindex(*table.shape):
            colour = "white" if shares[row, column] > 0.5 else "#333"
            axes.text(column, row, f"{table[row, column]:.4g}", ha="center", va="center", color=colour, fontsize=8)
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


def _line(axes: "Axes", name: str, points: Sequence[tuple[int, float]], colour: str, smooth: bool) -> None:
    label = _label(name)
    marker = "o" if len(points) <= 30 else ""
    steps, values = zip(*points, strict=True)
    window = len(points) // 20 if smooth else 1
    if window > 1:
        stride = -(-len(points) // POINTS_PER_LINE)
        axes.plot(steps[::stride], values[::stride], color=colour, alpha=0.25, linewidth=0.8)
        sums = np.cumsum([0.0, *values])
        steps, values, marker = steps[window - 1 :], (sums[window:] - sums[:-window]) / window, ""
        label += f" (mean of {window} log lines)"
    stride = -(-len(steps) // POINTS_PER_LINE)
    axes.plot(
        steps[::stride],
        values[::stride],
        color=colour,
        label=label,
        marker=marker,
        markersize=3.5,
        linewidth=1.6,
    )


def _image(title: str, size: tuple[float, float], draw: Callable[["Axes"], None], says: str = "") -> str:
    """`says`: the picture in words, for who does not see it."""
    # matplotlib takes half a second to import, and `import instructrec_jax` should not wait for it.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text: the browser has the glyphs of every language, which the fonts here need not have.
    style: Any = {"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 10, "axes.formatter.useoffset": False}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(_label(title), loc="left", fontsize=11, fontweight="bold", color="#222")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#bbb")
        axes.tick_params(colors="#555", length=3)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(clean(says or title))}" src="data:image/svg+xml;base64,{data}">'


def _short(label: str) -> str:
    return clean(label if len(label) <= 28 else label[:27] + "…").replace("$", r"\$")


def _label(text: str) -> str:
    """Text as matplotlib takes it: $ would begin mathematics, _ at the front would hide a legend entry."""
    return clean(text).replace("$", r"\$").replace("_", " ")


def _axis_label(value: float, _: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
