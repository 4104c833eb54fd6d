"""The explorer without a browser: uploads, answers, attacks, pictures and the page's HTML."""

from __future__ import annotations

import base64
import io
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from apd.data.decode import read_image
from apd.explore.chart import draw_curves
from apd.explore.examples import find_examples
from apd.explore.explorer import Budgets, Curve, Explorer, Gradients
from apd.explore.page import amplified, png, render, shown_classes
from apd.explore.uploads import LONGEST_NAME, MOST_CLASSES, read_class_names, read_number, read_upload
from apd.models import DualEncoder
from apd.models.calibration import Calibration
from apd.runs.folder import Run
from apd.util.extras import install_command
from apd.util.web_server import listen

from .command_line import Cli
from .refusals import check_error, refused
from .uploads import HOSTILE, photo

CLASSES = ("red", "green", "blue", "cat")


@pytest.fixture
def explorer(finished: Run, clip_folder: Path) -> Explorer:
    """A run with random prompts."""
    return Explorer.open(finished.path)


@pytest.fixture
def x(explorer: Explorer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = explorer.robust.encoder.info.image_size
    return torch.rand(3, size, size, generator=generator)


def test_an_upload_is_what_training_would_read(tmp_path: Path, clip: DualEncoder) -> None:
    file = photo(tmp_path / "a.png")
    pixels = read_upload(file, tmp_path, clip.info.preprocessing)
    expected = read_image(file, clip.info.preprocessing)
    assert torch.equal((pixels * 255).round().to(torch.uint8), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("kind", ["jpg", "gif", "bmp", "tiff", "webp"])
def test_usual_formats_are_read(tmp_path: Path, clip: DualEncoder, kind: str) -> None:
    pixels = read_upload(photo(tmp_path / f"a.{kind}"), tmp_path, clip.info.preprocessing)
    assert pixels.shape == (3, 16, 16) and 0.2 < float(pixels.mean()) < 0.8


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_refused(tmp_path: Path, clip: DualEncoder, name: str) -> None:
    make, names = HOSTILE[name]
    with refused(*names):
        read_upload(make(tmp_path / name), tmp_path, clip.info.preprocessing)


def test_only_uploads_are_read(tmp_path: Path, clip: DualEncoder) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    secret = photo(tmp_path / "secret.png")
    (uploads / "link.png").symlink_to(secret)
    for path in (
        secret,
        uploads / "link.png",
        uploads / ".." / "secret.png",
        uploads / "none.png",
        uploads,
        "\0",
        "a" * 5000,
    ):
        with refused():
            read_upload(path, uploads, clip.info.preprocessing)


def test_class_names_are_checked() -> None:
    assert read_class_names(" cat \n\n snow leopard\r\n") == ("cat", "snow leopard")
    for text in ("", "cat"):
        with refused():
            read_class_names(text)
    with refused(str(MOST_CLASSES + 1), str(MOST_CLASSES)):
        read_class_names("\n".join(map(str, range(MOST_CLASSES + 1))))
    with refused(str(LONGEST_NAME + 1), str(LONGEST_NAME)):
        read_class_names("a\n" + "b" * (LONGEST_NAME + 1))


def test_a_run_s_own_class_names_are_taken_however_many_and_long() -> None:
    own = tuple(f"{number} {'b' * LONGEST_NAME}" for number in range(MOST_CLASSES + 1))
    assert read_class_names("\n".join(own), own) == own
    with refused(str(MOST_CLASSES + 2), str(MOST_CLASSES + 1)):
        read_class_names("\n".join([*own, "cat"]), own)
    with refused(str(LONGEST_NAME + 1)):
        read_class_names("a\n" + "b" * (LONGEST_NAME + 1), own)


@pytest.mark.parametrize("value", ["4", None, True, float("nan"), float("inf"), -1, 9, [1]])
def test_numbers_are_checked(value: object) -> None:
    with refused("eps"):
        read_number(value, "eps", 0, 8)


def test_budgets_surround_the_run_s_own() -> None:
    small, demo = Budgets.around(1.75 / 255, "linf"), Budgets.around(14 / 255, "linf")
    assert (small.trained, small.most, small.text(1.75), small.gain(32)) == (1.75, 8, "1.75/255", 15)
    assert (demo.trained, demo.most, demo.text(14), demo.gain(32)) == (14, 28, "14/255", 4)
    euclidean = Budgets.around(0.5, "l2")
    assert (euclidean.trained, euclidean.most, euclidean.unit) == (0.5, 1, 1)
    assert euclidean.gain(224) > euclidean.gain(32) > 1


def test_one_step_is_the_gradient_s_sign_from_the_random_start(explorer: Explorer, x: Tensor) -> None:
    eps = 4 / 255
    view = explorer.look(x, CLASSES, eps=4, steps=1, seed=5)["robust"]
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    start = (x + noise * eps).clamp(0, 1).requires_grad_()
    model = explorer.robust.with_classes(CLASSES)
    answer = int(model(x[None]).argmax())
    z = model.frozen()(start[None])[0]
    others = torch.cat([z[:answer], z[answer + 1 :]])
    (others.max() - z[answer]).backward()
    assert start.grad is not None
    moved = start.detach() + eps * start.grad.sign()
    expected = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    assert (view.x_adv - expected).abs().max() < 1e-6


def test_answers_repeat_and_a_seed_starts_elsewhere(explorer: Explorer, x: Tensor) -> None:
    one, again, other = (explorer.look(x, CLASSES, eps=4, steps=3, seed=seed) for seed in (1, 1, 2))
    for name in ("zero-shot", "robust"):
        assert torch.equal(one[name].x_adv, again[name].x_adv) and torch.equal(one[name].attacked, again[name].attacked)
        assert not torch.equal(one[name].x_adv, other[name].x_adv)


def test_class_names_that_come_one_by_one_have_the_run_s_calibration(explorer: Explorer, x: Tensor) -> None:
    one, other = (explorer.look(x, names, eps=4, steps=1) for names in (CLASSES, iter(CLASSES)))
    assert torch.equal(one["robust"].clean, other["robust"].clean)
    with refused("class_names", "'ab'"):
        explorer.look(x, "ab", eps=4, steps=1)


def test_each_model_is_attacked_within_the_budget_by_its_own_gradients(explorer: Explorer, x: Tensor) -> None:
    views = explorer.look(x, CLASSES, eps=4, steps=5)
    assert not torch.equal(views["zero-shot"].x_adv, views["robust"].x_adv)
    for name, view in views.items():
        answer = view.clean.argmax()
        assert view.by == name
        assert (view.x_adv - x).abs().max() <= 4 / 255 + 1e-6 and 0 <= view.x_adv.min() <= view.x_adv.max() <= 1
        assert view.attacked[answer] < view.clean[answer]
        assert view.fooled == bool(view.attacked.argmax() != answer)


def test_probabilities_are_the_classifiers_own(explorer: Explorer, x: Tensor) -> None:
    views = explorer.look(x, CLASSES, eps=2, steps=2)
    robust = explorer.robust.with_classes(CLASSES)
    for name, model in {"robust": robust, "zero-shot": robust.zero_shot()}.items():
        for image, said in ((x, views[name].clean), (views[name].x_adv, views[name].attacked)):
            assert torch.allclose(F.softmax(model(image[None]), dim=-1)[0], said, atol=1e-6)


def test_probabilities_of_the_run_s_own_classes_are_calibrated_as_elsewhere(finished: Run, x: Tensor) -> None:
    finished.save_calibration(Calibration(2.5, 10, 0.1, 0.05))
    calibrated = Explorer.open(finished.path)
    own = calibrated.class_names
    views, curves = calibrated.look(x, own, eps=2, steps=1), calibrated.sweep(x, own, steps=1)
    robust = calibrated.robust(x[None])[0]
    assert torch.allclose((robust / 2.5).softmax(-1), views["robust"].clean, atol=1e-6)
    assert curves["robust"].kept[0] == pytest.approx(float(views["robust"].clean.max()), abs=1e-6)
    assert torch.allclose(calibrated.robust.zero_shot()(x[None])[0].softmax(-1), views["zero-shot"].clean, atol=1e-6)
    others = calibrated.look(x, CLASSES, eps=0, steps=1)["robust"].clean
    assert torch.allclose(calibrated.robust.with_classes(CLASSES)(x[None])[0].softmax(-1), others, atol=1e-6)


@pytest.mark.parametrize("gradients", ["zero-shot", "robust"])
def test_both_models_can_see_one_model_s_adversarial_image(explorer: Explorer, x: Tensor, gradients: str) -> None:
    views = explorer.look(x, CLASSES, eps=4, steps=2, gradients=gradients)
    own = explorer.look(x, CLASSES, eps=4, steps=2)[gradients]
    for view in views.values():
        assert view.by == gradients and torch.equal(view.x_adv, own.x_adv)


def test_the_perturbation_grows_with_eps_from_nothing(explorer: Explorer, x: Tensor) -> None:
    lengths = []
    for eps in (0.0, 1.0, 4.0):
        view = explorer.look(x, CLASSES, eps=eps, steps=3)["robust"]
        lengths.append(float((view.x_adv - x).abs().mean()))
        if eps == 0:
            assert torch.equal(view.attacked, view.clean)
    assert lengths[0] == 0 < lengths[1] < lengths[2]


def test_other_classes_are_refused_where_models_cannot_serve_them(explorer: Explorer, x: Tensor) -> None:
    with refused("'red'"):
        explorer.look(x, ("red", "red"), eps=1, steps=1)
    with refused("'unknowable'", "'unspeakable'"):
        explorer.look(x, ("unknowable", "unspeakable"), eps=1, steps=1)
    with refused("'both'"):
        explorer.look(x, CLASSES, eps=1, steps=1, gradients="both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"seed": 2**70}, "seed"),
        ({"gradients": "x"}, "gradients"),
        ({"x": torch.full((3, 16, 16), 255.0)}, "[0,1]"),
    ],
)
def test_what_no_attack_can_do_is_refused(wrong: dict[str, Any], named: str, explorer: Explorer, x: Tensor) -> None:
    given: dict[str, Any] = {"x": x, "class_names": CLASSES, "steps": 1, **wrong}
    with refused(named):
        explorer.look(**given, eps=1.0)
    with refused(named):
        explorer.sweep(**given)


def test_class_features_are_kept_for_a_few_lists_of_classes(explorer: Explorer) -> None:
    words = ("red", "green", "blue", "cat", "dog", "one", "two", "three", "dark", "bright")
    pairs = [(words[i], words[i + 1]) for i in range(len(words) - 1)]
    first = explorer._bound(pairs[0])
    assert explorer._bound(pairs[0]) is first
    for pair in pairs:
        explorer._bound(pair)
    assert explorer._bound(pairs[0]) is not first


def test_pictures_hold_the_pixels(x: Tensor) -> None:
    shown = np.asarray(Image.open(io.BytesIO(png(x))))
    times = shown.shape[0] // x.shape[1]
    assert shown.shape[0] >= 224
    expected = (x * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(shown[::times, ::times], expected)


def test_the_difference_is_grey_where_nothing_changed(x: Tensor) -> None:
    x_adv = x.clone()
    x_adv[0, 0, 0] += 2 / 255
    difference = amplified(x, x_adv, 16)
    assert abs(float(difference[0, 0, 0]) - (0.5 + 32 / 255)) < 1e-6
    assert float((difference.flatten()[1:] - 0.5).abs().max()) < 1e-6


def test_the_page_shows_numbers_and_pictures(explorer: Explorer, x: Tensor) -> None:
    names = ("red", "green", "blue", "cat", "dog", "one", "two", "three")
    views = explorer.look(x, names, eps=4, steps=2)
    html = render(x, views, names, eps="4/255", steps=2, gain=16)
    cards = re.findall(r'<section class="apd-card" data-model="([\w-]+)".*?</section>', html, re.DOTALL)
    assert cards == ["zero-shot", "robust"]
    rows = shown_classes(views)
    assert rows[0] == int(torch.stack([p for v in views.values() for p in (v.clean, v.attacked)]).amax(dim=0).argmax())
    for card, view in zip(re.findall(r"<section.*?</section>", html, re.DOTALL), views.values(), strict=True):
        for kind, probabilities in (("clean", view.clean), ("attacked", view.attacked)):
            widths = [float(width) for width in re.findall(rf'apd-bar-{kind}" style="width:([\d.]+)%', card)]
            assert widths[:-1] == pytest.approx([100 * float(probabilities[row]) for row in rows], abs=0.01)
            assert sum(widths) == pytest.approx(100, abs=0.1)
        pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', card)]
        assert pictures == [png(image) for image in (x, view.x_adv, amplified(x, view.x_adv, 16))]
        assert card.count('alt="') == 3
        assert f'data-state="{"fooled" if view.fooled else "held"}"' in card


def test_class_names_are_not_trusted(explorer: Explorer, x: Tensor) -> None:
    hostile = ("<img src=x onerror=alert(1)>", '"><script>alert(2)</script>', "red ${alert(3)} {{value}}\x1b[31m")
    views = explorer.look(x, ("red", "green", "blue"), eps=1, steps=1)
    html = render(x, views, hostile, eps="1/255", steps=1, gain=16)
    assert "<bdi>&lt;img" in html, "a name from right to left does not turn what stands beside it"
    assert "<script" not in html and "onerror=alert(1)&gt;" in html and "\x1b" not in html
    assert len(re.findall("<img", html)) == 6


def test_examples_take_turns_among_classes(trained: Path, tmp_path: Path) -> None:
    found = find_examples(trained, tmp_path, count=5)
    assert found.why_none == "" and [name for _, name in found.files][:3] == ["blue", "green", "red"]
    assert len({file.read_bytes() for file, _ in found.files}) == 5


def test_examples_say_why_there_are_none(run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(re.sub(r"source: .*", "source: /nowhere/photos", config.read_text()))
    found = find_examples(run, tmp_path)
    assert found.files == () and "/nowhere/photos" in found.why_none


def test_what_cannot_be_explored_is_told(cli: Cli, tmp_path: Path) -> None:
    check_error(cli("explore", tmp_path), [str(tmp_path)])


def test_a_port_that_there_cannot_be_is_refused_in_one_line(cli: Cli, trained: Path) -> None:
    for port in (99999, -1):
        check_error(cli("explore", trained, "--port", port), ["--port", str(port), "65535"])


def test_a_port_in_use_is_told(cli: Cli, trained: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra explore")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        check_error(cli("explore", trained, "--port", port), [str(port), "--port", "--host"])
    with listen("127.0.0.1", 0) as first, refused("--port"):  # as another explorer that is still loading
        listen("127.0.0.1", first.getsockname()[1])
    with refused("70000", "65535"):
        listen("127.0.0.1", 70000)


def test_without_gradio_the_extra_is_named(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    check_error(cli("explore", trained, "--port", 0), ["gradio", install_command("explore")])


@pytest.mark.parametrize("gradients", ["each", "zero-shot"])
def test_a_curve_holds_what_single_attacks_find(explorer: Explorer, x: Tensor, gradients: Gradients) -> None:
    curves = explorer.sweep(x, CLASSES, steps=2, gradients=gradients, seed=3)
    for name, curve in curves.items():
        assert curve.eps[0] == 0 and curve.eps[-1] == explorer.budgets.most
        for place in (0, 5, len(curve.eps) - 1):
            view = explorer.look(x, CLASSES, eps=curve.eps[place], steps=2, gradients=gradients, seed=3)[name]
            assert curve.kept[place] == pytest.approx(float(view.attacked[view.clean.argmax()]), abs=1e-4)
            assert curve.holds[place] == (not view.fooled)
        fooled = [eps for eps, holds in zip(curve.eps, curve.holds, strict=True) if not holds]
        assert curve.first_fooled == (fooled[0] if fooled else None)


def test_the_chart_places_points_by_budget_and_probability() -> None:
    curve = Curve("robust", (0.0, 4.0, 8.0), (1.0, 0.5, 0.25), (True, True, False))
    svg = draw_curves({"robust": curve}, Budgets("linf", 1.75, 8, 0.25))
    points = [
        (float(x), float(y), kind) for x, y, kind in re.findall(r'cx="(.*?)" cy="(.*?)" r="4" class="apd-(\w+)', svg)
    ]
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = points
    assert [kind for *_, kind in points] == ["held", "held", "fooled"]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and (y1 - y0) == pytest.approx(2 * (y2 - y1), abs=0.2)
    assert "8/255" in svg
