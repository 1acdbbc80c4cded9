"""What a run protected and what not, in sentences that claim no more than the protocol that really ran."""

from fedvlm_secure import data
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report.reading import RunRecord, mapping, names, number, text


def protection(run: RunRecord) -> list[str]:
    """The opening paragraph, sentence by sentence."""
    protocol = text(run.fact("protocol"))
    said = {"plain": _plain, "pairwise": _pairwise, "ckks": _encrypted, "bfv": _encrypted}.get(protocol, _other)(run)
    hidden = {"plain": [], "ckks": _not_encrypted(run), "bfv": _not_encrypted(run)}.get(protocol, _not_hidden())
    return [*said, *hidden, *_noise(run), *_simulation(run)]


def insecurities(run: RunRecord) -> tuple[str, ...]:
    """What the run opted into that protects less than it could; of an unfinished run, what its settings opt into."""
    if run.summary is not None and isinstance(run.summary.get("insecure"), list):
        return names(run.summary["insecure"])
    from fedvlm_secure.federation.settings import Settings

    try:
        return Settings.from_tables(run.settings).insecure
    except MisuseError:
        return ("the settings are not those of this version, so this report cannot tell what they give up",)


def simulated_hospitals(run: RunRecord) -> bool:
    """Whether the rows are the built-in simulated hospitals'."""
    return data.level_of(text(run.settings.get("data"))) is not None


def _plain(run: RunRecord) -> list[str]:
    nothing = (
        "Nothing was protected: under the protocol “plain” the server can read every hospital's update, weight and "
        "counters in every round."
    )
    return [nothing, "No picture and no question is part of a message, but an update can betray the rows behind it."]


def _pairwise(run: RunRecord) -> list[str]:
    corrupt, least = number(run.fact("max-corrupt")), number(run.fact("min-survivors"))
    protected = (
        "Protected: every hospital's update, its sample weight and its own counts of right answers. They left the "
        "hospital only inside a masked vector (protocol “pairwise”), made so that the server can read nothing but the "
        "sum over the hospitals that took part. Pictures, questions and an adapter's personal part were never sent."
    )
    model = f"Threat model “{text(run.fact('threat-model')) or '–'}”: {_threat(run)} {_collusion(corrupt)}"
    sentences = [protected, model]
    threshold, cohort = number(run.fact("threshold")), len(names(run.fact("cohort")))
    if threshold is not None and cohort:
        sentences.append(f"Masks come off only with the help of {threshold:.0f} of the {cohort} hospitals.")
    if least is not None:
        sentences.append(f"A sum over fewer than {least:.0f} hospitals is never opened.")
    return sentences


def _encrypted(run: RunRecord) -> list[str]:
    protocol, least = text(run.fact("protocol")), number(run.fact("min-survivors"))
    protected = (
        "Protected from the server: every hospital's update, its sample weight and its own counts of right answers, "
        "the sums of them, and the model that follows. They left the hospital encrypted only "
        f"(protocol “{protocol}”), under a key that the hospitals hold and the server does not."
    )
    shared = (
        "Not protected from a server that has any one of the hospitals on its side: every hospital holds the key, so "
        "the two together can read every update."
    )
    sentences = [protected, shared, f"Threat model “{text(run.fact('threat-model')) or '–'}”: {_threat(run)}"]
    if least is not None:
        sentences.append(f"Hospitals accept no sum over fewer than {least:.0f} of them.")
    return sentences


def _not_encrypted(run: RunRecord) -> list[str]:
    published = names(mapping(run.settings, "policy").get("published"))
    told = f"the sums of {', '.join(published)}, which hospitals published" if published else "no sum"
    known = (
        "Every hospital reads the sums, and what sums over changing groups of hospitals reveal when compared. "
        f"The server learns {told}, who took part and who fell silent, times and message sizes."
    )
    return [known]


def _other(run: RunRecord) -> list[str]:
    protocol, threat_model = (text(run.fact(key)) or "–" for key in ("protocol", "threat-model"))
    sentence = f"The updates were aggregated under the protocol “{protocol}” and the threat model “{threat_model}”;"
    return [f"{sentence} its specification says who learns what."]


def _collusion(corrupt: float | None) -> str:
    if corrupt == 0:
        return "No hospital may collude with the server: if one does, nothing is promised."
    most = "An unrecorded number" if corrupt is None else f"Up to {corrupt:.0f}"
    return (
        f"{most} of the hospitals may collude with the server and still learn only the sum over the others; "
        "if more do, nothing is promised."
    )


def _threat(run: RunRecord) -> str:
    return {
        "honest-but-curious": "the server is assumed to follow the protocol; a server that lies is not detected.",
        "malicious-server": "the server may send anything; hospitals check what they are sent and stop if it is wrong.",
    }.get(text(run.fact("threat-model")), "not one that this report knows.")


def _not_hidden() -> list[str]:
    sums = (
        "Not protected: the sums themselves and the shared model made from them, who took part and who fell silent, "
        "times and message sizes, and what sums over changing groups of hospitals reveal when compared."
    )
    return [sums]


def _noise(run: RunRecord) -> list[str]:
    """What differential privacy promises, as the run's own summary states it."""
    mode = text(mapping(run.settings, "privacy").get("mode")) or "none"
    if mode == "none":
        return ["No differential privacy was applied, so the trained model may still remember single rows."]
    stated = names(mapping(run.summary or {}, "privacy").get("sentences"))
    return list(stated) or [
        f"Differential privacy (“{mode}”) was asked for; the run is unfinished and states no ε yet."
    ]


def _simulation(run: RunRecord) -> list[str]:
    if not run.sites:
        return []
    simulated = (
        "This run was a simulation: all hospitals' folders lie in one place, and whoever controls that machine can "
        "read all of them. What is said above holds for the same messages between separate machines."
    )
    return [simulated]
