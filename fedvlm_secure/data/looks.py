"""What a scanner does to a picture, and the ring a reader draws on it.

The look (contrast, gain, noise) comes from the scanner, the ring from the viewer software: the ring
is therefore drawn last, crisp, and says nothing about the site.
"""

from dataclasses import dataclass

import numpy as np

SIZE = 64
RING_COLOURS: dict[str, tuple[float, float, float]] = {
    "yellow": (1.0, 0.9, 0.0),
    "green": (0.0, 0.85, 0.2),
    "pink": (1.0, 0.1, 0.8),
    "blue": (0.1, 0.4, 1.0),
}
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE]


@dataclass(frozen=True, slots=True)
class Look:
    """Ranges from which each picture's contrast, gain and noise level are drawn uniformly."""

    contrast: tuple[float, float]
    gain: tuple[float, float]
    noise: tuple[float, float]

    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the picture (float [64, 64, 3] in 0..1) as this scanner would show it."""
        contrast, gain, noise = (rng.uniform(*span) for span in (self.contrast, self.gain, self.noise))
        seen = ((picture - 0.5) * contrast + 0.5) * gain
        # One noise value a pixel, not one a channel: grey pictures stay grey.
        seen = seen + rng.normal(0.0, noise, (SIZE, SIZE, 1))
        return np.clip(seen, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Ring:
    """A circle around the spot a question is about; pixels, origin at the top left."""

    column: float
    row: float
    radius: float
    colour: str

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture with the ring on it, about 1.5 pixels wide and anti-aliased."""
        distance = np.abs(np.hypot(_COLUMNS - self.column, _ROWS - self.row) - self.radius)
        cover = np.clip(1.25 - distance, 0.0, 1.0)[..., None]
        return picture * (1.0 - cover) + np.asarray(RING_COLOURS[self.colour]) * cover


def random_ring(rng: np.random.Generator, column: float | None = None, row: float | None = None) -> Ring:
    """Draw a ring of random size and colour at the given place, or anywhere inside the picture."""
    return Ring(
        column=rng.uniform(7, SIZE - 8) if column is None else column,
        row=rng.uniform(7, SIZE - 8) if row is None else row,
        radius=rng.uniform(4.0, 6.0),
        colour=str(rng.choice(list(RING_COLOURS))),
    )


def luminance(picture: np.ndarray) -> np.ndarray:
    """Return the brightness [64, 64] in 0..1 (Rec. 601 weights)."""
    return picture @ np.array([0.299, 0.587, 0.114])


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Return the picture as uint8 [64, 64, 3]."""
    return np.rint(picture * 255).astype(np.uint8)
