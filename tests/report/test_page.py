import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from run_factory import SyntheticRun

from fedvlm_secure import report
from fedvlm_secure.errors import MisuseError


class Tags(HTMLParser):
    """Every start tag and the readable text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(run: Path) -> str:
    path = report.write(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return written(finished)


@pytest.fixture(scope="module")
def text(page: str) -> str:
    return Tags(page).text


def test_two_writes_are_byte_equal(finished, page):
    assert report.write(finished).read_text(encoding="utf-8") == page


def test_pyplot_and_its_settings_stay_untouched(finished):
    before = dict(mpl.rcParams)
    report.write(finished)
    assert dict(mpl.rcParams) == before


def test_nothing_is_fetched_and_nothing_runs(page):
    for tag, attributes in Tags(page).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        if tag == "img":
            assert attributes.pop("src").startswith("data:image/png;base64,")
        assert all(not name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_no_stand_in_colour_is_left(page):
    assert "#0102" not in page


def test_what_was_protected_and_what_not(text):
    assert "protocol “pairwise”" in text
    assert "Threat model “malicious-server”" in text
    assert "Up to 1 of the hospitals may collude" in text
    assert "5 of the 8 hospitals" in text
    assert "Not protected: the sums themselves" in text
    assert "No differential privacy was applied" in text
    assert "not for diagnosis" in text


def test_a_secure_run_has_no_alarm(page):
    assert 'class="alarm"' not in page


def test_per_site_figures_are_marked_as_a_simulation_view(page):
    for heading in ("What each hospital gained", "Accuracy over the rounds", "Training loss"):
        section = page[page.index(f"<h2>{heading}") :]
        assert "Simulation view: no server sees this" in section[: section.index("</section>")]


def test_headline(text):
    assert "Beats both on 8 of 8 sites." in text
    assert "birch brain MRI, scanner 2 500 35.0 % 32.0 % 63.0 % +28.0" in text
    assert "mean, every hospital counts alike 35.0 % 37.0 % 70.5 % +32.4" in text


def test_who_took_part(page):
    matrix = page[page.index('class="matrix"') :]
    matrix = matrix[: matrix.index("</table>")]
    labels = re.findall(r"<th>([^<]*)</th>", matrix[: matrix.index("</thead>")])
    assert labels == ["hospital", "1", "2", "3.1", "3", "test"]
    fates = {
        re.search("<th>(.*?)</th>", line)[1]: re.findall(r'<td class="(\w+)"', line)
        for line in matrix[matrix.index("<tbody>") :].split("<tr>")[1:]
    }
    assert fates["elm"] == ["survived", "dropped", "aborted", "survived", "survived"]
    assert fates["aspen"] == ["survived", "survived", "dropped", "survived", "survived"]


def test_an_aborted_attempt_tells_its_reason(text):
    assert "Round 3, attempt 1 was aborted: phase unmask: 4 hospitals remain, 5 are needed <in masked-input>" in text


def test_cost(text):
    assert "5 bytes a parameter : 20,000 shared parameters, in a ring of 40 bits" in text
    assert "all phases" in text
    # keys: 4 aggregations of 8 hospitals, 900 bytes down and 2,000 up for each
    assert "keys 28.8 kB 64 kB 900 B 2 kB 0.20 s" in text


def test_what_the_server_saw_holds_no_single_hospital(page):
    section = page[page.index("<h2>What the server saw") :]
    section = section[: section.index("</section>")]
    assert "4,321" in section
    assert "birch" not in section


def test_settings_and_versions(finished, page, text):
    settings = html.unescape(re.search("<pre>(.*?)</pre>", page, re.DOTALL)[1])
    assert settings == (finished / "settings.toml").read_text(encoding="utf-8")
    assert "torch 2.13.0" in text


def test_plain_is_loud(tmp_path):
    page = written(SyntheticRun(protocol="plain", rounds=1).write(tmp_path / "run"))
    assert 'class="alarm"' in page
    text = Tags(page).text
    assert "Insecure: this run gave up protection" in text
    assert "protocol plain: the server reads every hospital's update" in text
    assert "Nothing was protected" in text
    assert "Under “plain” the server saw every hospital's vector" in text


@pytest.mark.parametrize("protocol", ["ckks", "bfv"])
def test_a_shared_key_is_loud_and_its_sums_are_unread(tmp_path, protocol):
    page = written(SyntheticRun(protocol=protocol, rounds=1).write(tmp_path / "run"))
    assert 'class="alarm"' in page
    text = Tags(page).text
    assert f"protocol {protocol}: every hospital holds the key" in text
    assert "the two together can read every update" in text
    assert f"Under “{protocol}” the server could read none of these sums" in text
    assert "The server learns no sum, who took part" in text
    assert "in a ring of" not in text


def test_an_unfinished_run_renders_and_is_loud_too(tmp_path):
    run = SyntheticRun(protocol="plain", finished=False).write(tmp_path / "run")
    for summary in run.glob("sites/*/summary.json"):
        summary.unlink()
    text = Tags(written(run)).text
    assert "This run is unfinished" in text
    assert "rounds 2 of 3" in text
    assert "protocol plain" in text
    assert "Insecure" in text
    assert "Beats both" not in text


def test_others_words_are_never_markup_nor_mathematics(tmp_path):
    evil = "<script>alert(1)</script>"
    name = "$\\frac{<img src=x onerror=alert(2)>"
    run = SyntheticRun(
        sites=("aspen", "birch", "cedar", name),
        rounds=2,
        descriptions={name: evil, "birch": "turned \u202e round \ud800"},
        aborted={2: evil},
    ).write(tmp_path / "run")
    page = written(run)
    assert not {"script", "img"} & {tag for tag, _ in Tags(page).tags}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert name in Tags(page).text
    assert "\u202e" not in page


def test_settings_are_escaped(tmp_path):
    run = SyntheticRun(rounds=1, sites=("aspen",)).write(tmp_path / "run")
    (run / "settings.toml").write_text('name = "x</pre><script>1</script>"\n', encoding="utf-8")
    page = written(run)
    assert "script" not in {tag for tag, _ in Tags(page).tags}


def test_only_coordinator(tmp_path):
    """The server's own machine holds no hospital's folder: nothing per site, and no talk of a simulation."""
    run = SyntheticRun(rounds=1).write(tmp_path / "run")
    (run / "sites").rename(tmp_path / "elsewhere")
    text = Tags(written(run)).text
    assert "imulation view" not in text
    assert "This run was a simulation" not in text
    assert "What the server saw" in text


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"kind": 3, "survivors": "all", "bytes": [1], "seconds": None},
        {"kind": "training", "round": "one", "bytes": {"keys": 4}},
    ],
)
def test_odd_lines_are_dashes(tmp_path, line):
    run = SyntheticRun(rounds=1, sites=("aspen",)).write(tmp_path / "run")
    for path in (run / "coordinator/metrics.jsonl", run / "sites/aspen/metrics.jsonl"):
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    (run / "coordinator/summary.json").write_text("{}", encoding="utf-8")
    (run / "sites/aspen/summary.json").write_text("{}", encoding="utf-8")
    assert "–" in written(run)


def test_no_run_directory(tmp_path):
    with pytest.raises(MisuseError, match="is not a run directory: it holds no settings"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_nothing_to_report_yet(tmp_path):
    (tmp_path / "settings.toml").write_text("", encoding="utf-8")
    with pytest.raises(MisuseError, match="nothing to report yet"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    "path", ["settings.toml", "coordinator/metrics.jsonl", "coordinator/summary.json", "sites/aspen/summary.json"]
)
@pytest.mark.parametrize("content", [b"[", b"\xff\xfe", b"[1]\n{"])
def test_damage_names_the_file(tmp_path, path, content):
    run = SyntheticRun(rounds=1, sites=("aspen",)).write(tmp_path / "run")
    (run / path).write_bytes(content)
    with pytest.raises(MisuseError) as refusal:
        report.write(run)
    assert str(run / path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_clipping_and_saturation_are_told(tmp_path: Path) -> None:
    page = report.write(SyntheticRun(sites=("a", "b"), rounds=3).write(tmp_path / "run")).read_text(encoding="utf-8")
    assert "Of 6 encoded updates 2 were longer than the clip norm" in page
    assert "12 coordinates lay beyond" in page


def pictures(page: str) -> list[np.ndarray]:
    """The pictures of a page, as the bytes they show."""
    sources = [attributes["src"] for tag, attributes in Tags(page).tags if tag == "img"]
    shown = [Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) for source in sources]
    return [np.asarray(picture) for picture in shown]


def test_an_upload_is_shown_byte_by_byte(tmp_path):
    before, after = bytes([7, 7, 7, 0, 0]) * 819 + b"\0", np.random.default_rng(0).bytes(4096)
    page = written(SyntheticRun(first_bytes=(before, after), rounds=1).write(tmp_path / "run"))
    left, right = pictures(page)
    assert left.shape == right.shape == (68, 60), "whole numbers of five bytes"
    assert left.tobytes() == before[:4080]
    assert right.tobytes() == after[:4080]
    text = Tags(page).text
    assert "Round 1, hospital aspen: the first 4,080 bytes" in text
    assert "Its encoded update before masking, 5 bytes a number." in text
    assert "The same bytes after masking." in text
    assert "Entropy 0.97 bits a byte, χ² 539,050" in text  # 4,080 (256 (0.6² + 0.4²) − 1)
    assert "Entropy 7.95 bits a byte" in text
    assert "entropy of about 7.95 bits a byte" in text
    assert f"{100 * np.mean(left == right):.1f} % of the bytes are the same" in text


def test_under_plain_the_pictures_are_the_same(tmp_path):
    content = bytes(range(256)) * 16
    page = written(SyntheticRun(protocol="plain", first_bytes=(content, content), rounds=1).write(tmp_path / "run"))
    left, right = pictures(page)
    assert (left == right).all()
    text = Tags(page).text
    assert "100.0 % of the bytes are the same" in text
    assert "Under “plain” the server is sent what the hospital has." in text
    assert "after masking" not in text


def test_ciphertexts_are_called_so(tmp_path):
    halves = bytes(4096), np.random.default_rng(1).bytes(4096)
    text = Tags(written(SyntheticRun(protocol="ckks", first_bytes=halves, rounds=1).write(tmp_path / "run"))).text
    assert "Its update before it is encoded and encrypted, float32." in text
    assert "The beginning of the first ciphertext." in text


@pytest.mark.parametrize(
    ("half", "change"),
    [
        ("coordinator", {"bytes": "no base64"}),
        ("coordinator", {"attempt": 2}),
        ("coordinator", {"hospital": "birch"}),
        ("sites/aspen", {"value-bytes": 1e9}),
        ("sites/aspen", {"value-bytes": "five"}),
        ("sites/aspen", {"bytes": 12}),
        ("sites/aspen", {"bytes": ""}),
    ],
)
def test_halves_that_do_not_belong_together_are_not_shown(tmp_path, half, change):
    run = SyntheticRun(first_bytes=(bytes(4096), bytes(4096)), rounds=1).write(tmp_path / "run")
    place = run / half / "first-bytes.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change), encoding="utf-8")
    page = written(run)
    assert "<img" not in page
    assert "One upload, as bytes" not in page


def test_a_run_without_pictures_says_nothing_of_them(page):
    assert "One upload, as bytes" not in page


def test_what_each_hospital_has_spent(tmp_path):
    page = written(SyntheticRun(epsilon=2.0).write(tmp_path / "run"))
    section = page[page.index("<h2>Privacy spent") :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 1 + 8
    assert [f">{6 + 0.1 * place:.3g}<" in section for place in range(8)] == [True] * 8
    assert "Simulation view" in section
    assert "target of this run" in section


def test_no_epsilon_is_shown_where_none_was_spent(page):
    assert "Privacy spent" not in page
