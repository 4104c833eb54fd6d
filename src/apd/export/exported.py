"""From a run to an export: written aside, compared with the original, and only then put in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apd.errors import ApdError, InputError, nearest
from apd.export.base import Form, Source
from apd.export.check import BATCH_SIZES, TOLERANCE, choose_images, compare
from apd.export.description import describe
from apd.export.huggingface_form import HuggingFaceForm
from apd.export.open_clip_form import OpenClipForm
from apd.export.place import Place
from apd.export.price import Price, images_to_measure, measure, threat_of
from apd.export.programs import OnnxForm, TorchForm
from apd.export.settings import parse_settings
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.util.files import AnyPath, user_path, writing
from apd.util.messages import speaking
from apd.util.text import one_line, to_json

_FORMS: dict[str, type[Form]] = {form.name: form for form in (OnnxForm, TorchForm, HuggingFaceForm, OpenClipForm)}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it agrees with the original.

    Args:
        form: ``onnx``, ``torch`` and so on.
        path: the file or the folder.
        description: the JSON file that says how to use it.
        precision: type of the weights.
        max_difference: the largest difference of logits on ``images`` images at all of ``batch_sizes``.
        tolerance: the largest that was allowed; None: any, since the precision is a lower one.
        same_class: share of the images with the same predicted class, in percent.
        images: number of images it was compared on.
        image_source: where these come from.
        batch_sizes: images at a time.
        bytes: size of the export.
        price: accuracies of the original and the export, where they were asked for.
        notes: what this form cannot do, in sentences.
    """

    form: str
    path: Path
    description: Path
    precision: str
    max_difference: float
    tolerance: float | None
    same_class: float
    images: int
    image_source: str
    batch_sizes: tuple[int, ...]
    bytes: int
    price: Price | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "path": str(self.path), "description": str(self.description)}


def export_run(form: str, run: AnyPath, path: AnyPath, options: Mapping[str, Any]) -> Exported:
    """Export a run; see `apd.export`.

    Args:
        form: the form's name, such as ``onnx``.
        run: the run folder.
        path: file or folder to write.
        options: of `ExportSettings`.

    Raises:
        InputError: an unknown form or option, no finished run, an output that is there or that another process is writing,
            what the form cannot represent.
        ApdError: the model cannot be traced, or the exported one gives other logits; what was there is left alone.
    """
    if form not in _FORMS:
        raise InputError(f"--to has no form {form!r}. {nearest(form, _FORMS)}")
    settings, chosen = parse_settings(options, form), _FORMS[form]()
    settings.check_used(form)
    opened = Run.open(run)
    place = Place(user_path(path), chosen.is_folder(settings))
    if not place.is_folder and place.path.suffix != chosen.suffix:
        raise InputError(f"--to {form} writes a {chosen.suffix} file; name it {place.path.name}{chosen.suffix}.")
    with speaking(), place.held(settings.overwrite) as new:
        source = Source(opened, load_run(run, model=settings.model), settings)
        chosen.check(source)
        threat_of(source)  # a wrong eps or attack is told before any work
        measured = images_to_measure(source, settings.measure) if settings.measure else None
        images = choose_images(opened, source.classifier, settings.check_images)
        tolerance = TOLERANCE if settings.precision == "float32" else None
        with writing(place.path):
            facts = _written(chosen, source, new)
        models = chosen.load(source, new)
        agreement = compare(source.classifier, models, images.pixels, tolerance)
        price = measure(source, models[0], *measured) if measured else None
        check = {"images": len(images.pixels), "image_source": images.about, "batch_sizes": BATCH_SIZES}
        checked = {**asdict(agreement), "tolerance": tolerance, **check}
        known = {**facts, "check": checked, **({"price": asdict(price)} if price else {})}
        place.put(to_json(describe(source, form, known)) + "\n")
        found = (form, place.path, place.description, settings.precision)
        notes = tuple(facts.get("notes", ()))
        return Exported(*found, bytes=_size(place.path), price=price, notes=notes, **checked)


def _written(form: Form, source: Source, place: Path) -> dict[str, Any]:
    try:
        return form.write(source, place)
    except (ApdError, OSError):
        raise
    except Exception as error:  # the tracers raise dozens of kinds
        name = source.classifier.encoder.info.source
        raise ApdError(
            f"{name} cannot be exported to {form.name}: {type(error).__name__}: {one_line(error, 300)}"
        ) from error


def _size(place: Path) -> int:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
