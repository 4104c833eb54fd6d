"""One schema for YAML, flags and Python: sections live beside what they configure, this file composes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from apd.data.settings import DataSettings
from apd.errors import InputError
from apd.methods import MethodSettings, find_method
from apd.runs.differences import flat
from apd.settings.explain import explain, setting_names
from apd.settings.layers import merged, with_path, without_path
from apd.settings.train import TrainSettings
from apd.util.section import RECORDED, Section
from apd.util.text import short
from apd.util.trust import trust
from apd.util.yaml_files import dump_yaml, parse_yaml, read_yaml

if TYPE_CHECKING:
    from apd.data import Dataset

FLAGS = {
    "model": "--model",
    "data.source": "DATA",
    "data.shots": "--shots",
    "data.unlabelled": "--unlabelled",
    "data.class_names": "--classes",
    "data.skip_bad_images": "--skip-bad-images",
    "method.name": "--method",
    "train.eps": "--eps",
    "train.epochs": "--epochs",
    "train.seed": "--seed",
    "train.device": "--device",
}
"""Settings with a flag of their own; all others are reached by ``--set``."""
LABELS_PER_CONTEXT = 16
"""Labelled images per class from which on each has a text context of its own by default (chosen on validation images)."""

MAIN_SETTING = {"method": "name", "data": "source"}
"""What a bare word in place of a section stands for: ``method: apd``."""


class RecordedSettings(MethodSettings):
    """Settings of a method that is not there, as a run has recorded them: kept, not checked."""

    model_config = ConfigDict(extra="allow", frozen=True)


class MethodConfig(Section):
    """A method's name and its own settings, flat in YAML: ``{name: apd, teacher: tuned, prompts: {…}}``.

    With ``preset: published`` the settings of its paper, those of the section ``train`` included, stand under all that is
    given explicitly.
    """

    name: str = Field("apd", description="training method; its own settings go into the same section")
    settings: SerializeAsAny[MethodSettings]

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return value
        name = value.get("name", "apd")
        settings = {key: entry for key, entry in value.items() if key != "name"}
        try:
            method = find_method(str(name))
        except InputError:
            if info.context != RECORDED:
                raise
            return {"name": name, "settings": RecordedSettings.model_validate(settings)}
        read = method.Settings.model_validate(settings, context=info.context)
        if method.learns and not (read.prompts.text_tokens or read.prompts.visual_tokens or read.prompts.frame):
            raise ValueError(
                f"method {name} has nothing to learn with these prompts: give it method.prompts.text_tokens, visual_tokens "
                "or a frame, or choose the method zero-shot"
            )
        return {"name": name, "settings": read}

    def other_models(self) -> dict[str, str]:
        """Find the CLIPs that the settings name beside the run's own, by setting."""
        named = {name: getattr(self.settings, name, None) for name in self.settings.models}
        return {name: source for name, source in named.items() if source is not None}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.settings.model_dump(mode="json")}


class RunConfig(Section):
    """Everything that can be set about a training run."""

    model: str = Field("glyphs", description="built-in name, hub id or folder of a CLIP model")
    data: DataSettings
    method: MethodConfig = Field(default_factory=lambda: MethodConfig.model_validate({}))
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _training_goes_with_method(self, info: ValidationInfo) -> RunConfig:
        if info.context != RECORDED:
            self.method.settings.check_training(self.train)
            named = self.train.pseudo_labels
            if named is not None and not find_method(self.method.name).pseudo_labels:
                raise ValueError(
                    f"train.pseudo_labels={named} has no effect with method {self.method.name}, which gives unlabelled images "
                    "no labels; remove it"
                )
            if self.data.shots == 0:
                self.method.settings.check_without_labels()
                if named is not None:
                    raise ValueError(
                        f"train.pseudo_labels={named} is fitted and chosen by labels, of which there are none with data.shots=0; "
                        "remove it"
                    )
            self._words_have_an_effect()
        return self

    def _words_have_an_effect(self) -> None:
        prompts = self.method.settings.prompts
        for name in ("words", "between"):
            if getattr(prompts, name) and not prompts.text_tokens:
                raise ValueError(f"method.prompts.{name} has no effect without text tokens; remove it")

    def to_yaml(self) -> str:
        """All settings as YAML, which `load_config` reads again."""
        return dump_yaml(self.model_dump(mode="json"))


