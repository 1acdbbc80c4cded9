"""LoRA on a frozen base model: one base in memory, adapters swapped in and out per hospital.

Every hospital starts from the same A₀, drawn from a seed and the tensor's name or brought along by the model, and from
B₀ = 0. With different A₀ the columns of two hospitals' B would refer to different bases and their mean to none.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from fedvlm_secure.adapters.core import add_core, principal_factors
from fedvlm_secure.adapters.layout import SharedLayout, check_tensor
from fedvlm_secure.adapters.peft_format import PEFT_PREFIX, lora_config
from fedvlm_secure.adapters.settings import AdapterSettings
from fedvlm_secure.adapters.strategies import CORE, STRATEGIES, A, B, Strategy, factor_of
from fedvlm_secure.errors import MisuseError

# The name peft gives an adapter unless told otherwise; it appears inside parameter names.
_SLOT = "default"
# What names of vision towers, and of what leads from them to the text, have in common over all model families.
_VISION = re.compile("vision|visual|image|connector|projector")


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
        given: Mapping[str, torch.Tensor],
    ) -> None:
        self.peft_model = peft_model
        self.settings = settings
        self.modules = modules
        self._given = given
        found = {
            _canonical(name): parameter for name, parameter in peft_model.named_parameters() if f".{_SLOT}." in name
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
        } | {name: tensor.clone() for name, tensor in self._given.items()}

    @property
    def strategy(self) -> Strategy:
        """What is shared and trained, round by round."""
        return replace(STRATEGIES[self.settings.strategy], warm_up=self.settings.warm_up)

    def layout(self, round_index: int) -> SharedLayout:
        """What is shared in round ``round_index``, in vector order (sorted by name)."""
        return self._layout(name for name in self.parameters if self.strategy.shared(name, round_index))

    def common_layout(self) -> SharedLayout:
        """What is shared in any round, in vector order: all that hospitals hold alike."""
        return self._layout(filter(self.strategy.ever_shared, self.parameters))

    def trained(self, round_index: int) -> dict[str, torch.nn.Parameter]:
        """The live parameters that are trained in round ``round_index``, by canonical name, sorted."""
        return {
            name: parameter for name, parameter in self.parameters.items() if self.strategy.trained(name, round_index)
        }

    def exported(self) -> dict[str, torch.Tensor]:
        """A copy as plain LoRA: a core is multiplied into A."""
        state = self.state()
        for name in [name for name in state if factor_of(name) == CORE]:
            first = name.replace(f".{CORE}.", f".{A}.")
            state[first] = state.pop(name) @ state[first]
        return state

    def _layout(self, names: Iterable[str]) -> SharedLayout:
        return SharedLayout(tuple((name, tuple(self.parameters[name].shape)) for name in names))

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
        MisuseError: ``settings.targets`` matches no module, one that is not linear or shares its weight with another,
            or one of the vision part, which it does not name; ``model`` carries an adapter already; or ``bases`` lack a
            module or have fewer rows than the adapter's rank.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise MisuseError("the model carries an adapter already; detach() that one first")
    modules = _matched(model, settings.targets)
    given = _given(model, settings, modules, bases or {})
    config = lora_config(settings, base_model=None)
    # peft draws its own initial values from the global generator; they are overwritten below.
    with torch.random.fork_rng(devices=[]):
        peft_model = peft.PeftModel(model, config, adapter_name=_SLOT)
    if STRATEGIES[settings.strategy].has_core:
        add_core(peft_model, _SLOT)
    adapter = Adapter(peft_model, settings, modules, given)
    adapter.load(adapter.initial_state())
    _check_attached(adapter)
    return adapter


def _matched(model: torch.nn.Module, targets: str) -> tuple[str, ...]:
    """The modules that ``targets`` names: at least one, all linear, none tied and none of the vision part unasked."""
    matched = {name: module for name, module in model.named_modules() if name and re.fullmatch(targets, name)}
    if not matched:
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        examples = ", ".join(linear[:2] + linear[-2:]) or "none"
        raise MisuseError(f"adapter targets {targets!r} match no module. Linear modules here: {examples}")
    for name, module in matched.items():
        if not isinstance(module, torch.nn.Linear):
            raise MisuseError(f"adapter targets match {name}, a {type(module).__name__}; only linear modules can be")
    if tied := _tied(model, matched):
        raise MisuseError(f"adapter targets match {_listed(tied)}, which share their weight with other modules")
    # Whoever wants them spells them out: `.*vision_tower.*q_proj` is asked for, `.*q_proj` is not.
    if unasked := [name for name in matched if (found := _VISION.search(name)) and found[0] not in targets]:
        raise MisuseError(
            f"adapter targets match {_listed(unasked)} outside the language side; match that alone, or say which part "
            "of the vision side is meant"
        )
    return tuple(sorted(matched))


def _tied(model: torch.nn.Module, matched: Iterable[str]) -> list[str]:
    """The modules among ``matched`` whose weight has another name too."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [name for name in matched if len(names[id(model.get_submodule(name).weight)]) > 1]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _given(
    model: torch.nn.Module, settings: AdapterSettings, modules: tuple[str, ...], bases: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The initial tensors, by canonical name, that are not drawn and not zero."""
    given: dict[str, torch.Tensor] = {}
    if STRATEGIES[settings.strategy].has_core:
        for module in modules:
            factors = principal_factors(model.get_parameter(f"{module}.weight"), settings.rank)
            given |= {f"{module}.{factor}.weight": tensor for factor, tensor in factors.items()}
    if settings.init == "public":
        given |= _public(bases, settings, modules)
    return given


def _public(
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
    return {f"{module}.{A}.weight": bases[module][: settings.rank] for module in modules}


def _canonical(name: str) -> str:
    """A parameter's name without what peft puts around it."""
    return name.removeprefix(PEFT_PREFIX).replace(f".{_SLOT}.", ".").replace(f".{A}.core.", f".{CORE}.")


def _check_attached(adapter: Adapter) -> None:
    """Compare what peft did with what was asked: recipes that silently hit other layers are common."""
    factors = (A, B, CORE) if adapter.strategy.has_core else (A, B)
    expected = {f"{module}.{factor}.weight" for module in adapter.modules for factor in factors}
    trainable = {
        _canonical(name) for name, parameter in adapter.peft_model.named_parameters() if parameter.requires_grad
    }
    if not expected == trainable == set(adapter.names):
        raise AssertionError(f"peft trains {sorted(expected ^ trainable)} other than asked")


def _initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """B₀ and R₀ = 0, or A₀ uniform in ±1/√in, the usual choice for LoRA (Kaiming with a = √5).

    A whole number is drawn and scaled in float64, so that the result is the same bits on every machine: a
    float generator may round differently where the processor fuses multiply and add.
    """
    if factor_of(name) != A:
        return torch.zeros(shape)
    digest = hashlib.sha256(f"fedvlm-secure A0 {seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    steps = torch.randint(-(2**23), 2**23 + 1, shape, generator=generator)
    return (steps.double() * (2.0**-23 / math.sqrt(shape[1]))).float()
