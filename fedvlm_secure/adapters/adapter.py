"""LoRA on a frozen base model: one base in memory, adapters swapped in and out per hospital.

Every hospital starts from the same A₀, drawn from a seed and the tensor's name or brought along by the model, and from
B₀ = 0. With different A₀ the columns of two hospitals' B would refer to different bases and their mean to none.
"""

import hashlib
import math
import re
from collections.abc import Mapping

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from fedvlm_secure.adapters.layout import SharedLayout, check_tensor
from fedvlm_secure.adapters.peft_format import PEFT_PREFIX, lora_config
from fedvlm_secure.adapters.settings import AdapterSettings
from fedvlm_secure.adapters.strategies import STRATEGIES, factor_of
from fedvlm_secure.errors import MisuseError

# The name peft gives an adapter unless told otherwise; it appears inside parameter names.
_SLOT = "default"


class Adapter:
    """A LoRA adapter attached to a base model by :func:`attach`.

    Attributes:
        peft_model: the base model with the adapter in it; what one trains and asks.
        settings: what it was attached with.
        modules: full names of the base model's modules that carry an adapter, sorted.
        parameters: the live parameters by canonical name, sorted: ``<module>.lora_A.weight`` of shape
            [rank, in] and ``<module>.lora_B.weight`` of shape [out, rank], float32.
    """

    def __init__(
        self,
        peft_model: peft.PeftModel,
        settings: AdapterSettings,
        modules: tuple[str, ...],
        bases: Mapping[str, torch.Tensor],
    ) -> None:
        self.peft_model = peft_model
        self.settings = settings
        self.modules = modules
        self._bases = bases
        found = {
            name.removeprefix(PEFT_PREFIX).replace(f".{_SLOT}.", "."): parameter
            for name, parameter in peft_model.named_parameters()
            if f".{_SLOT}." in name
        }
        self.parameters: dict[str, torch.nn.Parameter] = dict(sorted(found.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all adapter tensors, sorted."""
        return tuple(self.parameters)

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of every adapter tensor, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replace every adapter tensor by its value in ``state``, all or none.

        Raises:
            MisuseError: a name is missing or unknown, or a tensor has another shape, another dtype or
                holds NaN or infinity; the adapter is then unchanged.
        """
        unknown = sorted(set(state) - set(self.parameters))
        if unknown:
            raise MisuseError(f"this adapter has no tensor {unknown[0]}")
        for name, parameter in self.parameters.items():
            tensor = check_tensor(name, state.get(name), tuple(parameter.shape))
            if not torch.isfinite(tensor).all():
                raise MisuseError(f"adapter tensor {name} holds NaN or infinity")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def initial_state(self) -> dict[str, torch.Tensor]:
        """What every hospital starts from, newcomers too: the seeded or public A₀ and B₀ = 0."""
        return {
            name: _initial(name, tuple(parameter.shape), self.settings.seed)
            for name, parameter in self.parameters.items()
        } | {f"{module}.lora_A.weight": basis.clone() for module, basis in self._bases.items()}

    def layout(self, round_index: int) -> SharedLayout:
        """What is shared in round ``round_index``, in vector order (sorted by name)."""
        strategy = STRATEGIES[self.settings.strategy]
        return SharedLayout(
            tuple(
                (name, tuple(parameter.shape))
                for name, parameter in self.parameters.items()
                if strategy.shared(name, round_index)
            )
        )

    def detach(self) -> torch.nn.Module:
        """Take the adapter off and return the base model, as it was. This object is of no use afterwards."""
        base: torch.nn.Module = self.peft_model.unload()
        return base


def attach(
    model: torch.nn.Module, settings: AdapterSettings, bases: Mapping[str, torch.Tensor] | None = None
) -> Adapter:
    """Put a LoRA adapter on ``model``, in place, at its initial state.

    All parameters of ``model`` are frozen; only the adapter's are trainable. The global random state
    is left as it was.

    Args:
        bases: the model's public bases, for ``settings.init = "public"``: [rows, in] by module name.

    Raises:
        MisuseError: ``settings.targets`` matches no module or one that is not linear, ``model`` carries an adapter
            already, or ``bases`` lack a module or have fewer rows than the adapter's rank.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise MisuseError("the model carries an adapter already; detach() that one first")
    modules = _matched(model, settings.targets)
    chosen = _chosen(bases or {}, settings, modules) if settings.init == "public" else {}
    config = lora_config(settings, base_model=None)
    # peft draws its own initial values from the global generator; they are overwritten below.
    with torch.random.fork_rng(devices=[]):
        peft_model = peft.PeftModel(model, config, adapter_name=_SLOT)
    adapter = Adapter(peft_model, settings, modules, chosen)
    adapter.load(adapter.initial_state())
    _check_attached(adapter)
    return adapter


def _matched(model: torch.nn.Module, targets: str) -> tuple[str, ...]:
    """The modules that ``targets`` names: at least one, all linear."""
    matched = {name: module for name, module in model.named_modules() if name and re.fullmatch(targets, name)}
    if not matched:
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        examples = ", ".join(linear[:2] + linear[-2:]) or "none"
        raise MisuseError(f"adapter targets {targets!r} match no module. Linear modules here: {examples}")
    for name, module in matched.items():
        if not isinstance(module, torch.nn.Linear):
            raise MisuseError(f"adapter targets match {name}, a {type(module).__name__}; only linear modules can be")
    return tuple(sorted(matched))


def _chosen(
    bases: Mapping[str, torch.Tensor], settings: AdapterSettings, modules: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """A₀ of every module: as many rows of its basis as the rank says."""
    if missing := [module for module in modules if module not in bases]:
        there = f"there are some for {', '.join(sorted(bases))}" if bases else "this model has none"
        raise MisuseError(
            f'adapter init "public" needs a public basis for {missing[0]}, and {there}; make them with '
            '`fedvlm-secure bases`, or use adapter.init = "random"'
        )
    for module in modules:
        if settings.rank > (most := len(bases[module])):
            raise MisuseError(f"adapter rank must be at most {most}, the rows of the public basis of {module}")
    return {module: bases[module][: settings.rank] for module in modules}


def _check_attached(adapter: Adapter) -> None:
    """Compare what peft did with what was asked: recipes that silently hit other layers are common."""
    expected = {f"{module}.{factor}.weight" for module in adapter.modules for factor in ("lora_A", "lora_B")}
    trainable = {
        name.removeprefix(PEFT_PREFIX).replace(f".{_SLOT}.", ".")
        for name, parameter in adapter.peft_model.named_parameters()
        if parameter.requires_grad
    }
    if not expected == trainable == set(adapter.names):
        raise AssertionError(f"peft trains {sorted(expected ^ trainable)} other than asked")


def _initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """B₀ = 0, or A₀ uniform in ±1/√in, the usual choice for LoRA (Kaiming with a = √5).

    A whole number is drawn and scaled in float64, so that the result is the same bits on every machine: a
    float generator may round differently where the processor fuses multiply and add.
    """
    if factor_of(name) == "lora_B":
        return torch.zeros(shape)
    digest = hashlib.sha256(f"fedvlm-secure A0 {seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    steps = torch.randint(-(2**23), 2**23 + 1, shape, generator=generator)
    return (steps.double() * (2.0**-23 / math.sqrt(shape[1]))).float()