def load_config(
    file: str | Path | None = None, flags: Mapping[str, Any] | None = None, sets: Iterable[str] = ()
) -> RunConfig:
    """Settings from a YAML file, then flags, then ``--set``; the later wins.

    Args:
        file: YAML file with the sections of `RunConfig`.
        flags: dotted names to values; None means not given.
        sets: ``train.optimizer.lr=0.01`` and the like; values are read as YAML.

    Raises:
        InputError: a missing or damaged file, an unknown name, a value out of range; the message names the place.

    Example:
        >>> from apd.runs.config import load_config
        >>> load_config(flags={"data.source": "digits", "train.epochs": 5}, sets=["train.epochs=7"]).train.epochs
        7
    """
    raw = {} if file is None else dict(_read_yaml(Path(file)))
    places = dict.fromkeys(map(str, raw), str(file))
    sets = list(sets)
    trust(flags, sets)
    given = [(key, value, FLAGS.get(key, key)) for key, value in (flags or {}).items() if value is not None]
    given += [(*_parse_set(item), f"--set {item}") for item in sets]
    asked = {key: value for key, value, _ in given}
    raw = _forget_other_preset(raw, asked)
    _forget_other_method(raw, asked)
    for key, value, place in given:
        raw = with_path(raw, key, value, source=place, main=MAIN_SETTING)
        places[key] = place
    return validate(raw, places)


def validate(raw: Mapping[str, Any], places: Mapping[str, str] | None = None) -> RunConfig:
    """`RunConfig` from nested mappings.

    Args:
        raw: sections to settings.
        places: dotted names to where they came from, for the message.

    Raises:
        InputError: in one line, with the place and the nearest known name.
    """
    entries = {
        key: {MAIN_SETTING[key]: value} if key in MAIN_SETTING and isinstance(value, str) else value
        for key, value in raw.items()
    }
    try:
        return RunConfig.model_validate(_with_preset(entries))
    except ValidationError as error:
        raise InputError(_explain(error, entries, places or {})) from error


def load_recorded(file: Path) -> RunConfig:
    """The settings of a finished run, whose method may be gone: nothing but training needs it.

    Raises:
        InputError: a missing or damaged file, or settings of another version.
    """
    raw = _read_yaml(file)
    return recorded(raw, dict.fromkeys(raw, str(file)))


def recorded(raw: Mapping[str, Any], places: Mapping[str, str]) -> RunConfig:
    """`RunConfig` from nested mappings of which nothing is to be trained, as `validate` does for a training."""
    try:
        return RunConfig.model_validate(raw, context=RECORDED)
    except ValidationError as error:
        raise InputError(_explain(error, raw, places)) from error


def _explain(error: ValidationError, raw: Mapping[str, Any], places: Mapping[str, str]) -> str:
    names = run_setting_names(raw.get("method"))
    return explain(error, names, places=places, main=MAIN_SETTING, missing=_missing)


def _missing(name: str) -> str:
    whole, _, place = name.rpartition(".")
    if place.isdecimal():
        return f"The setting {whole!r} has too few values ({place}); give all of them, as --set {whole}=[…]."
    name = f"{name}.{MAIN_SETTING[name]}" if name in MAIN_SETTING else name
    return f"The setting {name!r} is missing; give it as {FLAGS.get(name, f'--set {name}=…')} or in --config."


def run_setting_names(method: Any = None) -> list[str]:
    """Dotted names of all settings of a run, with those of the method that the section ``method`` names."""
    return setting_names(RunConfig, {"method.settings": _settings_of(method)})


def _settings_of(section: Any) -> type[MethodSettings]:
    """The settings class of the method that a section names; APD's where it names none that is known."""
    try:
        return find_method(str(section.get("name", "apd")) if isinstance(section, Mapping) else "apd").Settings
    except InputError:
        return find_method("apd").Settings


def _with_preset(entries: dict[str, Any]) -> dict[str, Any]:
    """The published settings of the method, where they are asked for, under what is given explicitly."""
    section = entries.get("method")
    if not isinstance(section, Mapping) or section.get("preset") != "published":
        return entries
    published = _settings_of(section).published
    if not published:
        raise InputError(
            f"Method {section.get('name', 'apd')} has no published settings for prompts of CLIP; set method.preset=own."
        )
    preset: dict[str, Any] = {}
    for name, value in published.items():
        preset = with_path(preset, name, value)
    return merged(preset, entries)


