"""The picture behind an update of one row: gradient inversion with a prior learnt from public pictures.

Geiping et al. 2020 (arXiv 2003.14053) search for the input whose gradient points where the observed one does; Jeon et
al. 2021 (arXiv 2110.14962) search inside a model of public pictures. Here that model is linear twice: principal
components of what the vision tower says of public pictures, and least squares from there to pixels. What is found is
what the model itself has seen of the picture, 16 tokens of 192 numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attack.hospital import World
from attack.text import row_gradients, shaped
from fedvlm_secure.data import encode
from fedvlm_secure.training import answer_logits, sample_losses
from fedvlm_secure.training.features import FeatureSplit

_TOKENS, _WIDTH = 16, 192
_BLOCK = 16  # pixels along a side of what one token stands for
_RIDGE = 1e-4
_PENALTY = 0.002  # of coordinates far from those of public pictures
_RATE = 0.05
_STARTS = 128  # public pictures tried as a start
Picture = NDArray[np.float32]  # [64, 64, 3] in 0 … 1


@dataclass(frozen=True)
class Prior:
    """What the server has learnt from public pictures.

    Attributes:
        features: of public pictures, [n, 16, 192].
        mean, axes: principal components, [3072] and [k, 3072], in standard deviations.
        decoder: least squares from a token and the mean of all, and a 1, to its 16x16 pixels: [385, 768].
    """

    features: torch.Tensor
    mean: torch.Tensor
    axes: torch.Tensor
    decoder: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, pictures: torch.Tensor, components: int) -> "Prior":
        """From public pictures [n, 3, 64, 64] in -1 … 1 and their features."""
        flat = features.flatten(1)
        mean = flat.mean(dim=0)
        _, scale, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        axes = (scale[:components] / len(flat) ** 0.5)[:, None] * axes[:components]
        given = _context(features).flatten(0, 1)
        square = given.T @ given
        square += _RIDGE * square.diagonal().mean() * torch.eye(len(square))
        decoder = torch.linalg.solve(square, given.T @ _blocks(pictures).flatten(0, 1))
        return cls(features, mean, axes, decoder)

    def tokens(self, place: torch.Tensor) -> torch.Tensor:
        """Features [n, 16, 192] at coordinates [n, k]."""
        return (self.mean + place @ self.axes).view(-1, _TOKENS, _WIDTH)

    def place(self, features: torch.Tensor) -> torch.Tensor:
        """Coordinates [n, k] of features, the nearest there are."""
        return (features.flatten(1) - self.mean) @ self.axes.T / self.axes.square().sum(dim=1)

    def decode(self, features: torch.Tensor) -> Picture:
        """The picture of features [1, 16, 192]."""
        side = 64 // _BLOCK
        blocks = (_context(features) @ self.decoder).view(side, side, 3, _BLOCK, _BLOCK)
        pixels = blocks.permute(0, 3, 1, 4, 2).reshape(64, 64, 3)
        return ((pixels.clamp(-1, 1) + 1) / 2).numpy()


def _context(features: torch.Tensor) -> torch.Tensor:
    everywhere = features.mean(dim=1, keepdim=True).expand_as(features)
    return torch.cat([features, everywhere, torch.ones_like(features[..., :1])], dim=2)


def _blocks(pictures: torch.Tensor) -> torch.Tensor:
    tiles = pictures.unfold(2, _BLOCK, _BLOCK).unfold(3, _BLOCK, _BLOCK)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(len(pictures), _TOKENS, -1)


def prior(world: World, rows: Sequence[Any], components: int) -> Prior:
    """The prior from public rows."""
    split = encode(rows, world.processor)  # type: ignore[arg-type]
    return Prior.of(world.encoded(rows).features, split.tensors["pixel_values"][:, 0], components)


@dataclass(frozen=True)
class Inversion:
    """A reconstruction: the picture, and the features it was made from, [1, 16, 192]."""

    picture: Picture
    features: torch.Tensor


def reconstruct(
    world: World, known: Prior, step: torch.Tensor, pair: tuple[str, str], optimizer: str, steps: int
) -> Inversion:
    """Search for the picture whose gradient, with this question and answer, points along ``step`` [d]."""
    asked = _asked(world, pair)
    sizes = [world.adapter.parameters[name].numel() for name in world.b_only.names]
    wanted = step.float().split(sizes)
    place = known.place(_start(world, known, asked, step, optimizer)).requires_grad_()
    search = torch.optim.Adam([place], lr=_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(search, steps)
    for _ in range(steps):
        batch = {**asked.split.batch([0]), asked.name: known.tokens(place)}
        apart = _apart(world, batch, wanted, optimizer)
        search.zero_grad()
        (apart + _PENALTY * place.square().mean()).backward()
        search.step()
        falling.step()
    with torch.no_grad():
        found = known.tokens(place)
    return Inversion(known.decode(found), found)


def _asked(world: World, pair: tuple[str, str]) -> FeatureSplit:
    """One row with this question and answer; its picture is a public one."""
    return world.encoded([{**world.public[0], "question": pair[0], "chosen": pair[1]}])


def _start(world: World, known: Prior, asked: FeatureSplit, step: torch.Tensor, optimizer: str) -> torch.Tensor:
    """The features of the public picture that fits best so far, of those spread over all."""
    rows = torch.linspace(0, len(known.features) - 1, min(_STARTS, len(known.features))).long()
    text = {name: tensor.expand(len(rows), *tensor.shape[1:]) for name, tensor in asked.split.tensors.items()}
    tried = FeatureSplit(type(asked.split)(text), known.features[rows], asked.name)
    fit = shaped(row_gradients(world, tried), optimizer) @ step.float()
    return known.features[rows[fit.argmax()]][None]


def _apart(
    world: World, batch: dict[str, torch.Tensor], wanted: Sequence[torch.Tensor], optimizer: str
) -> torch.Tensor:
    """One minus the cosine between gradient and observed step, the mean over tensors."""
    loss = sample_losses(*answer_logits(world.adapter.peft_model, batch)).mean()
    tensors = [world.adapter.parameters[name] for name in world.b_only.names]
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    if optimizer == "adamw":  # a sign that can be differentiated
        gradients = tuple(each / (each.abs() + 0.3 * each.detach().abs().mean()) for each in gradients)
    cosines = [
        torch.nn.functional.cosine_similarity(each.flatten(), goal, dim=0)
        for each, goal in zip(gradients, wanted, strict=True)
    ]
    return 1 - torch.stack(cosines).mean()


def psnr(picture: Picture, original: Picture) -> float:
    """Peak signal-to-noise ratio, dB."""
    return float(-10 * np.log10(np.mean((picture - original) ** 2)))
