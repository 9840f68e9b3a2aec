"""Charts of a run as SVG in <img>: curves over steps, confusion matrices, reliability diagrams."""

import base64
import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from instructrec_jax.evaluation.tables import Segment, clean, digits, finite, value_of
from instructrec_jax.files import check_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1f5fbf", "#c8501e", "#2b8a57", "#8a4fb0", "#a87900")
LINES_PER_PLOT = len(COLORS)
POINTS_PER_LINE = 1000
MOST_NUMBERS = 12  # most labels with which a confusion matrix shows numbers in its cells
MOST_NAMES = 80  # most labels with which the axes are labeled


def line_plot(
    title: str, curves: Mapping[str, Sequence[tuple[int, float]]], smooth: str = "", from_zero: bool = False
) -> str:
    """Curves of (step, value) by name as an <img>; "" without points.

    Args:
      smooth: name of the curve that also gets a moving average.
      from_zero: whether the y axis starts at 0.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        for (name, points), color in zip(curves.items(), COLORS, strict=False):
            _line(axes, name, points, color, smooth=name == smooth)
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


def subgroup_plot(title: str, parts: Sequence[Segment], colored: Sequence[str], ends: tuple[float, float]) -> str:
    """A metric on subgroups along an axis, as an <img>: the row `shown` with its 95% interval beside the other rows.

    Args:
      parts: the subgroups, in the order of the axis.
      colored: the other rows that are named; the rest are gray lines.
      ends: lowest and highest value of the y axis.
    """
    shown = parts[0]["shown"]
    others = [who for who in dict.fromkeys(who for part in parts for who in part["values"]) if who != shown]

    def values(who: str) -> list[float]:
        return [np.nan if (value := value_of(part, who)) is None else value for part in parts]

    def limits(key: Literal["low", "high"]) -> list[float]:
        return [np.nan if (value := finite(part[key])) is None else value for part in parts]

    def draw(axes: "Axes") -> None:
        places = range(len(parts))
        for who in (each for each in others if each not in colored):
            axes.plot(places, values(who), color="#c4cad2", linewidth=1, zorder=1)
        for who, color in zip(colored, COLORS[1:], strict=False):
            axes.plot(places, values(who), color=color, marker="o", markersize=3, linewidth=1.2, label=_label(who))
        axes.fill_between(places, limits("low"), limits("high"), color=COLORS[0], alpha=0.15, linewidth=0)
        axes.plot(places, values(shown), color=COLORS[0], marker="o", markersize=5, linewidth=2.4, label=_label(shown))
        axes.set_xticks(places, [_short(part.get("place", "")) for part in parts], rotation=40, ha="right")
        axes.set_xlabel(_label(parts[0].get("axis", "")), color="#555")
        axes.set_ylabel(_label(parts[0]["metric"]), color="#555")
        axes.set_ylim(*ends)
        axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
        axes.set_axisbelow(True)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[-1:] + handles[:-1], labels[-1:] + labels[:-1], frameon=False, fontsize=9, ncols=2)

    told = "; ".join(f"{part.get('place', '')}: {digits(value_of(part, shown))}" for part in parts)
    return _image(title, (5.6, 3.9), draw, says=f"{title}. {shown} by {parts[0].get('axis', '')}: {told}")


class Confusion(TypedDict):
    """A confusion matrix; the rows of `counts` are the true labels."""

    labels: list[str]
    counts: list[list[float]]


class Bin(TypedDict):
    """Cases of similar confidence: their number, mean confidence and accuracy."""

    cases: float
    confidence: float
    accuracy: float


class Calibration(TypedDict):
    """A reliability diagram."""

    bins: list[Bin]


def chart(name: str, data: Mapping[str, object]) -> str:
    """One of `Scores.charts` as an <img>; "" for an unknown name. Raises ValueError for malformed data."""
    kind = name.split(",")[0].split(" (")[0]
    where = f"evaluation.json, chart {name!r}"
    if kind == "confusion":
        confusion: Confusion = check_type(data, Confusion, where)
        labels, counts = confusion["labels"], confusion["counts"]
        if [len(row) for row in counts] != [len(labels)] * len(labels) or not labels:
            raise ValueError(f"{where}: counts should have one row and one column per label.")
        side = 2.6 + 0.16 * len(labels)
        return _image(name.capitalize(), (side + 0.6, side), lambda axes: _confusion(axes, labels, counts))
    if kind == "calibration":
        calibration: Calibration = check_type(data, Calibration, where)
        bins = calibration["bins"]
        if not all(row["cases"] > 0 for row in bins) or not bins:
            raise ValueError(f"{where}: bins should be a list of non-empty bins.")
        return _image(name.capitalize(), (4.2, 3.6), lambda axes: _calibration(axes, bins))
    return ""


def _confusion(axes: "Axes", labels: Sequence[str], counts: Sequence[Sequence[float]]) -> None:
    """Rows are the true labels; the color of a cell is its share of the row."""
    table = np.array(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= MOST_NUMBERS:
        for row, column in np.ndindex(*table.shape):
            color = "white" if shares[row, column] > 0.5 else "#333"
            axes.text(column, row, f"{table[row, column]:.4g}", ha="center", va="center", color=color, fontsize=8)
    names = [_short(label) for label in labels] if len(labels) <= MOST_NAMES else []
    size = 9 if len(labels) <= MOST_NUMBERS else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted", color="#555")
    axes.set_ylabel("true", color="#555")


def _calibration(axes: "Axes", bins: Sequence[Bin]) -> None:
    """The area of a point is proportional to its number of cases."""
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
    axes.set_ylabel("accuracy", color="#555")


def _line(axes: "Axes", name: str, points: Sequence[tuple[int, float]], color: str, smooth: bool) -> None:
    label = _label(name)
    marker = "o" if len(points) <= 30 else ""
    steps, values = zip(*points, strict=True)
    window = len(points) // 20 if smooth else 1
    if window > 1:
        stride = -(-len(points) // POINTS_PER_LINE)
        axes.plot(steps[::stride], values[::stride], color=color, alpha=0.25, linewidth=0.8)
        sums = np.cumsum([0.0, *values])
        steps, values, marker = steps[window - 1 :], (sums[window:] - sums[:-window]) / window, ""
        label += f" (mean of {window} log lines)"
    stride = -(-len(steps) // POINTS_PER_LINE)
    axes.plot(
        steps[::stride],
        values[::stride],
        color=color,
        label=label,
        marker=marker,
        markersize=3.5,
        linewidth=1.6,
    )


def _image(title: str, size: tuple[float, float], draw: Callable[["Axes"], None], says: str = "") -> str:
    """Draws an <img>; `says` is its alternative text."""
    # matplotlib takes half a second to import: `import instructrec_jax` should not wait for it.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text: browsers have the glyphs of every language, the fonts of this machine may not.
    style = rc_context(
        {
            "svg.hashsalt": title,
            "svg.fonttype": "none",
            "font.size": 10,
            "axes.formatter.useoffset": False,
        }
    )
    with style, warnings.catch_warnings():
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
    """Text escaped for matplotlib: $ would start math mode, a leading _ would hide a legend entry."""
    return clean(text).replace("$", r"\$").replace("_", " ")


def _axis_label(value: float, _: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
