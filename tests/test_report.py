"""`apd report`: the page's numbers are the run's, names do no harm, and the images are what they are called."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import apd
from apd.evaluation.certified.stored import load_certified, save_certified
from apd.evaluation.compare import compare_runs
from apd.evaluation.stored import load_stored
from apd.report import report
from apd.report.facts import choose_headline
from apd.report.page import best_under_attack
from apd.runs.folder import Run

from .command_line import Cli
from .refusals import check_error, refused

pytestmark = pytest.mark.usefixtures("short_checks")

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = '</script><img src=x onerror="alert(1)">&\u202e'


class Page(HTMLParser):
    """Elements with their attributes, the numbers beside them, and the text of each table row."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.json, self._script = "", False
        self._row: list[str] | None = None
        self.feed(file.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.elements.append((tag, about))
        if tag == "script":
            self._script = about.get("id") == "apd-data"
        elif tag == "table":
            self.tables.append((about.get("class") or "", []))
        elif tag == "tr":
            self._row = []
            self.tables[-1][1].append(self._row)
        elif tag in ("td", "th") and self._row is not None:
            self._row.append("")
        elif tag == "data" and self._row:
            self._row[-1] += f"[{about['value']}]"

    def handle_endtag(self, tag: str) -> None:
        self._script = self._script and tag != "script"
        self._row = None if tag == "tr" else self._row

    def handle_data(self, data: str) -> None:
        if self._script:
            self.json += data
        elif self._row:
            self._row[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.json)
        return found

    def rows(self, kind: str) -> list[list[str]]:
        """The body of the tables of a class."""
        return [row for name, rows in self.tables if kind in name.split() for row in rows[1:]]


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation; tests copy it to change it."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "colours run")
    apd.evaluate_run(run, attacks=("pgd-1", "pgd-2"), eps="8/255", quiet=True, device="cpu")
    return run


@pytest.fixture(scope="module")
def page(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(evaluated, tmp_path_factory.mktemp("page") / "report.html", quiet=True)


def numbers(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r"\[([\d.]+)\]", cell)]


def test_every_number_is_the_run_s(page: Path, evaluated: Path) -> None:
    (kept,) = load_stored(Run.open(evaluated))
    summary, found = kept.summary, Page(page)
    other = summary["undefended"]
    expected = [["clean", summary["clean"], *summary["clean_interval"], other["clean"]]]
    for name, score in summary["attacks"].items():
        expected.append([name, score["accuracy"], *score["interval"], other["attacks"][name]["accuracy"]])
    rows = [[row[3], *(number for cell in row[4:] for number in numbers(cell))] for row in found.rows("evaluations")]
    assert rows == expected
    bars = [[number for cell in row for number in numbers(cell)] for row in found.rows("wide")]
    own = [
        [summary["clean"], *summary["clean_interval"]],
        [summary["worst"]["accuracy"], *summary["worst"]["interval"]],
    ]
    control = [[other["clean"], *other["clean_interval"]], [other["worst"]["accuracy"], *other["worst"]["interval"]]]
    assert bars == [control[0], own[0], control[1], own[1], []]
    classes = {row[0].split(" (")[0]: [*numbers(row[2]), *numbers(row[3])] for row in found.rows("narrow")}
    assert classes == {name: [score["clean"], score["worst"]] for name, score in summary["per_class"].items()}
    lead = [about["value"] for tag, about in found.elements if tag == "data"][:4]
    assert [float(str(value)) for value in lead] == [
        summary["worst"]["accuracy"],
        other["worst"]["accuracy"],
        summary["clean"],
        other["clean"],
    ]
    (run,) = found.data["runs"]
    assert run["summary"] == json.loads(kept.file.read_text()) and run["evaluations"] == [run["summary"]]


def test_what_is_written_is_what_is_measured(page: Path) -> None:
    """The visible text beside each exact value is that value, rounded."""
    for value, text in re.findall(r'<data value="([-\d.]+)">(?:<strong>)?([^<]+)<', page.read_text(encoding="utf-8")):
        assert abs(float(text.replace("\N{MINUS SIGN}", "-")) - float(value)) <= 0.0501, (value, text)


def test_confusions_count_each_image_once(page: Path, evaluated: Path) -> None:
    (kept,) = load_stored(Run.open(evaluated))
    assert kept.outcomes is not None
    grids = [rows for name, rows in Page(page).tables if name == "grid"]
    assert len(grids) == 2
    for rows, attack in zip(grids, ("clean", Page(page).data["runs"][0]["attack"]), strict=True):
        counts = np.array([[0 if cell == "·" else int(cell) for cell in row[1:]] for row in rows[1:]])
        expected = np.zeros((3, 3), dtype=int)
        for label, guess in zip(kept.outcomes.labels, kept.outcomes.predictions[attack], strict=True):
            expected[label, guess] += 1
        assert counts.tolist() == expected.tolist()


def test_the_page_is_complete_in_itself(page: Path) -> None:
    elements = Page(page).elements
    for tag, about in elements:
        assert not {name for name in about if name.startswith("on")}, about
        for name in ("src", "href"):
            assert (about.get(name) or "#").startswith(("#", "data:")), about
        assert tag != "script" or about["type"] == "application/json"
        assert tag != "img" or about["alt"]
    assert not re.search(r"url\((?!data:)|@import", page.read_text(encoding="utf-8"))
    assert page.stat().st_size < 5_000_000
    targets = {about["href"] for tag, about in elements if tag == "a"}
    assert targets <= {f"#{about.get('id')}" for _, about in elements}


def pictures(file: Path) -> list[Image.Image]:
    addresses = [str(about["src"]) for tag, about in Page(file).elements if tag == "img"]
    return [Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in addresses]


def test_images_are_what_they_are_called(page: Path, evaluated: Path, colours: Path) -> None:
    """Clean images are the evaluated ones, attacked ones stay inside the ball, answers are the classifier's."""
    classifier = apd.load_run(evaluated)
    eps, wall = 8 / 255, Page(page).data["runs"][0]["wall"]
    shown = [np.asarray(image) / 255 for image in pictures(page)][4:]  # after those of the threat model
    assert wall["entries"] and len(shown) == 5 * len(wall["entries"])
    for place, entry in enumerate(wall["entries"]):
        clean, *others = (torch.tensor(x).permute(2, 0, 1) for x in shown[5 * place : 5 * place + 5])
        source = Image.open(colours / entry["id"]).convert("RGB")
        expected = np.asarray(classifier.encoder.info.preprocessing.apply(source)) / 255
        assert np.abs(clean.permute(1, 2, 0).numpy() - expected).max() < 1e-6
        for image in others[1::2]:
            assert float((image - clean).abs().max()) <= eps + 0.5 / 255 + 1e-6
        said = entry["lanes"][1]["before"]
        calibration = Run.open(evaluated).calibration
        assert calibration is not None and Page(page).data["runs"][0]["calibration"] == calibration.record()
        probabilities = (classifier(clean[None].float()) / calibration.temperature).softmax(-1)[0]
        assert said["class"] == classifier.class_names[int(probabilities.argmax())]
        assert said["probability"] == pytest.approx(float(probabilities.max()), abs=1e-3)


def test_images_that_the_evaluation_kept_are_shown(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    apd.evaluate_run(run, attacks=("pgd-1", "pgd-2"), eps="8/255", quiet=True, device="cpu", save_images=True)
    file = report(run, tmp_path / "report.html", attack="pgd-1", quiet=True)
    (found,) = Page(file).data["runs"]
    assert found["wall"]["kept"] is True
    indexes = [json.loads(index.read_text()) for index in (run / "images").glob("*/index.json")]
    (index,) = (index for index in indexes if index["about"]["attack"] == found["attack"])
    kept = {image["id"]: image for image in index["images"]}
    assert {about["class"] for tag, about in Page(file).elements if tag == "img"} == {"pic tiny"}, "pixel by pixel"
    for entry in found["wall"]["entries"]:
        after = entry["lanes"][1]["after"]
        assert after["class"] == kept[entry["id"]]["predicted_adversarial"] and after["right"] == entry["held"]
    for damaged in (run / "images").glob("*/index.json"):
        damaged.write_text("{")
    with refused("index.json", "damaged"):
        report(run, tmp_path / "report.html", quiet=True)


def test_an_attack_that_finds_nothing_is_told_from_an_image_that_was_wrong(evaluated: Path, tmp_path: Path) -> None:
    text = report(evaluated, tmp_path / "report.html", attack="tests.test_report:idle", quiet=True).read_text()
    (found,) = Page(tmp_path / "report.html").data["runs"]
    lanes = [lane for entry in found["wall"]["entries"] for lane in entry["lanes"]]
    right = sum(lane["before"]["right"] for lane in lanes)
    assert right and not any(lane["attacked"] for lane in lanes)
    assert text.count("the attack found nothing") == right
    assert text.count("not attacked: wrong already") == len(lanes) - right


def idle(model: object, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """An attack that changes nothing."""
    return images


def test_an_attack_for_images_that_are_not_shown_is_refused(evaluated: Path, tmp_path: Path) -> None:
    with refused("attack=pgd-3", "leave it out"):
        report(evaluated, tmp_path / "report.html", images=False, attack="pgd-3", quiet=True)


@pytest.mark.parametrize(("attack", "names"), [("cw", ["cw", "l2", "linf"]), ("universal", ["universal"])])
def test_an_attack_that_cannot_make_the_images_is_refused(
    evaluated: Path, tmp_path: Path, attack: str, names: list[str]
) -> None:
    with refused(*names):
        report(evaluated, tmp_path / "report.html", attack=attack, quiet=True)


@pytest.fixture
def hostile(evaluated: Path, tmp_path: Path) -> Path:
    """A run one of whose classes is called like an attack on the page."""
    run = shutil.copytree(evaluated, tmp_path / "<b>bold")
    for name in ("summary-*.json", "outcomes-*.json"):
        (file,) = (run / "results").glob(name)
        record = json.loads(file.read_text())
        if "per_class" in record:
            record["per_class"] = {
                HOSTILE if key == "red" else key: score for key, score in record["per_class"].items()
            }
        else:
            record["class_names"] = [HOSTILE if key == "red" else key for key in record["class_names"]]
        file.write_text(json.dumps(record))
    return run


def test_names_are_text_and_nothing_else(hostile: Path, tmp_path: Path) -> None:
    file = report(hostile, tmp_path / "report.html", images=False, quiet=True)
    found = Page(file)
    assert not [tag for tag, _ in found.elements if tag in ("img", "b")]
    assert [about.get("type") for tag, about in found.elements if tag == "script"] == ["application/json"]
    assert HOSTILE in found.data["runs"][0]["summary"]["per_class"], "as it is in the run"
    text = file.read_text(encoding="utf-8")
    assert text.count("<bdi>&lt;/script&gt;") >= 3, "its direction is not that of what stands beside it"
    assert "onerror=&#34;alert" in text and "\u202e" not in text, "escaped, and no text direction turned"


def test_several_runs_are_compared(evaluated: Path, tmp_path: Path) -> None:
    run, other = (shutil.copytree(evaluated, tmp_path / name) for name in ("colours run", "other"))
    file = report([run, other], tmp_path / "both.html", images=False, quiet=True)
    (expected,) = compare_runs([run, other])
    (comparison,) = Page(file).data["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("colours run", "other")
    assert comparison["rows"] == json.loads(json.dumps(expected.to_dict()))["rows"]
    assert len(Page(file).data["runs"]) == 2
    assert "not reliable" not in file.read_text() and "†" not in file.read_text()
    for place in (run, other):
        apd.evaluate_run(
            place, attacks="pgd-1", eps="8/255", classes="base", limit=2, checks=False, quiet=True, device="cpu"
        )
    (summary,) = (
        file for file in (other / "results").glob("summary-*") if json.loads(file.read_text())["classes"] == "all"
    )
    record = json.loads(summary.read_text())
    record["checks"][0]["passed"], record["reliable"] = False, False
    summary.write_text(json.dumps(record))
    text = report([run, other], tmp_path / "both.html", images=False, quiet=True).read_text()
    assert "Left out: other, whose figures are not reliable" in text and "† B (colours" in text
    assert "colours (base classes): clean" in text and "colours test, base classes" in text


def test_a_curve_is_computed_on_request_and_kept(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    before = {file.name for file in (run / "results").glob("summary-*")}
    file = report(run, tmp_path / "report.html", curve=True, images=False, quiet=True)
    points = Page(file).data["runs"][0]["computed"]
    assert [round(point["eps"] * 255, 3) for point in points] == [0, 2, 4, 8, 12, 16]
    accuracies = [point["accuracy"] for point in points]
    assert accuracies[0] >= max(accuracies[1:])
    again = apd.evaluate_run(
        shutil.copytree(run, tmp_path / "again"), attacks="pgd-20", eps="16/255", checks=False, quiet=True, device="cpu"
    )
    assert again.worst.accuracy == accuracies[-1]
    confidence = Page(file).data["runs"][0]["confidence"]
    first, *others = confidence["points"]
    assert (first["clean"]["answered"], first["attacked"]["answered"]) == (100, 100)
    assert first["clean"]["wrong"] == pytest.approx(100 - accuracies[0], abs=0.02)
    assert first["attacked"]["wrong"] >= first["clean"]["wrong"]
    for kind in ("clean", "attacked"):
        shares = [point[kind]["answered"] for point in (first, *others)]
        assert shares == sorted(shares, reverse=True) and all(p[kind]["wrong"] <= p[kind]["answered"] for p in others)
    assert {each.name for each in (run / "results").glob("summary-*")} == before, "a curve is not a result"


def test_evaluations_at_several_eps_are_a_curve(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    for eps in ("1/255", "3/255"):
        apd.evaluate_run(run, attacks=("pgd-2", "pgd-1"), eps=eps, checks=False, quiet=True, device="cpu")
    file = report(run, tmp_path / "report.html", images=False, quiet=True)
    (found,) = Page(file).data["runs"]
    kept = {one.summary["eps"]: one.summary for one in load_stored(Run.open(run))}
    assert [point["eps"] for point in found["curve"]] == [0.0, *sorted(kept)]
    assert [point["accuracy"] for point in found["curve"][1:]] == [
        kept[eps]["worst"]["accuracy"] for eps in sorted(kept)
    ]
    assert found["summary"]["eps_text"] == "1/255", "the run's own eps comes first"


def test_certified_accuracy_has_a_curve(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    found = apd.certify_run(run, sigma=0.1, n0=4, n=60, limit=3, attack=True, quiet=True, device="cpu")
    assert load_certified(Run.open(run)) == [found]
    page = Page(report(run, tmp_path / "report.html", images=False, quiet=True))
    (kept,) = page.data["runs"][0]["certified"]
    assert kept["command"].endswith("--limit 3 --attack") and found.own_data
    save_certified(Run.open(run), found.model_copy(update={"data": "other photos", "own_data": False, "seed": 1}))
    page = Page(report(run, tmp_path / "report.html", images=False, quiet=True))
    other = next(one for one in page.data["runs"][0]["certified"] if "--seed 1" in one["command"])
    assert other["command"].endswith("--attack --data 'other photos'")
    assert kept["curve"] == [{"radius": one.radius, "accuracy": one.accuracy} for one in found.curve]
    assert kept["sound"] and page.data["runs"][0]["summary"]["clean"] >= 0
    file = next((run / "results").glob("certified-*.json"))
    file.write_text("{}")
    with refused(file.name):
        report(run, tmp_path / "report.html", images=False, quiet=True)


def test_a_run_that_was_certified_alone_has_a_page(run: Path, evaluated: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.rmtree(run / "results", ignore_errors=True)
    found = apd.certify_run(run, sigma=0.1, n0=4, n=60, limit=3, control=False, quiet=True, device="cpu")
    answer = cli("report", run, "--output", tmp_path / "x.html")
    assert answer.code == 0, answer.err
    page = Page(tmp_path / "x.html")
    (told,) = page.data["runs"]
    assert told["summary"] is None and told["attack"] is None and told["wall"] is None
    assert [one["accuracy"] for one in told["certified"][0]["curve"]] == [one.accuracy for one in found.curve]
    text = (tmp_path / "x.html").read_text()
    assert "apd certify runs/again --sigma 0.1 " in text and "--limit 3" in text and "apd evaluate RUN" in text
    assert told["certified"][0]["command"].endswith("--limit 3 --no-control"), "on the run's own data"
    anchors = {
        about["href"] for tag, about in page.elements if tag == "a" and (about.get("href") or "").startswith("#run")
    }
    assert anchors <= {f"#{about['id']}" for _, about in page.elements if about.get("id")} and anchors
    check_error(cli("report", run, "--curve", "--output", tmp_path / "x.html"), [str(run), "--curve"])
    check_error(cli("report", run, evaluated, "--output", tmp_path / "x.html"), [str(run), "apd evaluate"])


def test_the_headline_is_the_run_s_own_data_on_most_images(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    for settings in (
        {"attacks": "pgd-1", "limit": 3},
        {"attacks": "clean"},
        {"attacks": "pgd-1", "corruption": "fog:1"},
    ):
        apd.evaluate_run(run, eps="8/255", checks=False, quiet=True, device="cpu", **settings)
    folder = Run.open(run)
    assert choose_headline(folder, load_stored(folder)).summary["attacks"].keys() == {"pgd-1", "pgd-2"}


@pytest.mark.parametrize(("eps", "norm"), [("0.5", "linf"), ("0.25", "l2"), ("2/510", "linf"), ("0.123456789", "linf")])
def test_the_headline_is_of_the_run_s_own_eps_however_it_is_written(
    evaluated: Path, tmp_path: Path, eps: str, norm: str
) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(run / "results")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"].update(eps=eps, norm=norm)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    quick: dict[str, Any] = {"attacks": "pgd-1", "checks": False, "quiet": True, "device": "cpu"}
    for limit, settings in ((4, {}), (6, {"eps": "0.9", "norm": norm})):
        apd.evaluate_run(run, limit=limit, **settings, **quick)
    folder = Run.open(run)
    assert choose_headline(folder, load_stored(folder)).summary["eps"] == folder.config.train.threat.eps


def test_a_run_evaluated_without_outcomes_says_so(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    for file in (run / "results").glob("outcomes-*"):
        file.unlink()
    found = Page(report(run, tmp_path / "report.html", quiet=True))
    assert found.data["runs"][0]["wall"] is None and found.data["runs"][0]["confusions"] == {}
    assert found.rows("evaluations")


def test_a_curve_of_a_large_eps_ends_at_the_whole_range(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(run / "results")
    apd.evaluate_run(run, eps="0.6", attacks="pgd-1", limit=3, checks=False, quiet=True, device="cpu")
    found = Page(report(run, tmp_path / "report.html", curve=True, quiet=True, device="cpu"))
    assert [point["eps"] for point in found.data["runs"][0]["computed"]] == pytest.approx([0, 0.15, 0.3, 0.6, 0.9, 1])


def test_a_page_that_is_replaced_is_said_to_be(evaluated: Path, tmp_path: Path, cli: Cli) -> None:
    said = [cli("report", evaluated, "--no-images", "--output", tmp_path / "x.html").err for _ in range(2)]
    assert ["Written" in text for text in said] == [True, False] and "Replaced" in said[1]


def test_runs_that_cannot_be_reported_are_refused(run: Path, evaluated: Path, tmp_path: Path, cli: Cli) -> None:
    check_error(cli("report", run, "--output", tmp_path / "x.html"), [str(run), "apd evaluate"])
    check_error(cli("report", evaluated, "--output", tmp_path), [str(tmp_path)])
    check_error(cli("report", evaluated, "--output", tmp_path / "x.pdf"), ["x.pdf", "x.html"])
    moved = shutil.copytree(evaluated, tmp_path / "moved")
    check_error(cli("report", moved, "--model", tmp_path / "nowhere", "--output", tmp_path / "x.html"), ["--no-images"])
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8 a photo")
    check_error(cli("report", evaluated, "--no-images", "--output", photo), [str(photo)])
    assert photo.read_bytes() == b"\xff\xd8 a photo"
    with refused("twice"):
        report([evaluated, evaluated], tmp_path / "x.html")
    with refused("at least one"):
        report([], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_images_that_have_changed_are_refused(evaluated: Path, colours: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(colours, tmp_path / colours.name)
    for file in changed.rglob("*.png"):
        Image.new("RGB", (20, 20), (1, 2, 3)).save(file)
    with refused("evaluate again"):
        report(evaluated, tmp_path / "x.html", data=str(changed), quiet=True)


def test_the_command_writes_the_page(evaluated: Path, tmp_path: Path, cli: Cli) -> None:
    answer = cli("report", evaluated, "--no-images", "--output", tmp_path / "page.html")
    assert (answer.code, answer.out) == (0, "")
    assert str(tmp_path / "page.html") in answer.err and Page(tmp_path / "page.html").data["runs"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [390, 900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_network_or_complaint(browser: Any, page: Path, width: int, scheme: Any) -> None:
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(page.as_uri())
    overflow = view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    background = view.evaluate("getComputedStyle(document.body).backgroundColor")
    broken = view.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
    view.close()
    assert not said and not [url for url in asked if not url.startswith(("file:", "data:"))]
    assert overflow == 0 and broken == 0
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_of_runs_that_keep_as_much_under_attack_the_more_accurate_one_leads() -> None:
    def view(name: str, robust: float, clean: float) -> dict[str, Any]:
        about = {"data": "d", "split": "test", "norm": "linf", "eps": 0.1, "n": 9, "corruption": None, "attacks": ["a"]}
        about |= {"classes": "all"}
        return {"name": name, "attack": "a", "summary": {**about, "worst": {"accuracy": robust}, "clean": clean}}

    of_half = view("half", 0.9, 0.9)
    of_half["summary"]["classes"] = "base"
    assert best_under_attack([view("one", 0.2, 0.3), of_half]) is None
    found = best_under_attack([view("one", 0.2, 0.3), view("two", 0.2, 0.4), view("three", 0.1, 0.9)])
    assert found is not None and found["name"] == "two"