def with_class_contexts(config: RunConfig, load: Callable[[], Dataset]) -> RunConfig:
    """Decide whether each class has a text context of its own, where the settings leave it open.

    Each has one if the method has this default and most classes have `LABELS_PER_CONTEXT` labelled images. Not where only some
    classes are trained: others would get the mean of these contexts, in place of one learned for all.

    Args:
        config: from `validate`.
        load: gives the data set whose labelled images are trained on; called only where they decide.
    """
    settings, data = config.method.settings, config.data
    spec = settings.prompts
    if spec.class_specific is not None:
        return config
    possible = spec.text_tokens and spec.coupling == "none" and spec.experts == 1 and settings.preset != "published"
    enough = data.classes == "all" and (data.shots == "all" or data.shots >= LABELS_PER_CONTEXT)
    specific = bool(settings.class_contexts and possible and enough)
    if specific:
        per_class = Counter(load().train.labels.tolist()).values()
        specific = bool(per_class) and median(per_class) >= LABELS_PER_CONTEXT
    prompts = spec.model_copy(update={"class_specific": specific})
    method = config.method.model_copy(update={"settings": settings.model_copy(update={"prompts": prompts})})
    return config.model_copy(update={"method": method})


def _read_yaml(file: Path) -> dict[str, Any]:
    content = read_yaml(file)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold sections such as 'train:', got {type(content).__name__}.")
    return content


def _parse_set(item: str) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {short(item)} must be NAME=VALUE, as in --set train.optimizer.lr=0.01.")
    try:
        return key.strip(), parse_yaml(text, f"--set {short(item)}")
    except InputError as error:
        raise InputError(f"{error} Text with special characters needs quotes inside the value.") from error


def _forget_other_method(raw: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Drop from a file's section what belongs to another method or variant than the one now asked for.

    A saved run's settings name every weight of its method; kept, they would win over the new preset. So do the defaults
    that it names, which may be others with another variant.
    """
    section = raw.get("method")
    if not isinstance(section, Mapping):
        return
    name, before = section.get("name", "apd"), _settings_of(section)
    if "method.name" in given and given["method.name"] != name:
        now = _settings_of({"name": given["method.name"]})
        # Prompts of one kind stay, so that a control has those of the method it is compared with.
        same = (now.defaults, now.fixed) == (before.defaults, before.fixed)
        raw["method"] = {key: section[key] for key in ("preset", *(["prompts"] if same else [])) if key in section}
    elif "method.variant" in given:
        preset = {key for weights in before.variants.values() for key in weights}
        if given["method.variant"] != section.get("variant"):
            usual = _usual(before, section)
            kept = {key: value for key, value in section.items() if key not in usual or value != usual[key]}
            raw["method"] = {key: value for key, value in kept.items() if key not in preset}


def _usual(settings: type[MethodSettings], section: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the variant of a section has where nothing else is said."""
    try:
        return settings.model_validate({"variant": section["variant"]} if "variant" in section else {}).model_dump()
    except ValidationError:  # a variant that needs more
        return {key: field.default for key, field in settings.model_fields.items()}


def _forget_other_preset(raw: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a file what presets set, where the file names one and that of another name or method is now asked for.

    A saved run's settings name every value; kept, they would win over the preset. What differs from the values that the
    file's own preset gives was chosen, and stands; so does all in a file that names no preset.
    """
    section = raw.get("method")
    if not isinstance(section, Mapping) or "preset" not in section:
        return raw
    old, before = section.get("name", "apd"), section["preset"]
    new, now = given.get("method.name", old), given.get("method.preset", before)
    if (new, now) == (old, before):
        return raw
    try:
        usual = flat(validate({"data": "DATA", "method": {"name": old, "preset": before}}).model_dump(mode="json"))
    except InputError:  # a method or preset that nobody knows
        return raw
    held = flat(raw)
    for name in [name for method in (old, new) for name in _settings_of({"name": method}).published]:
        if held.get(name) == usual.get(name):
            raw = without_path(raw, name)
    return raw
