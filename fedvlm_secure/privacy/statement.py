"""What a run's differential privacy promises, to whom, and what it leaves out, in words that claim no more.

After the statement of TensorFlow Privacy's ``compute_dp_sgd_privacy_statement``: unit, adjacency, δ, ε with and without
the sampling counted on, and that every intermediate model is covered. ε is one figure for all hospitals, an upper bound
for each; what a hospital's own data has spent altogether stays in its ledger.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.privacy.accounting import SampledGaussian, epsilon
from fedvlm_secure.privacy.distributed import DistributedGaussian

Level = Literal["none", "record", "client"]

_ACCOUNTANTS = {
    "prv": "privacy random variables (PRV)",
    "pld": "privacy loss distributions (PLD)",
    "rdp": "Rényi divergences (RDP)",
}
_NOT_COVERED = (
    "a hospital's own figures about its training rows: how many there are, losses, the question-only baseline",
    "validation and test figures",
    "the choice of settings",
    "the rows that the base model, and its bases if it has some, were made from",
    "timing",
    "who takes part",
)


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """A run's guarantee, or that there is none. Made by :meth:`none`, :meth:`record` or :meth:`client`.

    Attributes:
        unit: ``"image"``, ``"row"``, a column's name, or ``"hospital"``; empty without a guarantee, as is all below.
        epsilon: upper bound at ``delta`` of everything released in the run, common to all hospitals.
        epsilon_without_amplification: the same if it were known which units took part in which step.
        rounds: of the run.
        releases: what is composed: steps of DP-SGD, or answered sums; repeated ones included.
        noise_multiplier: deviation of the noise in clip norms, a step's at one hospital or a sum's.
        clip_norm: the largest L2 norm of a unit's gradient, or of a hospital's update.
        sample_rate: probability with which a unit is in a step; 1 at client level.
        size_bands: whether hospitals' size bands weigh their updates, and are taken for known.
        protocol: what sums the hospitals' noise, at client level.
        min_survivors, max_corrupt: the fewest hospitals in a sum, and how many may pool what they know.
    """

    level: Level
    unit: str = ""
    delta: float = 0.0
    epsilon: float = math.inf
    epsilon_without_amplification: float = math.inf
    accountant: str = ""
    rounds: int = 0
    releases: int = 0
    noise_multiplier: float = 0.0
    clip_norm: float = 0.0
    sample_rate: float = 1.0
    protocol: str = ""
    min_survivors: int = 0
    max_corrupt: int = 0
    size_bands: bool = False

    @classmethod
    def none(cls) -> "PrivacyStatement":
        """No differential privacy."""
        return cls("none")

    @classmethod
    def record(
        cls,
        event: SampledGaussian,
        *,
        unit: str,
        delta: float,
        clip_norm: float,
        rounds: int,
        accountant: str = "prv",
        size_bands: bool = False,
    ) -> "PrivacyStatement":
        """DP-SGD at every hospital.

        Args:
            event: all steps of the run: rounds x steps a round, and those of trainings that were repeated.
        """
        return cls(
            "record",
            unit,
            delta,
            epsilon([event], delta, accountant),
            epsilon([event], delta, accountant, amplification=False),
            accountant,
            rounds,
            event.steps,
            event.noise_multiplier,
            clip_norm,
            event.sample_rate,
            size_bands=size_bands,
        )

    @classmethod
    def client(cls, event: DistributedGaussian, *, delta: float, rounds: int, protocol: str) -> "PrivacyStatement":
        """Noise of all hospitals together inside the sum; ``event.answered`` counts the attempts of the whole run."""
        spent = epsilon([event], delta)
        return cls(
            level="client",
            unit="hospital",
            delta=delta,
            epsilon=spent,
            epsilon_without_amplification=spent,
            accountant="rdp",
            rounds=rounds,
            releases=event.answered,
            noise_multiplier=event.noise_multiplier,
            clip_norm=event.clip_norm,
            protocol=protocol,
            min_survivors=event.min_survivors,
            max_corrupt=event.max_corrupt,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PrivacyStatement":
        """What :meth:`to_json` gave; raises :class:`MisuseError` if it did not."""
        own = {each.name: values[_key(each.name)] for each in fields(cls) if values.get(_key(each.name)) is not None}
        if own.get("level") not in ("none", "record", "client"):
            raise MisuseError(f"a privacy statement of the level {own.get('level')!r} is not known to this version")
        return cls(**own)

    @property
    def adjacency(self) -> str:
        """Between which data sets the guarantee tells no difference."""
        return {"none": "", "record": "add-or-remove-one", "client": "zero-out"}[self.level]

    @property
    def outside(self) -> tuple[str, ...]:
        """What the guarantee does not cover."""
        if self.level == "none":
            return ()
        if self.level == "client":
            return "personal adapters, where published", *_NOT_COVERED
        if self.size_bands:
            return "a hospital's size band: its training rows, rounded down to a power of two", *_NOT_COVERED
        return _NOT_COVERED  # personal tensors are trained by the same noisy steps, and are as safe as the shared ones

    def to_json(self) -> dict[str, Any]:
        """Plain values for a summary, keys in kebab case; no infinity, which JSON does not have."""
        if self.level == "none":
            return {"level": "none"}
        values = {_key(each.name): getattr(self, each.name) for each in fields(self)}
        finite = {name: None if value == math.inf else value for name, value in values.items()}
        return finite | {
            "adjacency": self.adjacency,
            "sampler": "poisson" if self.level == "record" else "none",
            "noise-added-by": "each hospital, all of it" if self.level == "record" else "the hospitals, a share each",
            "honest-hospitals-needed": 1 if self.level == "record" else self.honest,
            "secure-rng": True,
            "float-noise": "mitigated, not proven" if self.level == "record" else "exact integers",
            "covers": "all intermediate and final models",
            "outside": list(self.outside),
        }

    @property
    def honest(self) -> int:
        """At client level: how many hospitals have to add noise that the observer does not know."""
        return self.min_survivors - max(self.max_corrupt, 1)

    def sentences(self) -> list[str]:
        """The statement, for a report or a terminal."""
        if self.level == "none":
            return ["No differential privacy was applied, so the trained model may still remember single rows."]
        said = _record(self) if self.level == "record" else _client(self)
        outside = f"Not covered: {'; '.join(self.outside)}."
        return [_guarantee(self), _composition(self), *said, outside]


def _guarantee(said: PrivacyStatement) -> str:
    level = "Record-level" if said.level == "record" else "Client-level"
    neighbours = {
        "record": f"with and without {_unit(said.unit)} (add-or-remove-one)",
        "client": "with one hospital's update and with zeros in its place (zero-out)",
    }[said.level]
    bound = f"ε = {_up(said.epsilon)} at δ = {said.delta:g}, an upper bound by {_ACCOUNTANTS[said.accountant]}"
    return f"{level} differential privacy: {bound}, between the outcomes {neighbours}."


def _composition(said: PrivacyStatement) -> str:
    what = f"{said.releases} steps of training" if said.level == "record" else f"{said.releases} sums"
    rounds = "1 round" if said.rounds == 1 else f"{said.rounds} rounds"
    return (
        f"It is for the whole run, {rounds} with {what} composed, and covers every intermediate model as well as the "
        "last; what other runs on the same data add is in a hospital's ledger, if its runs share one (privacy.ledger)."
    )


def _record(said: PrivacyStatement) -> list[str]:
    noise = f"{said.noise_multiplier:g} x {said.clip_norm:g}"
    sampling = (
        f"A step draws every unit with probability {said.sample_rate:g}, independently (Poisson sampling), and ε "
        "counts on it; if it were known who took part in which step, ε would be "
        f"{_up(said.epsilon_without_amplification)}."
    )
    mechanism = (
        f"Each unit's gradient is clipped to the L2 norm {said.clip_norm:g}, over all trained tensors together, and "
        f"normal noise of standard deviation {noise} is added to their sum."
    )
    trust = (
        "Every hospital adds all of its noise itself before anything leaves it, and has to trust nobody else: the "
        "guarantee holds against the server and all other hospitals together, whoever drops out."
    )
    personal = "The personal part of an adapter is trained by the same steps and has the same guarantee."
    generator = (
        "Noise and sampling come from a generator seeded by the operating system (secure_rng: true); attacks on the "
        "last digits of floating-point noise are mitigated, not proven impossible (float_noise)."
    )
    groups = (
        f"Nothing is promised to a person or group behind more than {_unit(said.unit)} without a bound on how many "
        "each is behind, nor to one with units in several hospitals."
    )
    return [sampling, mechanism, trust, personal, generator, groups]


def _client(said: PrivacyStatement) -> list[str]:
    noise = f"{said.noise_multiplier:g} x {said.clip_norm:g}"
    corrupt = max(said.max_corrupt, 1)
    observers = "1 hospital that knows its" if corrupt == 1 else f"{corrupt} hospitals that know their"
    sampling = "No chance in who takes part is counted on: without sampling amplification ε is the same."
    mechanism = (
        f"Each hospital clips its update to the L2 norm {said.clip_norm:g}, rounds it to integers and adds its share "
        f"of exact discrete Gaussian noise; the shares of {said.honest} hospitals together have the standard deviation "
        f"{noise}."
    )
    trust = (
        f"No hospital's share is enough by itself: the guarantee needs the secure sum (protocol “{said.protocol}”) to "
        f"hide everything else, and {said.honest} hospitals in it that add their noise and keep it to themselves."
    )
    bounds = (
        f"It holds for sums over as few as {said.min_survivors} hospitals, fewer are never opened, and against "
        f"{observers} own noise, together with the server."
    )
    key = (
        "All hospitals hold the key of this protocol: the guarantee ends where one of them gives it to the server, and "
        "where a lying server has hospitals read sums of different survivors and compare them."
    )
    generator = "Noise is drawn in exact integers from a generator seeded by the operating system (secure_rng: true)."
    inside = (
        "It is about a hospital's whole update in each sum; inside the hospital nothing is noised, and nothing is "
        "promised to a person whose rows lie in several hospitals."
    )
    return [sampling, mechanism, trust, bounds, *([key] if said.protocol == "bfv" else []), generator, inside]


def _unit(unit: str) -> str:
    known = {"image": "one image with all its questions", "row": "one row"}
    return known.get(unit, f"all rows with one value of “{unit}”")


def _up(value: float) -> str:
    """Three digits, rounded up: a bound that is rounded down is none."""
    if not math.isfinite(value):
        return "infinite"
    if value <= 0:
        return "0"
    scale = 10 ** (2 - math.floor(math.log10(value)))
    up = math.ceil(value * scale - 1e-9) / scale
    return f"{up:.0f}" if up >= 100 else f"{up:.3g}"


def _key(name: str) -> str:
    return name.replace("_", "-")
