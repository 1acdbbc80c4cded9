"""What a run begins with: the base model with its adapter, the hospitals' rows, and those rows encoded."""

from collections.abc import Mapping

from datasets import Dataset

from fedvlm_secure import data, models
from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.safeguard import Protected, Rows
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.models import LoadedModel
from fedvlm_secure.privacy.ledger import fingerprint
from fedvlm_secure.training import Split
from fedvlm_secure.training.features import precompute

Encoded = dict[tuple[object, ...], dict[str, Split]]
"""Hospitals' encoded splits, by all that decides how they come out."""


def attached(settings: Settings) -> tuple[LoadedModel, Adapter]:
    """The base model, and the adapter of the settings attached to it; raises :class:`MisuseError`."""
    loaded = models.load(settings.model, settings.device, settings.dtype)
    chosen = settings.adapter.model_dump()
    targets = models.lora_targets(loaded.model, chosen.pop("layers"), chosen.pop("modules"))
    return loaded, attach(loaded.model, AdapterSettings(targets=targets, seed=settings.seed, **chosen), loaded.bases)


def sites_in(settings: Settings, observer: Observer) -> dict[str, Mapping[str, Dataset]]:
    """The hospitals of the settings with their splits; the observer hears of rows that are skipped.

    Raises:
        MisuseError: a hospital or one of its splits is not there, or rows cannot be used as the settings ask.
    """
    wanted = data.RowSettings(**settings.rows.model_dump(), unit=settings.privacy.unit)
    loaded, bad = data.load_counted(settings.data, rows=wanted)
    place = data.called(settings.data)
    if bad:
        observer.skipped(f"{len(bad)} rows of {place} cannot be used and are skipped, the first: {bad[0]}")
    sites: dict[str, dict[str, Dataset]] = {}
    for split, rows in loaded.items():
        for name, own in data.by_site(rows).items():
            sites.setdefault(name, {})[split] = own
    if unknown := sorted(set(settings.sites) - sites.keys()):
        raise MisuseError(f"settings: sites holds {unknown[0]!r}; {place} has {', '.join(sites)}")
    chosen: dict[str, Mapping[str, Dataset]] = {
        name: splits for name, splits in sites.items() if not settings.sites or name in settings.sites
    }
    for name, splits in chosen.items():
        if missing := sorted({"train", "validation", "test"} - splits.keys()):
            raise MisuseError(f"site {name!r} of {place} has no rows in the split {missing[0]!r}")
    return chosen


def encoded_splits(
    loaded: LoadedModel,
    adapter: Adapter,
    settings: Settings,
    site: str,
    splits: Mapping[str, Dataset],
    encoded: Encoded,
) -> dict[str, Split]:
    """A hospital's splits as training has them, with all that no adapter changes computed once."""
    rows = (str(settings.data), settings.rows, site)
    key = (loaded.digest, settings.device, settings.dtype, adapter.settings.targets, *rows)
    if key not in encoded:
        encoded[key] = {
            split: precompute(adapter.peft_model, data.encode(own, loaded.processor)) for split, own in splits.items()
        }
    return encoded[key]


def rows_of(splits: Mapping[str, Dataset], encoded: Mapping[str, Split], settings: Settings, description: str) -> Rows:
    """A hospital's rows as :class:`Participant` takes them."""
    return Rows(
        train=encoded["train"],
        validation=encoded["validation"],
        test=encoded["test"],
        protected=_protected(splits["train"], settings),
        question_only=data.question_only_baseline(splits["train"], splits["test"]),
        description=description,
    )


def _protected(train: Dataset, settings: Settings) -> Protected | None:
    if not settings.keeps_account:
        return None  # both look at every picture
    return Protected(data.units_of(train, settings.privacy.unit), fingerprint(data.row_digests(train)))
