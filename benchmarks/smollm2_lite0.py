"""One federated run on pretrained weights: ``python benchmarks/smollm2_lite0.py``, after ``make smollm2-lite0``.

Three readers look at easy-vqa's pictures and are asked in English; one answers in English, one in French, one in
German. So no single adapter can be right for all three, and what a picture shows is the same for all. pLoRA under
`pairwise`, three rounds. Accuracy is exact match on each reader's test rows, before the first round and after the last.

Figures go to ``OUT/figures.json``; the run directory with its report is ``OUT/run``.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import datasets

from fedvlm_secure import data
from fedvlm_secure.engines.local import run
from fedvlm_secure.federation.settings import Settings

# The same thirteen answers in the same order.
ENGLISH, FRENCH, GERMAN = (
    tuple(words.split())
    for words in (
        "yes no circle rectangle triangle red green blue yellow teal brown black gray",
        "oui non cercle rectangle triangle rouge vert bleu jaune turquoise marron noir gris",
        "ja nein Kreis Rechteck Dreieck rot grün blau gelb türkis braun schwarz grau",
    )
)
READERS = {"english": ENGLISH, "french": FRENCH, "german": GERMAN}
COUNTS = {"train": 128, "validation": 12, "test": 100}


def readers() -> datasets.DatasetDict:
    """Equally many rows for each reader, about different pictures' questions, with the answers in its language."""
    source = data.load("easy-vqa")
    splits = {}
    for split, count in COUNTS.items():
        parts = []
        for place, (name, words) in enumerate(READERS.items()):
            said = dict(zip(ENGLISH, words, strict=True))
            rows = source[split].select(range(place * count, (place + 1) * count))
            words_of = {"said": said, "name": name}
            parts.append(rows.map(_translated, fn_kwargs=words_of, load_from_cache_file=False))
        splits[split] = datasets.concatenate_datasets(parts)
    return datasets.DatasetDict(splits)


def _translated(row: Mapping[str, str], said: Mapping[str, str], name: str) -> dict[str, str]:
    return {"chosen": said[row["chosen"]], "rejected": said[row["rejected"]], "site": name}


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2-lite0"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = readers()
    rows.save_to_disk(str(arguments.out / "rows"))
    settings = Settings.from_tables(
        {
            "name": "smollm2-lite0",
            "model": "smollm2-lite0",
            "data": str(arguments.out / "rows"),
            "rounds": arguments.rounds,
            "device": "cpu",
            "threads": arguments.threads,
            "adapter": {"layers": 10},  # of 30: the gradient need not go further down, nor the upload hold more
            "training": {"steps": arguments.steps, "batch-size": 16, "learning-rate": 2e-3},
        }
    )
    began, spent = time.monotonic(), time.process_time()
    done = run(settings, arguments.out / "run")
    sites = {row.site: dataclasses.asdict(row) for row in done.sites}
    figures = {
        "seconds": round(time.monotonic() - began),
        "cpu_seconds": round(time.process_time() - spent),
        "means": {
            name: round(statistics.fmean(site[name] for site in sites.values()), 3)
            for name in ("question_only", "base", "final")
        },
        "sites": sites,
        "summary": done.summary,
    }
    text = json.dumps(figures, indent=1)
    (arguments.out / "figures.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
