"""The pages of audits: what they say, and that nothing a stranger has named becomes markup."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from privacy_audit_kit import audited as privacy_audited
from typer.testing import CliRunner

from fedvlm_secure.audit.catalogue import ATTACKS, Result
from fedvlm_secure.audit.experiments import PROVES_NOTHING
from fedvlm_secure.audit.target import NOT_APPLICABLE, RESISTED, VULNERABLE
from fedvlm_secure.audit.verdict import FAIL, PASS, Finding
from fedvlm_secure.cli import app
from fedvlm_secure.report import audit_page, audit_privacy_page, audit_protocol_page, audit_run_page

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """The start tags of a page, and its readable text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs if tag != "use")

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def of_run(verdict) -> Tags:
    return Tags(audit_page.render(audit_run_page.page(verdict)))


def of_protocol(target, *results) -> Tags:
    return Tags(audit_page.render(audit_protocol_page.page(target, results)))


def result(place, outcome):
    return Result(ATTACKS[place].name, outcome, "0 of 12 words", "the update is read", "P-1")


def test_a_verdict_says_for_whom(verdict):
    said = of_run(verdict).text
    assert f"✓ pass {verdict.sentence}" in said
    assert f"No request went unrecorded for {len(verdict.logs)} of {len(verdict.logs) + 2} clients" in said
    assert f"● log to the end of the run : {len(verdict.logs)} ○ no log given : 2" in said
    assert "no log given 2 site-000, site-001" in said


def test_every_clause_is_there_with_what_was_not_checked(verdict):
    said = of_run(verdict).text
    for clause in verdict.clauses:
        assert clause.clause in said
        assert all(f"not checked: {why}" in said for why in clause.why)


def test_what_failed_comes_first_with_its_evidence(verdict):
    broken = replace(
        verdict.clauses[6], outcome=FAIL, failures=30, findings=(Finding("round 1", "was used twice"),) * 20
    )
    said = of_run(replace(verdict, clauses=(*verdict.clauses[:6], broken, *verdict.clauses[7:]))).text
    assert said.count("✕ fail") == 3  # the verdict, the legend, the clause
    assert "A clause does not hold." in said
    assert said.count("round 1: was used twice") == 20
    assert "and 10 more" in said
    assert said.index("A-7") < said.index("A-1 ")


def test_attempts_and_who_was_silent(verdict):
    silent = [attempt for attempt in verdict.attended if attempt.silent]
    assert silent, "the run of this test has dropouts"
    said = of_run(verdict).text
    for attempt in verdict.attended:
        row = f"round {attempt.round}, attempt {attempt.attempt} {len(attempt.silent)} {', '.join(attempt.silent)}"
        assert (row in said) == bool(attempt.silent)


def test_names_of_strangers_are_never_markup(verdict):
    evil = Finding(f"log of {EVIL}", "turned \u202e round")
    clause = replace(verdict.clauses[0], outcome=FAIL, failures=1, findings=(evil,), why=(EVIL,))
    hostile = replace(
        verdict,
        protocol=EVIL,
        cohort=(EVIL, *verdict.cohort),
        logs=(EVIL,),
        covered=(EVIL,),
        clauses=(clause,),
        attended=tuple(replace(it, silent=(EVIL,)) for it in verdict.attended),
    )
    page = of_run(hostile)
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 5
    assert "\u202e" not in page.text


def test_attacks_are_counted_and_told(verdict):
    page = of_protocol("pairwise", result(0, RESISTED), result(1, RESISTED), result(2, NOT_APPLICABLE))
    assert "✓ no attack succeeded 0 vulnerable, 2 resisted, 1 not applicable." in page.text
    assert f"{ATTACKS[0].name} {ATTACKS[0].tried} ✓ resisted 0 of 12 words the update is read P-1" in page.text
    assert "before you publish" not in page.text


def of_privacy(audit) -> Tags:
    return Tags(audit_page.render(audit_privacy_page.page(audit)))


def test_a_privacy_audit_says_what_a_bound_is_worth():
    said = of_privacy(privacy_audited()).text
    assert "✓ not refuted No claim was refuted." in said
    assert PROVES_NOTHING in said
    for words in ("1.20 at 95% confidence", "estimate 3.10, no bound", "3.90 at δ = 1e-05", "64 or more"):
        assert words in said
    assert "control: before this training, by the base model's losses alone: AUC 0.501" in said
    assert "0.4 / 0.6" in said  # the calibration
    assert "svg" in of_privacy(privacy_audited()).tags
    assert "✕ refuted A claim is refuted." in of_privacy(privacy_audited(bound=4.2)).text
    assert EVIL in of_privacy(privacy_audited(name=EVIL)).text


def test_a_finding_about_another_project_goes_there_first():
    page = of_protocol(EVIL, result(0, VULNERABLE))
    assert "✕ attacks succeeded 1 vulnerable" in page.text
    assert "before you publish anything" in page.text
    assert "before you publish" not in of_protocol("plain", result(0, VULNERABLE)).text
    assert "script" not in page.tags


def test_equal_verdicts_are_equal_pages(verdict):
    assert audit_page.render(audit_run_page.page(verdict)) == audit_page.render(audit_run_page.page(verdict))


def typed(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_the_command_writes_the_page_beside_what_it_prints(audited, verdict, tmp_path):
    folder, logs = audited
    page = tmp_path / "audit.html"
    said = typed("run", folder, *(f"--client-log={log}" for log in logs), "--html", page, "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["verdict"] == PASS
    assert page.read_text(encoding="utf-8") == audit_page.render(audit_run_page.page(verdict))


@pytest.mark.parametrize("inside", ["audit.html", "coordinator/../sites/audit.html"])
def test_no_page_is_written_among_what_the_manifest_lists(audited, inside):
    folder, _ = audited
    said = typed("run", folder, "--html", folder / inside)
    assert said.exit_code != 0
    assert "name one outside" in str(said.exception)
    assert not (folder / inside).exists()


def test_the_attack_table_as_a_page(tmp_path):
    page = tmp_path / "pages/plain.html"
    said = typed("protocol", "plain", "--html", page)
    assert said.exit_code == 0
    shown = Tags(page.read_text(encoding="utf-8"))
    assert all(attack.name in shown.text for attack in ATTACKS)
    assert f"{ATTACKS[0].name} {ATTACKS[0].tried} ✕ vulnerable" in shown.text
