"""What canaries refute of DP-SGD's claims, and of six broken ones: ``python benchmarks/canary_audit.py``.

The registered settings run on one hospital's rows and the embedded model, with a picture as the privacy unit. A bound
above its claim would be an error in this program; one below proves nothing. Broken on purpose, the same training is
caught, which says how much the first table is worth.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np

from fedvlm_secure import data, models
from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.audit.canaries import (
    CONFIDENCE,
    CONTROL,
    FAULTS,
    HONEST,
    REGISTERED,
    AuditResult,
    audit_setting,
    run_privacy_audit,
)
from fedvlm_secure.training import Split
from fedvlm_secure.training.features import precompute_image_features


def hospital(site: str, rows: int) -> tuple[Adapter, Split, np.ndarray]:
    """The embedded model with the default adapter, the first ``rows`` rows of a site, and each row's picture."""
    loaded = models.load("embedded", "cpu")
    adapter = attach(loaded.model, AdapterSettings(targets=loaded.lora_targets))
    own = data.by_site(data.load("hospitals")["train"])[site]
    own = own.select(range(min(rows, len(own))))
    _, pictures = np.unique(own["image_path"], return_inverse=True)
    return adapter, precompute_image_features(adapter.peft_model, data.encode(own, loaded.processor)), pictures


def show(result: AuditResult) -> None:
    """Print one line of a table."""
    guesses, setting = result.guesses, result.setting
    name = setting.name if result.fault == HONEST.name else result.fault
    print(
        f"{name:<42}{setting.epsilon:>7.1f}{result.noise_multiplier:>8.3f}"
        f"{f'{guesses.correct} of {guesses.made}':>13}{result.bound:>8.2f}{result.confidence:>12.5f}"
        f"  {'REFUTED' if result.refuted else '-'}",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", default=data.SITES[0].name)
    parser.add_argument("--rows", type=int, default=240)
    arguments = parser.parse_args()
    adapter, split, units = hospital(arguments.site, arguments.rows)
    trainable = sum(parameter.numel() for parameter in adapter.parameters.values())
    print(f"{arguments.site}: {len(split)} rows, {len(set(units.tolist()))} pictures, {trainable:,} trainable numbers")
    print(f"{'':<42}{'claim':>7}{'σ':>8}{'right':>13}{'bound':>8}{'confidence':>12}")
    run_privacy_audit(adapter, split, units, settings=REGISTERED, confidence=CONFIDENCE, on_result=show)
    print(f"\n{CONTROL.name}, {CONTROL.canaries} canaries, broken on purpose:")
    for fault in (HONEST, *FAULTS):
        show(audit_setting(CONTROL, adapter, split, units, confidence=CONFIDENCE, fault=fault))


if __name__ == "__main__":
    main()
