"""A comparison's figures: accuracy per strategy, a panel a data set, and small ones for each hospital."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvlm_secure.report.charts import _PERCENT, INK, MUTED, SERIES, SURFACE, _svg
from fedvlm_secure.report.comparison import Study

_COLUMNS = 2  # panels side by side


def figure(study: Study) -> Markup:
    """Mean over hospitals and worst hospital per strategy, then over seeds, and 95 % intervals. x: accuracy in %."""
    across = min(_COLUMNS, len(study.levels))
    down = -(-len(study.levels) // across)
    height = 0.9 + 0.34 * len(study.strategies)

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(study.levels):
                axes.set_axis_off()
                continue
            level = study.levels[place]
            _panel(axes, study, level)
            axes.set_title(level, loc="left", fontsize=10.5, color=INK)
            if place + across >= len(study.levels):
                axes.set_xlabel("accuracy on the test split (%)")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=9)

    return _svg("comparison", "Accuracy per strategy and data set", (3.6 * across + 0.4, height * down + 0.4), draw)


def site_panel(study: Study, level: str, site: str, key: str) -> Markup:
    """The same for one hospital, small."""
    alone = study.of_site(site)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.22, 0.2, 0.74, 0.76))
        _panel(axes, alone, level, worst=False)
        axes.tick_params(labelsize=8)

    size = (2.6, 0.55 + 0.2 * len(study.strategies))
    return _svg(key, f"Accuracy per strategy at {site} of {level}", size, draw)


def _panel(axes: Axes, study: Study, level: str, worst: bool = True) -> None:
    for height, style, label in (
        (study.question_only(level), (0, (1, 2)), "question only"),
        (study.base(level), (0, (3, 2, 1, 2)), "base model"),
    ):
        if height is not None:
            axes.axvline(height, color=MUTED, lw=1.2, ls=style, label=label, zorder=1)
    for place, strategy in enumerate(study.strategies):
        colour = SERIES[place % len(SERIES)]
        mean = study.accuracy(level, strategy)
        if mean is None:
            continue
        if mean.half is not None:
            axes.errorbar(mean.mean, place, xerr=mean.half, fmt="none", ecolor=colour, elinewidth=1.4, capsize=3)
        first = place == 0
        axes.plot(mean.mean, place, "o", color=colour, ms=7, mec=SURFACE, label="mean" if first and worst else None)
        least = study.estimate(level, strategy, lambda cell: cell.worst)
        if worst and least is not None:
            axes.plot(least.mean, place, "|", color=colour, ms=11, mew=2, label="worst hospital" if first else None)
    axes.set_yticks(range(len(study.strategies)), study.strategies, color=INK)
    axes.set_ylim(len(study.strategies) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.grid(axis="x")
