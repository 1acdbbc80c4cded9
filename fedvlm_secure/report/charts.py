"""Charts as inline SVG: deterministic, without pyplot, coloured by the page's CSS so that dark mode and print work.

A chart is drawn with stand-in colours, each of which becomes a CSS variable afterwards. Text stays text: it is never
read as mathematics (a site may be called ``$x``), and matplotlib escapes it.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedvlm_secure.report.formats import UNKNOWN, shorten
from fedvlm_secure.report.headline import SiteRow

INK, MUTED, GRID, SURFACE = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
PHASE_SERIES = {"masked-input": 0, "input": 0, "keys": 1, "shares": 2, "consistency": 3, "unmask": 4}
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    colour: f"series-{place}" for place, colour in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedvlm-secure",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}")


@dataclass(frozen=True, slots=True)
class Curve:
    """One hospital's figures over the rounds: ``(round, value)``, round 0 being the base model."""

    site: str
    points: tuple[tuple[float, float], ...]


def dots(rows: Sequence[SiteRow]) -> Markup:
    """Three marks a hospital: question-only guesser, base model, after the last round. x: accuracy in %."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        marks = (("question only", "s", SERIES[5], "question_only"), ("base model", "o", SERIES[1], "base"))
        for place, row in enumerate(rows):
            known = [v for v in (row.question_only, row.base, row.final) if v is not None]
            axes.plot([min(known, default=0), max(known, default=0)], [place, place], color=GRID, lw=2, zorder=1)
        for label, marker, colour, key in (*marks, ("after the last round", "D", SERIES[0], "final")):
            found = [(getattr(row, key), place) for place, row in enumerate(rows) if getattr(row, key) is not None]
            axes.plot(
                [x for x, _ in found], [y for _, y in found], marker, color=colour, label=label, ms=7, mec=SURFACE
            )
        axes.set_yticks(range(len(rows)), [shorten(row.site) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel("accuracy on the test split (%)")
        axes.grid(axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, handletextpad=0.1)

    return _svg("dots", "Accuracy per hospital: question only, base, last round", (6.4, 1.3 + 0.3 * len(rows)), draw)


def accuracy_panel(curve: Curve, last_round: float, key: str) -> Markup:
    """One hospital's validation accuracy over the rounds, the base model's as a dashed line."""

    def draw(figure: Figure) -> None:
        axes = _panel(figure, last_round, "accuracy (%)")
        base = [value for number, value in curve.points if number == 0]
        if base:
            axes.axhline(base[0], color=SERIES[1], lw=1.2, ls=(0, (4, 3)))
            axes.text(
                last_round,
                base[0],
                "base",
                color=SERIES[1],
                ha="right",
                va="top" if base[0] > 0.2 else "bottom",
                fontsize=9,
            )
        _line(axes, curve, SERIES[0], lambda value: f"{100 * value:.0f}")
        axes.set_ylim(0, 1.08)
        axes.set_yticks([0, 0.5, 1])
        axes.yaxis.set_major_formatter(_PERCENT)

    return _svg(key, f"Validation accuracy over the rounds at {curve.site}", (2.4, 1.75), draw)


def loss_panel(curve: Curve, last_round: float, highest: float, key: str) -> Markup:
    """One hospital's mean training loss in each round; ``highest`` makes the panels comparable."""

    def draw(figure: Figure) -> None:
        axes = _panel(figure, last_round, "loss (nats)")
        _line(axes, curve, SERIES[2], lambda value: f"{value:.2g}")
        axes.set_ylim(0, 1.12 * highest or 1)
        axes.yaxis.set_major_locator(MaxNLocator(3))

    return _svg(key, f"Training loss over the rounds at {curve.site}", (2.4, 1.75), draw)


def spent_panel(curve: Curve, last_round: float, highest: float, target: float | None, key: str) -> Markup:
    """One hospital's ε after each round; ``highest`` makes the panels comparable, ``target`` is a dashed line."""

    def draw(figure: Figure) -> None:
        axes = _panel(figure, last_round, "ε spent")
        if target is not None:
            axes.axhline(target, color=MUTED, lw=1.2, ls=(0, (4, 3)))
        _line(axes, curve, SERIES[3], lambda value: f"{value:.3g}")
        axes.set_ylim(0, 1.12 * highest or 1)
        axes.yaxis.set_major_locator(MaxNLocator(3))

    return _svg(key, f"ε spent over the rounds at {curve.site}", (2.4, 1.75), draw)


