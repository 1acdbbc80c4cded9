"""Synthetic run directories: the smallest files a report reads, with plausible figures."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm_secure.federation.settings import Settings

PAIRWISE = ("keys", "shares", "masked-input", "consistency", "unmask")
SITES = ("aspen", "birch", "cedar", "elm", "fir", "hazel", "oak", "pine")
PARAMETERS = 20_000
RING_BYTES = 5


@dataclass(frozen=True)
class SyntheticRun:
    """What differs from an undisturbed, finished, pairwise run of three rounds."""

    sites: Sequence[str] = SITES
    rounds: int = 3
    finished: bool = True
    protocol: str = "pairwise"
    dropped: Mapping[int, Sequence[str]] = field(default_factory=dict)
    aborted: Mapping[int, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    first_bytes: tuple[bytes, bytes] | None = None  # before and after, of the first site's upload
    epsilon: float | None = None  # spent by the first site in each round; the others spend a little more

    def write(self, run: Path) -> Path:
        """Write the run directory and return it."""
        settings = Settings.from_tables(
            {"name": "synthetic", "rounds": self.rounds, "aggregation": {"protocol": self.protocol}},
            [] if self.epsilon is None else ["privacy.mode=record", "privacy.target-epsilon=8"],
        )
        run.mkdir(parents=True)
        (run / "settings.toml").write_text(settings.to_toml(), encoding="utf-8")
        _lines(run / "coordinator" / "metrics.jsonl", self._coordinator())
        for place, site in enumerate(self.sites):
            _lines(run / "sites" / site / "metrics.jsonl", self._site(place))
            _json(run / "sites" / site / "summary.json", self._site_summary(place, site))
        if self.finished:
            _json(run / "coordinator" / "summary.json", self._summary(settings))
        if self.first_bytes is not None:
            self._picture(run, *(base64.b64encode(half).decode() for half in self.first_bytes))
        return run

    def _picture(self, run: Path, before: str, after: str) -> None:
        words = self.protocol in ("plain", "pairwise")
        own = {"form": "words", "value-bytes": RING_BYTES} if words else {"form": "update", "value-bytes": 4}
        phase, site = "masked-input" if self.protocol == "pairwise" else "input", self.sites[0]
        _json(run / "sites" / site / "first-bytes.json", {"round": 1, "attempt": 1, "bytes": before} | own)
        seen = {"round": 1, "attempt": 1, "hospital": site, "phase": phase, "bytes": after}
        _json(run / "coordinator" / "first-bytes.json", seen)

    @property
    def _done(self) -> int:
        return self.rounds if self.finished else self.rounds - 1

    def _coordinator(self) -> list[dict[str, Any]]:
        lines = []
        for number in range(1, self._done + 1):
            if number in self.aborted:
                lines.append(
                    {
                        "kind": "aborted",
                        "round": number,
                        "attempt": 1,
                        "reason": self.aborted[number],
                        "dropped": list(self.sites[:2]),
                    }
                )
            lines.append(self._aggregation("training", number) | {"training-seconds": 12.5})
        return [*lines, self._aggregation("evaluation", self._done + 1)] if self.finished else lines

    def _aggregation(self, kind: str, round: int) -> dict[str, Any]:
        gone = list(self.dropped.get(round, ())) if kind == "training" else []
        survivors = [site for site in self.sites if site not in gone]
        phases = PAIRWISE if self.protocol == "pairwise" else ("input",)
        upload = PARAMETERS * RING_BYTES if kind == "training" else 400
        sizes = {phase: {"request": 900 * len(self.sites), "reply": 2000 * len(self.sites)} for phase in phases}
        sizes["masked-input" if self.protocol == "pairwise" else "input"] = {
            "request": 500 * len(self.sites),
            "reply": upload * len(survivors),
        }
        return {
            "kind": kind, "round": round, "attempt": 2 if round in self.aborted and kind == "training" else 1,
            "survivors": survivors, "dropped": gone, "total-weight": 4321, "correct": 700 + 50 * round, "asked": 1600,
            "accuracy": (700 + 50 * round) / 1600, "loss": 1.5 / round,
            "update-norm": 0.5 if kind == "training" else None,
            "bytes": sizes, "seconds": {phase: 0.05 + 0.02 * i for i, phase in enumerate(phases)},
        }  # fmt: skip

    def _site(self, place: int) -> list[dict[str, Any]]:
        base, final = 0.3 + 0.02 * place, 0.6 + 0.03 * place
        scores = {"correct": 60, "asked": 200, "loss": 2.0}
        lines: list[dict[str, Any]] = [
            {"round": 0, "stage": "base", "split": split, "accuracy": base} | scores for split in ("test", "validation")
        ]
        for number in range(1, self._done + 1):
            reached = base + (final - base) * (1 - math.exp(-3 * number / self.rounds))
            loss = 2.2 * math.exp(-2 * number / self.rounds) + 0.05 * place
            trained = {"steps": 15, "mean-loss": loss, "last-loss": loss, "update-norm": 0.7}
            spent = None if self.epsilon is None else self.epsilon * number + 0.1 * place
            lines.append({"round": number, "stage": "training", "seconds": 2.5, "epsilon": spent} | trained)
            lines.append({"round": number, "stage": "encoding", "saturated": 2, "clipped": number == 1})
            lines.append({"round": number, "stage": "adopted", "split": "validation", "accuracy": reached} | scores)
        if self.finished:
            lines.append({"round": self._done, "stage": "final", "split": "test", "accuracy": final} | scores)
        return lines

    def _site_summary(self, place: int, site: str) -> dict[str, Any]:
        return {
            "site": site, "description": self.descriptions.get(site, f"brain MRI, scanner {place + 1}"),
            "rows": {"train": 400 + 100 * place, "validation": 100, "test": 200}, "question-only": 0.35,
            "base": 0.3 + 0.02 * place, "final": 0.6 + 0.03 * place if self.finished else None,
        }  # fmt: skip

    def _summary(self, settings: Settings) -> dict[str, Any]:
        return {
            "name": "synthetic", "run": "00" * 16, "spec": "1.0", "protocol": self.protocol,
            "threat-model": "malicious-server", "max-corrupt": 1, "threshold": 5, "min-survivors": 3,
            "cohort": list(self.sites), "rounds": self.rounds, "strategy": "plora", "shared-parameters": PARAMETERS,
            "ring-bits": None if self.protocol in ("ckks", "bfv") else 8 * RING_BYTES,
            "insecure": list(settings.insecure), "test-accuracy": 0.7, "seconds": 222.0,
            "bytes": 5_000_000, "versions": {"torch": "2.13.0", "fedvlm-secure": "0.1.0"},
        }  # fmt: skip


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _lines(path: Path, values: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
