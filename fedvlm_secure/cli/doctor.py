"""``fedvlm-secure doctor``: whether this machine and these settings are fit for what they promise."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedvlm_secure.adapters import Adapter
    from fedvlm_secure.federation.settings import Settings

PACKAGES = ("torch", "transformers", "peft", "opacus", "dp-accounting", "tenseal", "cryptography", "numpy")
SITES_OF = (300, 1000, 3000)  # privacy units a hospital, for which the noise is put into words
LOUD = 3.0  # noise this many times the largest gradient drowned what one hospital by itself gained, in our measurements


def doctor(
    settings: Annotated[Path | None, typer.Option(help="Settings in TOML; the defaults if not given.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check the model and its adapter for what would silently break differential privacy."""
    from fedvlm_secure.federation.settings import Settings

    chosen = (
        Settings.from_tables({}, override or []) if settings is None else Settings.from_toml(settings, override or [])
    )
    report = examine(chosen)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _say(report)
    if report["findings"] and chosen.privacy.mode == "record":
        raise typer.Exit(2)


def examine(settings: "Settings") -> dict[str, Any]:
    """Versions, the model with its adapter, findings and advice, as plain values.

    Raises:
        MisuseError: the model or its adapter cannot be had.
    """
    from fedvlm_secure.engines.assembly import attached
    from fedvlm_secure.training import check_model

    loaded, adapter = attached(settings)
    findings = check_model(adapter.peft_model)
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "model": {
            "name": loaded.name,
            "family": str(loaded.model.config.model_type),
            "sha256": loaded.digest.hex(),
            "layers": len(adapter.modules),
            "trainable": _trainable(adapter),
        },
        "privacy": {"mode": settings.privacy.mode, **_noise(settings, _trainable(adapter))},
        "findings": [{"layer": found.layer, "what": found.what, "fix": found.fix} for found in findings],
    }


def _trainable(adapter: "Adapter") -> int:
    return sum(parameter.numel() for parameter in adapter.parameters.values() if parameter.requires_grad)


def _noise(settings: "Settings", trainable: int) -> dict[str, Any]:
    """The noise multiplier of record-level privacy, and how loud that is at hospitals of different sizes."""
    from fedvlm_secure.privacy.accounting import noise_multiplier
    from fedvlm_secure.training import PrivateSettings

    table = settings.privacy
    if table.mode != "record":
        return {}
    noise = table.noise_multiplier or noise_multiplier(
        table.target_epsilon,
        table.target_delta,
        table.sample_rate,
        settings.rounds * settings.training.steps,
        table.accountant,
    )
    private = PrivateSettings(noise, table.max_grad_norm, table.sample_rate)
    loud = {str(units): round(private.noise_to_signal(trainable, units), 2) for units in SITES_OF}
    return {"noise-multiplier": noise, "noise-to-signal": loud}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _say(report: dict[str, Any]) -> None:
    model, privacy = report["model"], report["privacy"]
    typer.echo(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    typer.echo(f"model {model['name']} ({model['family']}), SHA-256 {model['sha256']}")
    typer.echo(f"adapter on {model['layers']} layers, {model['trainable']:,} trainable numbers")
    for found in report["findings"]:
        typer.echo(f"{found['layer']} {found['what']}; {found['fix']}")
    if report["findings"]:
        typer.echo("differential privacy would not hold: DP-SGD refuses this model")
    else:
        typer.echo("nothing found that breaks record-level differential privacy")
    for units, times in privacy.get("noise-to-signal", {}).items():
        advice = _ADVICE if times > LOUD else ""
        typer.echo(f"{units} privacy units: a step's noise is {times} times the largest gradient{advice}")


_ADVICE = "; alone it would learn little: lower adapter.rank or adapter.layers, or raise privacy.sample-rate"