def spent_bars(ends: Sequence[tuple[str, float | None]], target: float | None) -> Markup:
    """A bar a hospital: ε of all that its data has released in the end; ``target`` is a dashed line."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        places = range(len(ends))
        axes.barh(places, [value or 0 for _, value in ends], 0.62, color=SERIES[3])
        for place, (_, value) in enumerate(ends):
            said = UNKNOWN if value is None else f"{value:.3g}"
            axes.annotate(
                said, (value or 0, place), (4, 0), textcoords="offset points", va="center", color=INK, fontweight="bold"
            )
        if target is not None:
            axes.axvline(target, color=INK, lw=1.2, ls=(0, (4, 3)), label="target of this run")
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False)
        most = max([value or 0 for _, value in ends] + [target or 0])
        axes.set_xlim(0, 1.15 * most or 1)
        axes.set_yticks(places, [shorten(site) for site, _ in ends], color=INK)
        axes.set_ylim(len(ends) - 0.4, -0.6)
        axes.set_xlabel("ε of all that the hospital's data has released")
        axes.grid(axis="x")

    return _svg("spent", "ε spent per hospital", (4.6, 1.3 + 0.28 * len(ends)), draw)


def stacked(key: str, title: str, unit: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]]) -> Markup:
    """Bars a round, stacked by phase. ``parts``: phase → one value a label, in ``unit``."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        bottom = [0.0] * len(labels)
        for phase, values in parts.items():
            axes.bar(range(len(labels)), values, 0.72, bottom, color=phase_colour(phase), ec=SURFACE, lw=0.5)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        step = -(-len(labels) // 12)
        axes.set_xticks(range(0, len(labels), step), [shorten(label, 6) for label in labels[::step]], fontsize=9)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set(xlabel="round", ylabel=unit)
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.grid(axis="y")

    return _svg(key, f"{title}, per round and phase", (3.7, 2.4), draw)


def shares(counts: Mapping[str, Mapping[str, int]], what: str) -> Markup:
    """A bar a site, parted by its rows' values. ``counts``: site → value → rows, the same 6 values or fewer at each."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        totals = [sum(values.values()) for values in counts.values()]
        left = [0.0] * len(counts)
        for colour, value in zip(SERIES, next(iter(counts.values()), {}), strict=False):
            parts = [held[value] / (total or 1) for held, total in zip(counts.values(), totals, strict=True)]
            axes.barh(range(len(counts)), parts, 0.72, left, color=colour, ec=SURFACE, lw=0.5, label=shorten(value, 18))
            left = [start + part for start, part in zip(left, parts, strict=True)]
        for place, total in enumerate(totals):
            axes.annotate(f"{total:,}", (1, place), (4, 0), textcoords="offset points", va="center", color=MUTED)
        axes.set_yticks(range(len(counts)), [shorten(site) for site in counts], color=INK)
        axes.set_ylim(len(counts) - 0.4, -0.6)
        axes.set_xlim(0, 1.0)
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel(f"share of the site's rows by {what} (%); rows on the right")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False)

    return _svg("shares", f"Each site's rows by {what}", (6.4, 1.7 + 0.3 * len(counts)), draw)


def phase_colour(phase: str) -> str:
    """The stand-in colour of a phase."""
    return SERIES[PHASE_SERIES.get(phase, 5)]


def swatch(phase: str) -> Markup:
    """A legend's little square."""
    return Markup('<span class="swatch" style="background:var(--{})"></span>').format(_VARIABLES[phase_colour(phase)])


def _panel(figure: Figure, last_round: float, label: str) -> Axes:
    axes = figure.add_axes((0.22, 0.27, 0.62, 0.66))
    axes.set(xlabel="round", ylabel=label)
    axes.set_xlim(-0.02 * last_round, max(last_round, 1) * 1.04)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")
    return axes


def _line(axes: Axes, curve: Curve, colour: str, show: Callable[[float], str]) -> None:
    if not curve.points:
        axes.text(0.5, 0.5, f"{UNKNOWN} nothing recorded", transform=axes.transAxes, ha="center", color=MUTED)
        return
    rounds, values = [r for r, _ in curve.points], [v for _, v in curve.points]
    axes.plot(rounds, values, "o-", color=colour, lw=1.8, ms=3.5, clip_on=False)
    axes.annotate(
        show(values[-1]),
        (rounds[-1], values[-1]),
        (6, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontweight="bold",
    )


def _svg(key: str, label: str, inches: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """Draw and return one ``<svg>`` whose ids start with ``key`` and which fetches nothing."""
    buffer = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=inches)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Markup(_inline(buffer.getvalue(), key, label))  # noqa: S704 - matplotlib escapes every text


def _inline(document: str, key: str, label: str) -> str:
    svg = document[document.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg).replace("xlink:href", "href")
    svg = re.sub(r'(?<=<svg )height="[^"]*"|(?<=")( version="1.1")', "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1).strip()
