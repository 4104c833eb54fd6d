"""`apd.sklearn.RobustCLIPClassifier` keeps the conventions of scikit-learn, and gives what `apd.train` gives."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data

from apd.attacks.threat import parse_eps
from apd.data import Dataset
from apd.data.decode import decode_given
from apd.errors import InputError
from apd.models import load_clip
from apd.sklearn import RobustCLIPClassifier, _sources
from tests.command_line import Said
from tests.refusals import refused

SETTINGS = {"batch_size": 8, "device": "cpu", "attack": {"steps": 1}, "checkpoint_every": 1000}
METHOD = {"name": "apd", "teacher": "frozen", "prompts": {"text_tokens": 2, "visual_tokens": 2}}


def small(model: object, **more: Any) -> RobustCLIPClassifier:
    return RobustCLIPClassifier(model, METHOD, **{"epochs": 2, "settings": SETTINGS, **more})


@pytest.fixture(scope="module")
def photos(colours: Path) -> tuple[list[str], list[str]]:
    """Paths and class names of 18 images."""
    files = [file for file in sorted(colours.glob("*/*.png")) if int(file.stem) < 6]
    return [str(file) for file in files], [file.parent.name for file in files]


@pytest.fixture(scope="module")
def fitted(clip_folder: Path, photos: tuple[list[str], list[str]]) -> RobustCLIPClassifier:
    return small(str(clip_folder), epochs=8).fit(*photos)


def test_probabilities_are_those_of_the_classifier(
    fitted: RobustCLIPClassifier, photos: tuple[list[str], list[str]]
) -> None:
    files, labels = photos
    assert fitted.classes_.tolist() == ["blue", "green", "red"] and is_classifier(fitted)
    found = fitted.predict_proba(files)
    preprocessing = fitted.classifier_.encoder.info.preprocessing
    squares = [np.asarray(preprocessing.apply(Image.open(file))) for file in files]
    x = torch.tensor(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        wanted = (fitted.classifier_(x) / fitted.run_.manifest["calibration"]["temperature"]).softmax(-1)
    assert found.shape == (18, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    predicted = fitted.predict(files)
    assert predicted.tolist() == fitted.classes_[found.argmax(1)].tolist()
    assert fitted.score(files, labels) == np.mean(predicted == np.array(labels)) > 0.6


def test_paths_pictures_and_arrays_are_the_same_images(
    fitted: RobustCLIPClassifier, photos: tuple[list[str], list[str]]
) -> None:
    files = photos[0][:4]
    pictures = [Image.open(file).convert("RGB") for file in files]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    wanted = fitted.predict_proba(files)
    for images in ([Path(file) for file in files], pictures, arrays, list(arrays)):
        np.testing.assert_array_equal(fitted.predict_proba(images), wanted)
    np.testing.assert_array_equal(fitted.predict_proba(pictures), wanted, "pictures are left open")
    assert fitted.predict_proba([]).shape == (0, 3) and fitted.predict([]).shape == (0,)


def test_an_image_that_cannot_be_read_is_named_without_options_that_there_are_none_of(
    fitted: RobustCLIPClassifier, photos: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "half.png").write_bytes(Path(photos[0][0]).read_bytes()[:60])
    with refused("half.png") as told:
        fitted.predict(iter([photos[0][0], tmp_path / "half.png"]))
    assert "skip" not in str(told.value)
    with refused("X must be a list", "None"):
        fitted.predict(None)
    with refused("half.png", "leave it out") as told:
        small("glyphs").fit([*photos[0], tmp_path / "half.png"] * 2, [*photos[1], "red"] * 2)
    assert "skip" not in str(told.value)


@pytest.mark.parametrize(
    "missing",
    [None, float("nan"), np.float32("nan"), pandas.NA, pandas.NaT],
    ids=["None", "nan", "float32", "NA", "NaT"],
)
@pytest.mark.parametrize("labels", [["red", "blue"], [0, 1], [0.0, 1.0]], ids=["words", "numbers", "floats"])
def test_an_image_without_a_label_is_refused(
    photos: tuple[list[str], list[str]], labels: list[object], missing: object
) -> None:
    given = [labels[0], labels[1], missing, *labels]
    for y in (given, np.array(given, dtype=object), pandas.Series(given)):
        with refused("y[2]", "unlabelled"):
            small("glyphs").fit(photos[0][:5], y)


def test_a_class_may_be_called_nan(photos: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apd.sklearn.train", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        small("glyphs").fit(photos[0][:4], ["nan", "naan"] * 2)


def test_accuracy_under_attack_is_measured_beside_zero_shot(
    fitted: RobustCLIPClassifier, photos: tuple[list[str], list[str]]
) -> None:
    files, labels = photos
    result = fitted.evaluate(files, labels, attacks="pgd-2", eps="8/255", checks=False)
    assert result.n == 18 and result.clean == round(100 * fitted.score(files, labels), 2)
    assert result.undefended is not None and result.eps_text == "8/255" and "pgd-2" in result.attacks
    with pytest.raises(InputError, match="grene"):
        fitted.evaluate(files[:1], ["grene"])


def test_it_is_attacked_within_the_norm_of_its_training(photos: tuple[list[str], list[str]]) -> None:
    files, labels = photos
    model = RobustCLIPClassifier(method="advvp", eps="1/2", epochs=1, settings={"norm": "l2"}).fit(files, labels)
    result = model.evaluate(files[:3], labels[:3], attacks="pgd-2", checks=False)
    assert (result.norm, result.eps) == ("l2", 0.5)


@pytest.mark.parametrize("kind", ["paths", "pictures", "arrays"])
def test_an_image_that_is_there_twice_is_not_validated_on_and_trained_on(
    shallow_folder: Path, photos: tuple[list[str], list[str]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bootstrap: probabilities were calibrated on images that the prompts were trained on."""
    taken: dict[str, list[bytes]] = {}

    def look(clip: object, data: Dataset, **_: Any) -> None:
        for split in ("train", "val"):
            sources = data.split(split).sources
            taken[split] = [np.asarray(Image.open(s) if isinstance(s, Path) else s()).tobytes() for s in sources]
        raise InterruptedError

    monkeypatch.setattr("apd.sklearn.train", look)
    drawn = np.random.default_rng(0).integers(0, 18, 30)
    files = [photos[0][i] for i in drawn]
    pictures = [Image.open(file).convert("RGB") for file in files]
    images = {"paths": files, "pictures": pictures, "arrays": [np.asarray(each) for each in pictures]}[kind]
    with pytest.raises(InterruptedError):
        small(str(shallow_folder)).fit(images, [photos[1][i] for i in drawn])
    trained, held_out = taken["train"], taken["val"]
    assert held_out and not set(trained) & set(held_out)
    assert len(set(trained)) + len(set(held_out)) == len(set(drawn)) and len(trained) > len(set(trained))


