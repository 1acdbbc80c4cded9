"""Prints the tables of the data card, ``docs/data-hospitals.md``: ``python -m fedvlm_secure.data.card``."""

from collections import Counter
from pathlib import Path

from fedvlm_secure.data.rows import by_site, question_only_baseline
from fedvlm_secure.data.sites import SITES
from fedvlm_secure.data.store import load


def sites_table(cache_dir: Path | None = None) -> str:
    """Return a Markdown table: a line per hospital with its rows per split and its question-only baseline."""
    splits = load("hospitals", cache_dir)
    held = {split: by_site(rows) for split, rows in splits.items()}
    lines = [
        "| site | modality | conventions | train | validation | test | question-only |",
        "|---|---|---|---|---|---|---|",
    ]
    for site in SITES:
        counts = " | ".join(str(len(held[split][site.name])) for split in ("train", "validation", "test"))
        guess = question_only_baseline(held["train"][site.name], held["test"][site.name])
        conventions = ", ".join(site.conventions)
        lines.append(f"| {site.name} | {site.modality} | {conventions} | {counts} | {guess:.3f} |")
    return "\n".join(lines)


def looks_table() -> str:
    """Return a Markdown table of what each hospital's scanner does to a picture."""
    lines = ["| site | contrast | gain | noise |", "|---|---|---|---|"]
    for site in SITES:
        spans = (site.look.contrast, site.look.gain, site.look.noise)
        lines.append(f"| {site.name} | " + " | ".join(f"{low} to {high}" for low, high in spans) + " |")
    return "\n".join(lines)


def questions_table(cache_dir: Path | None = None) -> str:
    """Return a Markdown table: training rows per hospital and question template."""
    train = load("hospitals", cache_dir)["train"]
    counts = Counter(zip(train["site"], train["origin_split"], strict=True))
    templates = list(dict.fromkeys(template for site in SITES for template in site.questions))
    lines = ["| site | " + " | ".join(templates) + " |", "|---" * (len(templates) + 1) + "|"]
    for site in SITES:
        cells = " | ".join(str(counts[site.name, template] or "") for template in templates)
        lines.append(f"| {site.name} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(sites_table(), looks_table(), questions_table(), sep="\n\n")
