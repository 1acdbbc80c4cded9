"""What a server reads off an update in plain, off a masked one, and off a sum: ``python examples/leakage/leakage.py``.

Writes ``leakage.html``, which opens offline, and ``leakage.json``. ``--quick`` is a first look of a minute or two.
"""

import argparse
import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from attack import trials
from attack.hospital import World, open_world
from attack.picture import Picture, Prior, prior, psnr, reconstruct
from attack.server import observe
from attack.trials import MASKED, PLAIN, Bench, Rate
from markupsafe import Markup
from PIL import Image

from fedvlm_secure.files import write, write_json
from fedvlm_secure.report.audit_page import BAD, GOOD, Mark, Page, Section, Table, cell, render

_SEED = 20_240_501  # of which rows are drawn; the attacks have no other choice
_SURE = 1e-4


_SETTING = (
    "Hospitals send the pLoRA factor B after one step on one row, or on eight, of the built-in data; the server knows "
    "the base model, A, and public rows of other areas. It looks at what it receives: in plain, under pairwise masks, "
    "or at the sum."
)
_LIMITS = (
    "There are better attacks, and training makes more steps than one: no rate here is an upper bound of what leaks. A "
    "sum over few hospitals tells what is in it, if not whose it is; masks do not change that, noise does."
)
_STRIP = "From left to right: the picture, what gradient inversion makes of the plain update, and of the masked one."


@dataclass(frozen=True, slots=True)
class Size:
    """How much is tried.

    Attributes:
        each: rows of every pair of question and answer that hospitals have.
        pictures: public pictures with which the server tries every pair.
        trials, sums: updates, and sums, that are attacked.
        rows: rows whose picture is reconstructed, with ``steps`` of search and a prior of so many ``components``.
    """

    each: int
    pictures: int
    trials: int
    sums: int
    rows: int
    steps: int
    components: int


WHOLE = Size(each=4, pictures=4, trials=48, sums=24, rows=5, steps=200, components=256)
QUICK = Size(each=2, pictures=1, trials=8, sums=0, rows=1, steps=20, components=64)


@dataclass(frozen=True, slots=True)
class Shown:
    """One row's picture, what the server makes of the update in plain and masked, and how near that comes, in dB.

    Attributes:
        guess: how near the mean of all public pictures comes: what a server shows that has seen nothing.
    """

    title: str
    original: Picture
    plain: Picture
    masked: Picture
    decibels: tuple[float, float]
    guess: float


def measure(bench: Bench, size: Size, rng: np.random.Generator) -> list[Rate]:
    """All rates of the page."""
    rates = []
    for optimizer in trials.OPTIMIZERS:
        print(f"updates of one row, {optimizer}", flush=True)
        rates += trials.uploads(bench, optimizer, 1, size.trials, (PLAIN, MASKED), rng)
    if size.sums:
        print("updates of eight rows", flush=True)
        rates += trials.uploads(bench, "sgd", 8, size.trials, (PLAIN, MASKED), rng)
        for hospitals in (3, 8):
            print(f"sums over {hospitals} hospitals", flush=True)
            rates += trials.sums(bench, "sgd", hospitals, size.sums, rng)
    return rates


def pictures(bench: Bench, size: Size, rng: np.random.Generator) -> list[Shown]:
    """Reconstructions of so many rows, from the plain upload and from the masked one."""
    world = bench.world
    known = prior(world, world.public, size.components)
    shown = []
    for place in rng.choice(len(bench.rows), size.rows, replace=False).tolist():
        print(f"picture of row {bench.rows[place]}", flush=True)
        steps = {f"hospital-{n}": bench.step([(place + n) % len(bench.rows)], "sgd") for n in range(3)}
        found = [
            _found(bench, known, place, observe(how, steps).uploads["hospital-0"], size)
            for how in ("plain", "pairwise")
        ]
        row, pair = world.private[bench.rows[place]], world.pairs[bench.pairs[place]]
        original = _pixels(row["image"])
        shown.append(
            Shown(
                f"“{pair[0]}” – “{pair[1]}”",
                original,
                found[0],
                found[1],
                (psnr(found[0], original), psnr(found[1], original)),
                psnr(known.decode(known.mean.view(1, 16, 192)), original),
            )
        )
    return shown


