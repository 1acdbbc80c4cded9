"""A study's figures: accuracy against ε, inline for the page and as a file of its own."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvlm_secure.report.budget import LOCAL, Epsilon, Study
from fedvlm_secure.report.charts import _PERCENT, _VARIABLES, GRID, MUTED, SERIES, SURFACE, _svg

_MARKERS = ("o", "D", "s", "^", "v", "P")
_DODGE = 0.05  # between two strategies at one ε, in octaves: their bars would hide each other
_GAP = 1.2  # from the largest ε to "none", in octaves


def figure(study: Study) -> Markup:
    """Accuracy against ε: mean over hospitals, then over seeds, and 95 % intervals. y: accuracy in %."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        _frame(axes, study)
        axes.set(xlabel="target ε (log scale; smaller is more private)", ylabel="accuracy on the test split (%)")
        _strategies(axes, study, 1.8, 6)
        for height, style, label in _baselines(study):
            axes.axhline(height, color=MUTED, lw=1.3, ls=style, label=label, zorder=1)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, fontsize=9)

    return _svg("budget", "Accuracy against ε per strategy, mean over hospitals", (6.4, 4.2), draw)


def site_panel(study: Study, site: str, key: str) -> Markup:
    """The same for one hospital, small."""
    alone = study.of_site(site)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.19, 0.24, 0.78, 0.7))
        _frame(axes, alone)
        axes.set(xlabel="target ε", ylabel="accuracy (%)")
        axes.tick_params(labelsize=8)
        _strategies(axes, alone, 1.5, 4)
        for height, style, _ in _baselines(alone):
            axes.axhline(height, color=MUTED, lw=1.0, ls=style, zorder=1)

    return _svg(key, f"Accuracy against ε at {site}", (2.6, 2.0), draw)


def swatch(study: Study, strategy: str) -> Markup:
    """A legend's little square."""
    return Markup('<span class="swatch" style="background:var(--{})"></span>').format(
        _VARIABLES[_colour(study, strategy)]
    )


def document(drawing: Markup, css: Path) -> str:
    """An inline figure as a file of its own, in the page's light colours on white."""
    light = css.read_text(encoding="utf-8").partition("@media")[0]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", light))
    plain = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: colours[match[1]], str(drawing))
    plain = plain.replace(' href="#', ' xlink:href="#')  # what programs other than browsers understand
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening, closing, rest = plain.replace("<svg ", f"<svg {spaces} ", 1).partition(">")
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{opening}{closing}{paper}{rest}\n'


def _place(epsilon: Epsilon, study: Study) -> float:
    """Where an ε is on the axis, in octaves; "none" is to the right of all."""
    if epsilon is not None:
        return math.log2(epsilon)
    targets = [math.log2(target) for target in study.epsilons if target is not None]
    return max(targets) + _GAP if targets else 0.0


def _frame(axes: Axes, study: Study) -> None:
    places = [_place(epsilon, study) for epsilon in study.epsilons]
    axes.set_xticks(places, ["none" if epsilon is None else f"{epsilon:g}" for epsilon in study.epsilons])
    axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
    if None in study.epsilons and len(places) > 1:
        axes.axvline(_place(None, study) - _GAP / 2, color=GRID, lw=1.0, zorder=0)  # the scale ends here
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid(axis="y")


def _strategies(axes: Axes, study: Study, width: float, size: float) -> None:
    """A line a strategy over the ε, a mark and its interval a cell; "none" is a mark apart."""
    for number, strategy in enumerate(study.strategies):
        colour, shift = _colour(study, strategy), _DODGE * (number - (len(study.strategies) - 1) / 2)
        found = [(epsilon, study.accuracy(strategy, epsilon)) for epsilon in study.epsilons]
        points = [(_place(e, study) + shift, at.mean, at.half, e) for e, at in found if at is not None]
        private = [(x, y) for x, y, _, epsilon in points if epsilon is not None]
        axes.plot([x for x, _ in private], [y for _, y in private], "-", color=colour, lw=width, zorder=2)
        axes.plot(
            [x for x, *_ in points],
            [y for _, y, *_ in points],
            _MARKERS[number % len(_MARKERS)],
            color=colour,
            ms=size,
            mec=SURFACE,
            label=strategy,
            zorder=4,
        )
        bars = [(x, y, half) for x, y, half, _ in points if half is not None]
        if bars:
            x, y, half = zip(*bars, strict=True)
            axes.errorbar(x, y, half, fmt="none", ecolor=colour, elinewidth=width * 0.7, capsize=size / 2, zorder=3)


def _baselines(study: Study) -> Sequence[tuple[float, tuple[int, tuple[int, ...]], str]]:
    """Heights of the lines to compare with: local training without noise, the guesser, the base model."""
    local = study.accuracy(LOCAL, None)
    lines = [
        (None if local is None else local.mean, (0, (6, 2)), "local only, without DP"),
        (study.question_only, (0, (1, 2)), "question only"),
        (study.base, (0, (3, 2, 1, 2)), "base model"),
    ]
    return [(height, style, label) for height, style, label in lines if height is not None]


def _colour(study: Study, strategy: str) -> str:
    return SERIES[study.strategies.index(strategy) % len(SERIES)]