class Words:
    """Looks labels up as a column of a table does, without being a mapping."""

    def __init__(self, known: dict[int, str]) -> None:
        self.known = known

    def __contains__(self, label: object) -> bool:
        return label in self.known

    def __getitem__(self, label: int) -> str:
        return self.known[label]


def test_numbers_as_labels_get_words(shallow_folder: Path, photos: tuple[list[str], list[str]], said: Said) -> None:
    files, names = photos
    numbers = np.array([{"red": 7, "green": -1, "blue": 3}[name] for name in names])
    words = {7: "red", -1: "green", 3: "blue"}
    model = small(str(shallow_folder), class_names=words, epochs=1).fit(files, numbers)
    assert model.classes_.tolist() == [-1, 3, 7] and model.classifier_.class_names == ("green", "blue", "red")
    assert set(model.predict(files)) <= {-1, 3, 7}
    templates = (f"a {kind} of a {{}}." for kind in ("photo", "picture"))
    table = small(str(shallow_folder), class_names=Words(words), templates=templates, epochs=1).fit(files, numbers)
    assert table.classifier_.class_names == model.classifier_.class_names and len(table.classifier_.templates) == 2
    with pytest.raises(InputError, match="-1"):
        small(str(shallow_folder), class_names={7: "red", 3: "blue"}).fit(files, numbers)
    with pytest.raises(InputError, match="same feature"):  # to this model's tokenizer
        small(str(shallow_folder), epochs=1).fit(files, numbers)
    assert any("y has class names that say nothing" in line and "class_names={" in line for line in said())
    for named, given in (
        ("class_names must map", {"class_names": ["red", "green", "blue"]}),
        ("labels to words, got 1", {"class_names": {7: "red", -1: 1, 3: "blue"}}),
        ("templates must be a list", {"class_names": words, "templates": "a photo of a {}."}),
        ("unlabelled must be a list", {"class_names": words, "unlabelled": Image.new("RGB", (8, 8))}),
        ("unlabelled has no images", {"class_names": words, "unlabelled": []}),
        (r"unlabelled\[0\]", {"class_names": words, "unlabelled": [3.5]}),
    ):
        with pytest.raises(InputError, match=named):
            small(str(shallow_folder), **given).fit(files, numbers)


