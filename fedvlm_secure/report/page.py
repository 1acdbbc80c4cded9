"""The page: what the template shows, put together from a run directory."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedvlm_secure.report import charts, formats, pictures, rounds, statement, templates
from fedvlm_secure.report.headline import beats_both, mean, site_row
from fedvlm_secure.report.reading import Line, RunRecord, SiteRecord, load, mapping, names, number, text
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY

_FACTS = ("protocol", "threat-model", "max-corrupt", "threshold", "min-survivors", "strategy", "rank")


def render(run: Path) -> str:
    """The whole page; the same text for equal run directories."""
    record = load(run)
    shown = (formats.percent, formats.points, formats.count, formats.decimal, formats.seconds, formats.size)
    return templates.render("report.html.j2", (*shown, charts.swatch), _context(record))


def _context(run: RunRecord) -> dict[str, Any]:
    history = rounds.attempts(run)
    return {
        "name": text(run.fact("name")) or formats.UNKNOWN,
        "finished": run.summary is not None,
        "statement": statement.protection(run),
        "insecure": statement.insecurities(run),
        "simulated_hospitals": statement.simulated_hospitals(run),
        "facts": _facts(run),
        "headline": _headline(run),
        "accuracy_panels": _accuracy_panels(run.sites),
        "loss_panels": _loss_panels(run.sites),
        "encoding": _encoding(run.sites),
        "privacy": _privacy(run),
        "attempts": history,
        "participants": rounds.participants(run, history),
        "phases": rounds.phases(history),
        "cost_charts": _cost_charts(history),
        "costs": rounds.costs(history),
        "training_seconds": rounds.training_seconds(history),
        "per_parameter": rounds.bytes_per_parameter(run, history),
        "parameters": number(run.fact("shared-parameters")),
        "ring_bits": number(run.fact("ring-bits")),
        "upload": pictures.upload(run),
        "server_rows": [_server_row(attempt) for attempt in history],
        "plain": run.fact("protocol") == "plain",
        "protected_words": run.fact("protocol") == "pairwise",
        "sealed": run.fact("protocol") if run.fact("protocol") in SHARED_KEY else "",
        "settings_text": run.settings_text,
        "versions": _versions(run),
    }


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Small facts under the title: name and value."""
    done = len({attempt.round for attempt in rounds.attempts(run) if attempt.kind == "training"})
    values = [(key, _plainly(run.fact(key))) for key in _FACTS]
    summary = run.summary or {}
    return [
        ("rounds", f"{done} of {_plainly(run.settings.get('rounds'))}"),
        ("hospitals", formats.count(len(names(run.fact("cohort"))) or len(run.sites) or None)),
        *values,
        ("time", formats.seconds(number(summary.get("seconds")))),
        ("traffic", formats.size(number(summary.get("bytes")))),
        ("test accuracy, pooled", formats.percent(number(summary.get("test-accuracy")))),
    ]


def _plainly(value: Any) -> str:
    if isinstance(value, str):
        return text(value)
    figure = number(value)
    return formats.UNKNOWN if figure is None else f"{figure:g}"


def _headline(run: RunRecord) -> dict[str, Any]:
    rows = [site_row(site) for site in run.sites]
    tested = [number(mapping(site.summary, "rows").get("test")) for site in run.sites]
    fewest = min((count for count in tested if count), default=None)
    return {
        "rows": rows,
        "means": [mean([getattr(row, key) for row in rows]) for key in ("question_only", "base", "final", "gain")],
        "beats": beats_both(rows),
        "compared": sum(row.gain is not None for row in rows),
        "chart": charts.dots(rows) if any(row.base is not None or row.final is not None for row in rows) else "",
        "fewest": fewest,
        "margin": None if fewest is None else 1.96 * math.sqrt(0.25 / fewest),
    }


def _curves(sites: Sequence[SiteRecord], lines: Callable[[SiteRecord], list[Line]], key: str) -> list[charts.Curve]:
    curves = []
    for site in sites:
        points = [(number(line.get("round")), number(line.get(key))) for line in lines(site)]
        curves.append(charts.Curve(site.name, tuple((r, v) for r, v in points if r is not None and v is not None)))
    return curves


def _last_round(curves: Sequence[charts.Curve]) -> float:
    return max((number for curve in curves for number, _ in curve.points), default=1)


