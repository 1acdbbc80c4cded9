"""Membership inference against the adapters of a finished run."""

from collections.abc import Callable, Mapping

import numpy as np
from datasets import Dataset

from fedvlm_secure.adapters import Adapter, SavedAdapter, attach, load_peft
from fedvlm_secure.audit.experiments import CONFIDENCE, MEASURED, NOT_CHECKABLE, Control, Experiment
from fedvlm_secure.audit.membership import RATE, Floats, Found, allowed, attack, pooled
from fedvlm_secure.engines.assembly import encoded_splits
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import read_json
from fedvlm_secure.models import LoadedModel
from fedvlm_secure.privacy.statement import PrivacyStatement
from fedvlm_secure.training import Split, row_losses

Say = Callable[[str], None]
Sites = Mapping[str, Mapping[str, Dataset]]


def members(
    settings: Settings,
    claim: PrivacyStatement,
    loaded: LoadedModel,
    sites: Sites,
    folder: RunDirectory | None,
    say: Say,
) -> Experiment:
    """Membership inference against every hospital's finished adapter."""
    name = "membership inference"
    if folder is None:
        return Experiment(
            name, "row", NOT_CHECKABLE, seen=("it needs the adapters of a finished run, name its folder",)
        )
    saved = _saved(folder, sites)
    adapter = attach(loaded.model, next(iter(saved.values())).settings)
    scores, plain = {}, {}
    for site, splits in sites.items():
        say(f"losses at {site}")
        encoded = encoded_splits(loaded, adapter, settings, site, splits, {})
        adapter.load(adapter.initial_state())  # B is zero: the base model's answers
        before = _losses(adapter, encoded)
        adapter.load(saved[site].state)
        after = _losses(adapter, encoded)
        scores[site] = before[0] - after[0], before[1] - after[1]
        plain[site] = -before[0], -before[1]
    found, chance = (attack(*pooled(each), CONFIDENCE) for each in (scores, plain))
    most = allowed(claim.epsilon, claim.delta) if claim.level == "record" else None
    return Experiment(
        name,
        "row",
        MEASURED,
        claim.epsilon if most is not None else None,
        claim.delta if most is not None else None,
        confidence=CONFIDENCE,
        control=Control(
            "base model", None, None, f"before this training, by the base model's losses alone: {_figures(chance)}"
        ),
        seen=(_figures(found), *_limits(found, most)),
        details={**found.to_json(), "allowed": most, "base-model": chance.to_json()},
    )


def _losses(adapter: Adapter, encoded: Mapping[str, Split]) -> tuple[Floats, Floats]:
    """Of the rows that were trained on, and of those that were not."""
    losses = {split: row_losses(adapter.peft_model, rows) for split, rows in encoded.items()}
    return losses["train"], np.concatenate([losses["validation"], losses["test"]])


def _saved(folder: RunDirectory, sites: Sites) -> dict[str, SavedAdapter]:
    """Every hospital's finished adapter.

    Raises:
        MisuseError: one is not there, they differ in kind, or the data is not what it was.
    """
    saved = {}
    for name, splits in sites.items():
        place = folder.site(name).path
        if not (place / "summary.json").exists():
            raise MisuseError(f"{place} has no summary: the run has not ended; go on with run --resume {folder.path}")
        rows = read_json(place / "summary.json")["rows"]
        if any(len(splits[split]) != rows[split] for split in rows):
            raise MisuseError(f"{name} had other rows when it was trained; name the data that the run was made with")
        saved[name] = load_peft(place / "adapter")
    if len({one.settings for one in saved.values()}) > 1:
        raise MisuseError(f"the adapters in {folder.path} are not of one run")
    return saved


def _figures(found: Found) -> str:
    area = f"AUC {found.area:.3f}"
    if found.rate is None:
        return f"{area}; {found.others} non-members are too few to measure a false positive rate of {RATE:.1%}"
    return (
        f"TPR {found.rate:.2%} ({found.low:.2%} to {found.high:.2%}) at {RATE:.1%} FPR: {found.found} of "
        f"{found.members} members, {found.mistaken} of {found.others} non-members; {area}"
    )


def _limits(found: Found, most: float | None) -> list[str]:
    if most is None or found.rate is None:
        return []
    return [f"the claim allows a TPR of up to {most:.2%} there"]