def test_unlabelled_images_take_part_in_the_training(
    shallow_folder: Path, colours: Path, photos: tuple[list[str], list[str]]
) -> None:
    files, labels = photos
    more = [str(file) for file in sorted(colours.glob("*/*.png")) if int(file.stem) >= 6]
    for unlabelled, source in ((more, "memory:sklearn"), (str(colours), str(colours)), (colours, str(colours))):
        model = small(str(shallow_folder), unlabelled=unlabelled, epochs=1).fit(files, labels)
        about = model.run_.manifest["data"]
        assert (about["unlabelled_images"], about["unlabelled_source"]) == (18, source), "none of those with a label"
    known = small(str(shallow_folder), unlabelled=[*more, *files[:4]], epochs=1).fit(files, labels)
    assert known.run_.manifest["data"]["unlabelled_images"] == 18, "none of those with a label"
    with refused("unlabelled", "2 images", "X"):
        small(str(shallow_folder), unlabelled=files[:2]).fit(files, labels)
    alone = small(str(shallow_folder), epochs=1).fit(files, labels)
    assert "unlabelled_images" not in alone.run_.manifest["data"] and alone.run_.manifest["data"]["train_images"] == 15
    assert not np.array_equal(model.predict_proba(files), alone.predict_proba(files))


def test_sources_without_other_images_are_refused(
    shallow_folder: Path, tmp_path: Path, photos: tuple[list[str], list[str]]
) -> None:
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "one.png").symlink_to(photos[0][0])
    for unlabelled, names in ((tmp_path / "known", ["known"]), ("rest", ["rest"]), ("", ["data.unlabelled"])):
        with refused(*names):
            small(str(shallow_folder), unlabelled=unlabelled).fit(*photos)


def test_search_cross_validation_and_splits(shallow_folder: Path, photos: tuple[list[str], list[str]]) -> None:
    search = GridSearchCV(small(str(shallow_folder), epochs=1), {"eps": ["1/255", "8/255"]}, cv=2)
    train, test, y_train, y_test = train_test_split(*photos, stratify=photos[1], random_state=0, test_size=6)
    search.fit(train, y_train)
    assert search.best_params_["eps"] in ("1/255", "8/255") and 0 <= search.score(test, y_test) <= 1
    assert search.best_estimator_.run_.config.train.eps == search.best_params_["eps"]
    arrays = np.stack([np.asarray(Image.open(file)) for file in photos[0]])
    assert len(cross_val_score(small(str(shallow_folder), epochs=1), arrays, photos[1], cv=2)) == 2


def test_the_seed_decides_and_a_pickled_classifier_answers_alike(
    shallow_folder: Path, photos: tuple[list[str], list[str]]
) -> None:
    files, labels = photos
    one, same, other, drawn = (
        small(str(shallow_folder), epochs=1, random_state=seed).fit(files, labels).predict_proba(files)
        for seed in (1, np.int64(1), 2, np.random.RandomState(0))
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other) and not np.array_equal(one, drawn)
    model = small(load_clip(shallow_folder), epochs=1).fit(files, labels)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(files), model.predict_proba(files))
    shutil.rmtree(again.run_.path)  # as of a process that has ended
    found = again.evaluate(files, labels, attacks="pgd-1", checks=False)
    assert found.eps == parse_eps(model.eps)
    assert clone(model).epochs == 1 and not hasattr(clone(model), "classes_")


def test_an_image_that_is_opened_but_not_read_may_be_there_more_than_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as image:
        sources, names = _sources([image] * 8)
        found = decode_given(names, sources, load_clip("glyphs").info.preprocessing)
    assert len(found) == 8 and (found == found[0]).all()


