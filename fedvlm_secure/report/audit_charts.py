"""Charts of audits."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvlm_secure.audit.experiments import Experiment
from fedvlm_secure.audit.verdict import Attended
from fedvlm_secure.report.charts import GRID, INK, MUTED, SERIES, SURFACE, _svg
from fedvlm_secure.report.formats import shorten

_KINDS = (("in the sum", SERIES[0], ""), ("uploaded, no sum", SERIES[5], "///"), ("silent", SERIES[1], "xxx"))


def attendance(attempts: Sequence[Attended]) -> Markup:
    """Bars an attempt: clients in the sum, those who uploaded to an attempt without one, and those without an upload.

    Kinds differ in hatching as well as in colour. An attempt is labelled by its round; ``2.1`` came to no sum.
    """

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        places = range(len(attempts))
        counts = (
            [len(attempt.uploaded) if attempt.summed else 0 for attempt in attempts],
            [0 if attempt.summed else len(attempt.uploaded) for attempt in attempts],
            [len(attempt.silent) for attempt in attempts],
        )
        bottom = [0] * len(attempts)
        for (label, colour, hatch), heights in zip(_KINDS, counts, strict=True):
            if not any(heights):
                continue
            axes.bar(places, heights, 0.72, bottom, color=colour, ec=SURFACE, lw=0.5, hatch=hatch, label=label)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        labels = [f"{it.round}" if it.summed else f"{it.round}.{it.attempt}" for it in attempts]
        step = -(-len(labels) // 12)
        axes.set_xticks(list(places)[::step], [shorten(label, 6) for label in labels[::step]], fontsize=9, color=INK)
        axes.set_xlim(-0.6, max(len(labels), 4) - 0.4)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("round; 2.1 is an attempt without a sum", color=MUTED)
        axes.set_ylabel("clients")
        axes.grid(axis="y", color=GRID)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=3, frameon=False, fontsize=9, columnspacing=1)

    return _svg("attendance", "Clients in the sum, and silent, per attempt", (3.9, 2.6), draw)


def bounds(experiments: Sequence[Experiment]) -> Markup:
    """For each experiment with a bound: the claimed ε as a line, the bound, and what the control without noise gives.

    Estimators end at 64; a bar that reaches so far says «or more».
    """

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        for place, each in enumerate(experiments):
            control = None if each.control is None else each.control.bound
            axes.barh(place + 0.2, each.bound or 0.0, 0.32, color=SERIES[0], label="" if place else "bound")
            if control is not None:
                axes.barh(
                    place - 0.2,
                    control,
                    0.32,
                    color=SERIES[1],
                    hatch="///",
                    ec=SURFACE,
                    label="" if place else "control",
                )
            if each.claimed is not None:
                axes.vlines(each.claimed, place - 0.45, place + 0.45, color=INK, lw=2, label="" if place else "claim")
        axes.set_yticks(range(len(experiments)), [each.level for each in experiments], color=INK)
        axes.set_ylim(len(experiments) - 0.4, -0.6)
        axes.set_xlim(0, None)
        axes.set_xlabel("ε", color=MUTED)
        axes.grid(axis="x", color=GRID)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=3, frameon=False, fontsize=9)

    return _svg("bounds", "Claimed ε, the bound, and the control's", (3.9, 1.2 + 0.7 * len(experiments)), draw)
