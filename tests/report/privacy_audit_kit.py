"""An audit of privacy as its page gets it."""

from fedvlm_secure.audit.calibration import Calibration
from fedvlm_secure.audit.experiments import Control, Experiment, PrivacyAudit, silenced


def audited(name: str = "hospitals", bound: float = 1.2) -> PrivacyAudit:
    """One experiment of each kind, and the calibration."""
    outcome = "refuted" if bound > 3.9 else "not refuted"
    chance = Control("base model", None, None, "before this training, by the base model's losses alone: AUC 0.501")
    return PrivacyAudit(
        name,
        "Record-level differential privacy: ε = 3.9 at δ = 1e-05.",
        (
            Experiment(
                "canary units in DP-SGD",
                "record",
                outcome,
                3.9,
                1e-5,
                bound,
                0.95,
                None,
                silenced(64.0, 3.9),
                ("812 of 1,000 guesses about 10,000 canaries at retina were right",),
            ),
            Experiment(
                "canary clients in the sums", "client", "not refuted", 3.9, 1e-5, 0.4, 0.95, 3.1, silenced(31.0, 3.9)
            ),
            Experiment("membership inference", "row", "measured", control=chance, seen=("AUC 0.612",)),
        ),
        (Calibration(2.0, {100: 0.0, 1000: 0.4}, {100: 0.0, 1000: 0.6}, 2.7, 1.7, 0.9),),
    )
