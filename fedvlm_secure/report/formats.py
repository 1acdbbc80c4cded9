"""Figures as text. What is not known is a dash; the unit is always part of the text."""

from fedvlm_secure.report.study import Estimate

UNKNOWN = "–"


def percent(value: float | None) -> str:
    """A share from 0 to 1, such as ``71.2 %``."""
    return UNKNOWN if value is None else f"{100 * value:.1f}\u202f%"


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, always with its sign."""
    return UNKNOWN if value is None else f"{100 * value:+.1f}".replace("-", "\u2212")


def count(value: float | None) -> str:
    """A whole number, such as ``12,345``."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """Three significant digits, such as ``0.0123``."""
    return UNKNOWN if value is None else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration, such as ``0.12 s`` or ``3 min 20 s``."""
    if value is None:
        return UNKNOWN
    if value < 100:
        return f"{value:.2f}\u202fs" if value < 10 else f"{value:.1f}\u202fs"
    return f"{int(value) // 60}\u202fmin {int(value) % 60}\u202fs"


def size(value: float | None) -> str:
    """Bytes in decimal units, such as ``1.25 MB``."""
    if value is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}\u202f{unit}" if value < 999.5 * scale else f"{value / scale:.0f}\u202f{unit}"
    return f"{value:.0f}\u202fB"


def shorten(name: str, most: int = 26) -> str:
    """A name that fits above a small chart."""
    return name if len(name) <= most else name[: most - 1] + "…"


def estimate(value: Estimate | None) -> str:
    """A share and its interval, such as ``71.2 ± 1.4 %``; without an interval where there is one seed only."""
    if value is None:
        return UNKNOWN
    half = "" if value.half is None else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:.1f}".replace("-", "\u2212") + f"{half}\u202f%"


def estimate_points(value: Estimate | None) -> str:
    """A difference of shares in percentage points and its interval."""
    if value is None:
        return UNKNOWN
    return points(value.mean) + ("" if value.half is None else f" ± {100 * value.half:.1f}")