def _found(bench: Bench, known: Prior, place: int, seen: np.ndarray, size: Size) -> Picture:
    step = torch.from_numpy(-seen / np.linalg.norm(seen)).float()
    pair = bench.dictionaries["sgd"].guess(step, 1)[0]
    return reconstruct(bench.world, known, step, bench.world.pairs[pair], "sgd", size.steps).picture


def _pixels(image: Image.Image) -> Picture:
    return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255


def page(rates: list[Rate], shown: list[Shown]) -> Page:
    """The measurements as a page."""
    plain = [rate for rate in rates if rate.view == PLAIN and rate.rows == 1]
    masked = [rate for rate in rates if rate.view == MASKED]
    right, total = sum(rate.hits for rate in plain), sum(rate.trials for rate in plain)
    silent = all(rate.p_value > _SURE for rate in masked)
    return Page(
        title="What one update gives away",
        mark=Mark("✓", "masking hides it", GOOD) if silent else Mark("✕", "something shows through", BAD),
        verdict=f"In plain, the server was right in {right} of {total} guesses about a row. Masked, it guessed.",
        said=(
            _SETTING,
            _LIMITS,
        ),
        facts=(("guesses", f"{sum(rate.trials for rate in rates):,}"), ("pictures", f"{len(shown)}")),
        sections=(
            Section(
                "The picture",
                notes=(_STRIP,),
                charts=tuple(_strip(each) for each in shown),
                table=_decibels(shown),
            ),
            Section("Question, answer and row", table=_rates(rates)),
        ),
    )


def _strip(each: Shown) -> Markup:
    joined = np.concatenate([each.original, each.plain, each.masked], axis=1)
    file = io.BytesIO()
    Image.fromarray((joined.clip(0, 1) * 255).astype(np.uint8)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    told = f"{each.title}: the picture, found in plain, found under masks"
    return Markup('<img style="width:100%;image-rendering:pixelated" alt="{}" src="data:image/png;base64,{}">').format(
        told, data
    )


def _decibels(shown: list[Shown]) -> Table:
    rows = tuple(
        (
            cell(each.title, tone="strong"),
            cell(f"{each.decibels[0]:.1f} dB"),
            cell(f"{each.decibels[1]:.1f} dB"),
            cell(f"{each.guess:.1f} dB"),
        )
        for each in shown
    )
    return Table(("row", "from plain", "from masked", "mean picture"), rows)


def _rates(rates: list[Rate]) -> Table:
    rows = tuple(
        (
            cell(f"{rate.attack}, {rate.view}", tone="strong"),
            cell(f"{rate.rows} rows, {rate.hospitals} hospitals, one step of {rate.optimizer}"),
            cell(f"{rate.hits} of {rate.trials}", f"{rate.interval[0]:.0%} to {rate.interval[1]:.0%}"),
            cell(f"{rate.chance:.1%}"),
            cell(f"{rate.p_value:.1g}"),
        )
        for rate in rates
    )
    return Table(("guessed", "from", "right, 95 % interval", "chance", "p"), rows)


def run(out: Path, size: Size) -> tuple[list[Rate], list[Shown]]:
    """Measure, and write ``leakage.html`` and ``leakage.json`` to the folder ``out``."""
    rng = np.random.default_rng(_SEED)
    print("model, data, and what the server prepares from public rows", flush=True)
    world: World = open_world()
    prepared = trials.bench(world, size.each, size.pictures, rng)
    rates, shown = measure(prepared, size, rng), pictures(prepared, size, rng)
    write(out / "leakage.html", render(page(rates, shown)).encode())
    seen = [{"row": it.title, "decibels": list(it.decibels), "mean-picture": it.guess} for it in shown]
    write_json(out / "leakage.json", {"rates": [rate.to_json() for rate in rates], "pictures": seen})
    return rates, shown


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few trials, one picture")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for leakage.html and leakage.json")
    given = parser.parse_args()
    for rate in run(given.out, QUICK if given.quick else WHOLE)[0]:
        print(
            f"{rate.attack}, {rate.view}, {rate.rows} rows, {rate.hospitals} hospitals, {rate.optimizer}: "
            f"{rate.hits} of {rate.trials}, by chance {rate.chance:.1%}"
        )


if __name__ == "__main__":
    main()