def test_images_of_generators_are_those_of_lists(shallow_folder: Path, photos: tuple[list[str], list[str]]) -> None:
    files, labels = photos
    more, files, labels = files[::3], files[1::3], labels[1::3]
    listed = small(str(shallow_folder), epochs=1, unlabelled=more).fit(files, labels)
    drawn = small(str(shallow_folder), epochs=1, unlabelled=iter(more)).fit(iter(files), labels)
    np.testing.assert_array_equal(drawn.predict_proba(iter(files)), listed.predict_proba(files))


@pytest.mark.parametrize(
    ("change", "X", "y", "told"),
    [
        ({}, "cat.png", ["red"], "str"),
        ({}, ["a.png"], ["red", "blue"], "2 labels"),
        ({}, [], [], "no images"),
        ({}, ["a.png", "b.png"], ["red", "red"], "red"),
        ({}, [np.zeros((4, 4, 3)), np.zeros((4, 4, 3))], ["red", "blue"], "float64"),
        ({}, pandas.DataFrame({"path": ["a.png", "b.png"]}), ["red", "blue"], r"\(2, 1\).*table"),
        ({"settings": {"epss": 1}}, ["a.png", "b.png"], ["red", "blue"], "eps"),
        ({"settings": {"seed": 1}}, ["a.png", "b.png"], ["red", "blue"], "random_state"),
        ({}, ["a.png", "b.png"], ["red", "blue"], "validation"),
        ({}, ["missing.png", "b.png", "c.png"], ["red", "blue", "blue"], "missing.png"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    shallow_folder: Path, change: dict[str, Any], X: Any, y: Any, told: str
) -> None:
    with pytest.raises(InputError, match=told) as error:
        small(str(shallow_folder), **change).fit(X, y)
    assert "\n" not in str(error.value)


def test_nothing_is_predicted_before_fit() -> None:
    model = RobustCLIPClassifier()
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    for call in (model.predict, model.predict_proba):
        with pytest.raises(NotFittedError):
            call(["a.png"])


class Tables(RobustCLIPClassifier):
    """Takes scikit-learn's tables of numbers for pictures, so that its checks can fit something."""

    def fit(self, X: Any, y: Any) -> Any:
        X = validate_data(self, X, reset=True)
        return super().fit(self.pictures(X), y)

    def predict(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().predict(self.pictures(validate_data(self, X, reset=False)))

    def predict_proba(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().predict_proba(self.pictures(validate_data(self, X, reset=False)))

    def pictures(self, X: Any) -> Any:
        rows = np.clip(np.asarray(X, dtype=float) * 20 + 128, 0, 255).astype(np.uint8)
        return np.repeat(np.resize(rows, (len(rows), 1, rows.shape[1], 1)), 8, axis=1).repeat(3, axis=3)

    def _names(self, classes: Any) -> tuple[str, ...]:
        return ("red", "green", "blue", "cat", "dog")[: len(classes)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = True, False
        return tags


# scikit-learn yields no checks for what takes no tables. Of those it has, these say something about any classifier. Left
# out are checks of tables (dtypes, sparse, NaN, feature names and counts, memory order, array namespaces), of sample weights
# and multi-output (neither is there), of a single class (a CLIP model needs two to choose from), and of accuracy on blobs
# of points (`test_probabilities_are_those_of_the_classifier` has images).
APPLICABLE = [
    "check_estimator_cloneable",
    "check_parameters_default_constructible",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_get_params_invariance",
    "check_set_params",
    "check_fit_score_takes_y",
    "check_estimators_overwrite_params",
    "check_dont_overwrite_parameters",
    "check_estimators_fit_returns_self",
    "check_estimators_unfitted",
    "check_fit_check_is_fitted",
    "check_estimators_pickle",
    "check_dict_unchanged",
    "check_fit_idempotent",
    "check_methods_subset_invariance",
    "check_methods_sample_order_invariance",
    "check_requires_y_none",
    "check_supervised_y_2d",
    "check_supervised_y_no_nan",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", APPLICABLE)
def test_the_checks_of_scikit_learn_that_apply(name: str, shallow_folder: Path) -> None:
    from sklearn.utils import estimator_checks

    check: Callable[..., None] = getattr(estimator_checks, name)
    if name == "check_parameters_default_constructible":
        check("RobustCLIPClassifier", RobustCLIPClassifier())
        return
    settings = {**SETTINGS, "batch_size": 64}
    check("Tables", Tables(str(shallow_folder), METHOD, epochs=1, settings=settings))
