"""The self-contained HTML report of a run, and the table per hospital that the command line prints as well.

Reading a run needs the standard library only; the page itself imports jinja2 and matplotlib when it is written.
"""

from pathlib import Path

from fedvlm_secure.report.headline import SiteRow, beats_both, table

__all__ = ["SiteRow", "beats_both", "table", "write"]


def write(run: Path) -> Path:
    """Write ``run/report.html`` and return its path. Equal run directories give equal bytes.

    Raises:
        MisuseError: ``run`` is no run directory, nothing has been recorded in it yet, or a file of it is damaged.
    """
    from fedvlm_secure import files
    from fedvlm_secure.report.page import render

    target = Path(run) / "report.html"
    files.write(target, render(Path(run)).encode())
    return target