def _accuracy_panels(sites: Sequence[SiteRecord]) -> list[tuple[str, Markup]]:
    curves = _curves(
        sites, lambda site: site.stage("base", "validation") + site.stage("adopted", "validation"), "accuracy"
    )
    last = _last_round(curves)
    return [
        (curve.site, charts.accuracy_panel(curve, last, f"accuracy{place}"))
        for place, curve in enumerate(curves)
        if curve.points
    ]


def _encoding(sites: Sequence[SiteRecord]) -> str:
    """Whether the clip norm and the range of the encoding were wide enough for the updates; empty if unknown."""
    lines = [line for site in sites for line in site.stage("encoding")]
    if not lines:
        return ""
    clipped = sum(line.get("clipped") is True for line in lines)
    saturated = sum(number(line.get("saturated")) or 0 for line in lines)
    return (
        f"Of {len(lines)} encoded updates {clipped} were longer than the clip norm and scaled down to it; "
        f"{saturated:.0f} coordinates lay beyond the encoding's range."
    )


def _loss_panels(sites: Sequence[SiteRecord]) -> list[tuple[str, Markup]]:
    curves = _curves(sites, lambda site: site.stage("training"), "mean-loss")
    highest = max((value for curve in curves for _, value in curve.points), default=1.0)
    last = _last_round(curves)
    return [
        (curve.site, charts.loss_panel(curve, last, highest, f"loss{place}"))
        for place, curve in enumerate(curves)
        if curve.points
    ]


def _privacy(run: RunRecord) -> dict[str, Any]:
    """ε of all that each hospital's data has released, by round and at the end; empty where none is recorded."""
    curves = [_spent(site) for site in run.sites]
    if not any(curve.points for curve in curves):
        return {}
    target = number(mapping(run.settings, "privacy").get("target-epsilon"))
    highest = max([value for curve in curves for _, value in curve.points] + ([target] if target else []))
    last = _last_round(curves)
    ends = [(curve.site, curve.points[-1][1] if curve.points else None) for curve in curves]
    return {
        "target": target,
        "bars": charts.spent_bars(ends, target),
        "panels": [
            (curve.site, charts.spent_panel(curve, last, highest, target, f"spent{place}"))
            for place, curve in enumerate(curves)
            if curve.points
        ],
    }


def _spent(site: SiteRecord) -> charts.Curve:
    by_round: dict[float, float] = {}
    for line in site.stage("training") + site.stage("noise"):
        at, epsilon = number(line.get("round")), number(line.get("epsilon"))
        if at is not None and epsilon is not None:
            by_round[at] = max(epsilon, by_round.get(at, 0.0))
    return charts.Curve(site.name, tuple(sorted(by_round.items())))


def _cost_charts(history: Sequence[rounds.Attempt]) -> dict[str, Markup]:
    """Bars for bytes up, bytes down and seconds; left out where nothing was recorded."""
    parts: dict[str, tuple[str, Callable[[rounds.Attempt], dict[str, float]], float]] = {
        "up": ("Hospitals → server", lambda attempt: attempt.up, 1e6),
        "down": ("Server → hospitals", lambda attempt: attempt.down, 1e6),
        "seconds": ("Seconds in the protocol", lambda attempt: attempt.seconds, 1),
    }
    drawn = {}
    for key, (title, part, scale) in parts.items():
        timed = [attempt for attempt in history if part(attempt)]
        stack = {phase: [part(attempt).get(phase, 0.0) / scale for attempt in timed] for phase in rounds.phases(timed)}
        if timed:
            unit = "MB, all hospitals" if scale > 1 else "seconds"
            drawn[key] = charts.stacked(f"bars-{key}", title, unit, [attempt.label for attempt in timed], stack)
    return drawn


def _server_row(attempt: rounds.Attempt) -> dict[str, Any]:
    keys = ("total-weight", "correct", "asked", "accuracy", "loss", "update-norm")
    return {"attempt": attempt} | {key.replace("-", "_"): number(attempt.line.get(key)) for key in keys}


def _versions(run: RunRecord) -> list[tuple[str, str]]:
    versions = mapping(run.summary or {}, "versions")
    return sorted((text(package), _plainly(version)) for package, version in versions.items())
