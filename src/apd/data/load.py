"""Load data from any source: ``load_data`` chooses the reader by what it is given."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from apd.data.arguments import unvalidated
from apd.data.dataset import IN_MEMORY, Dataset, ImageSet
from apd.data.settings import REST, DataSettings, Shots, Which
from apd.data.sources.class_names import BARE_WORDNET_ID, warn_of_nameless
from apd.data.sources.coop import load_coop
from apd.data.sources.csv_table import SUFFIXES, columns_of, csv_images, is_csv, load_csv
from apd.data.sources.digits import load_digits
from apd.data.sources.folder import load_folder
from apd.data.sources.hub import (
    Columns,
    Splits,
    hub_splits,
    is_parquet_folder,
    is_saved,
    load_hub,
    load_parquet,
    load_saved,
    parquet_splits,
    rows_without_labels,
    saved_splits,
    table_files,
)
from apd.data.sources.layouts import ROOT, dressed, load_standard, parse_standard
from apd.data.sources.split_names import subfolders
from apd.data.sources.standard import STANDARD
from apd.data.sources.unlabelled import (
    anonymous,
    divided,
    folder_images,
    named_by_list,
    with_known_classes,
    with_unlabelled,
    with_validation,
    without_known,
)
from apd.data.splits import Pools, checked_templates, few_shot
from apd.errors import InputError, nearest
from apd.util.files import user_path
from apd.util.listed import listed
from apd.util.messages import get_logger
from apd.util.plugins import Registry, is_spec
from apd.util.text import quoted

log = get_logger("apd.data")

BUILT_IN: dict[str, Callable[[], Pools]] = {"digits": load_digits}


def load_data(
    source: str | Path,
    *,
    shots: Shots = 16,
    seed: int = 0,
    templates: Sequence[str] | None = None,
    classes: Which = "all",
    columns: Columns | None = None,
    validation: int | None = None,
    unlabelled: str | Path | None = None,
    unlabelled_limit: int | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    memory_gb: float = 4.0,
) -> Dataset:
    """Named classes and images, with ``shots`` training images per class and a validation split.

    Args:
        source: a built-in name (``digits``); a standard data set (``dtd`` below ``$APD_DATA``, or ``dtd@ROOT``); a
            folder of class folders, with or without train, val and test; a CoOp split file ``split_zhou_*.json``;
            a CSV file with a path and a class per row; ``hf:owner/name[:configuration]``; parquet; a ``save_to_disk`` folder.
        shots: training images per class, or ``all``.
        seed: draws the shots. For a CoOp split file the images are those that CoOp draws with this seed.
        templates: sentences with ``{}`` for the class name; by default the data's own, mostly ``a photo of a {}.``
        classes: ``all``, ``base`` (the first half of the labels) or ``new`` (the rest), taken after the draw of shots.
        columns: names of the image and the label column, for tables in which they cannot be told.
        validation: validation images per class; by default min(shots, 4), or all of the data's own with ``all`` shots.
        unlabelled: further training images, whose labels, if any, are not used: ``rest``, the training images that are
            neither shots nor validation images, or a source (see `load_unlabelled`).
        unlabelled_limit: at most so many of them, drawn by ``seed``.
        class_names: with ``shots=0``: a file with one class name per line, or the names. ``source`` is then whatever
            `load_unlabelled` reads, and there are no test images.
        memory_gb: room for decoded unlabelled images (2^30 bytes each); if they need more, training decodes them again in
            every epoch, with the same result.

    Raises:
        InputError: for anything in the source that does not fit; see the page of each kind of source.

    >>> data = load_data("digits", shots=4)
    >>> len(data.train), data.class_names[:3]
    (40, ('zero', 'one', 'two'))
    """
    settings = unvalidated(
        source=as_text(source),
        shots=shots,
        seed=seed,
        templates=None if templates is None else checked_templates(templates),
        classes=classes,
        columns=columns,
        validation=validation,
        unlabelled=None if unlabelled is None else as_unlabelled(unlabelled),
        unlabelled_limit=unlabelled_limit,
        class_names=_named(class_names),
        memory_gb=memory_gb,
    )
    return load_section(settings)


def load_section(settings: DataSettings) -> Dataset:
    """Read the data set of a section whose seed is set; see `load_data`."""
    if settings.templates is not None:
        checked_templates(settings.templates)
    if settings.class_names is not None:
        images = load_unlabelled(settings.source, settings.columns, required=True)
        data = named_by_list(settings, short_name(settings.source), images)
        hint = "Write readable names into data.class_names."
        warn_of_nameless(data.class_names, settings.source, hint)
        return with_validation(divided(data, settings))
    other_table = settings.unlabelled is not None and _is_table(settings.unlabelled)
    pools = _pools(settings.source, own_columns(settings) if other_table else settings.columns)
    warn_of_nameless(pools.class_names, settings.source, _naming_hint(settings.source, pools.class_names))
    if settings.templates is not None:
        pools = replace(pools, templates=settings.templates)
    data = few_shot(pools, settings)
    if settings.unlabelled not in (None, REST):
        data = _with_source(data, pools, settings.unlabelled)
    data = divided(data, settings)
    # Drawn last, so that they are of the classes that are trained.
    return with_validation(data) if settings.shots == 0 and settings.unlabelled is not None else data


def own_columns(settings: DataSettings) -> Columns | None:
    """The columns for the labelled images; None where they can only be meant for the source of unlabelled ones."""
    other = settings.unlabelled not in (None, REST)
    return settings.columns if not other or _is_table(settings.source) else None


def load_unlabelled(source: str, columns: Columns | None = None, required: bool = False) -> ImageSet:
    """All images of a source of unlabelled ones, with ids that begin with ``unlabelled/``.

    Args:
        source: a folder with images in it or in folders below, whose names are ignored; a CSV file, parquet, a
            ``save_to_disk`` folder or ``hf:owner/name``, whose labels need not exist; or anything else that `load_data`
            takes. Of a source with splits, the training images.
        columns: the first is the image column of tables that have it.
        required: the source must be such a table.

    Raises:
        InputError: for a source that is not there, cannot be read or has no training images, or not the column.
    """
    path = user_path(source)
    is_name = source in BUILT_IN or parse_standard(source) or is_spec(source) or DATA.knows(source)
    if columns and required and not _is_table(source):
        raise InputError(_only_for_tables(columns, source))
    splits = None if is_name else _splits(path, source)
    if splits is not None:
        return anonymous(rows_without_labels(splits, source, columns, required))
    if path.is_dir() and not is_name:
        return folder_images(path.resolve())
    if is_csv(path) and not is_name:
        return anonymous(csv_images(path, source, columns, required))
    train = _pools(source, None).train
    if not len(train):
        raise InputError(f"data.unlabelled={source} is a test set without training images; name other images.")
    return anonymous(train)


def _with_source(data: Dataset, pools: Pools, source: str) -> Dataset:
    """The data set with the unlabelled images of another source.

    Raises:
        InputError: tables that share some of their files, whose rows have other numbers in each.
    """
    same = same_source(source, data.source)
    if not same and (shared := _files(source) & _files(data.source)):
        raise InputError(
            f"data.unlabelled={source} and data.source={data.source} share {min(shared)}, but not all their files, so that "
            "shots and test images cannot be told: name the same files in both, or unlabelled=rest."
        )
    # Where the labelled images are in no table, the columns can only be those of the others.
    found = load_unlabelled(source, data.settings.columns, required=not _is_table(data.source))
    own = () if pools.val is None else (pools.val,)
    found = without_known(found, data, own, same)
    return with_unlabelled(data, with_known_classes(found, pools.train, same))


def _named(names: str | Path | Sequence[str] | None) -> str | tuple[str, ...] | None:
    """The file of class names, or the names, as settings hold them."""
    if isinstance(names, Path):
        return str(names)
    return names if names is None or isinstance(names, str) else listed(names, "class_names")


def short_name(source: str) -> str:
    """A word for the source, for names of folders: ``dtd`` for ``dtd@/data`` as for ``/data/dtd``."""
    standard = parse_standard(source)
    if is_spec(source) or source.startswith(IN_MEMORY):
        return re.sub(r"[^\w.-]+", "-", source)
    place = Path(os.path.realpath(user_path(source)))
    return standard[0] if standard else place.name if place.is_dir() else place.stem


def same_source(one: str, other: str) -> bool:
    """Whether two sources are the same place: ``DTD`` and ``dtd@ROOT`` below that root, a folder by two paths.

    A table is its files: a folder with one parquet file is the same source as that file.
    """
    return _place(one) == _place(other)


def _place(source: str) -> object:
    """What is equal for two texts that mean the same source."""
    if source.startswith("hf:"):
        return source.removesuffix(":default")  # how the hub calls the configuration of a data set that has one only
    if source in BUILT_IN or source.startswith(IN_MEMORY) or is_spec(source):
        return source
    standard = parse_standard(source)
    if standard is None:
        path = user_path(source)
        return table_files(path) or os.path.realpath(path)  # a loop of links must not be an error here
    name, root = standard
    return name, None if root is None else root.resolve()


def _files(source: str) -> frozenset[str]:
    """The files of a table on disk; none for anything else."""
    place = _place(source)
    return place if isinstance(place, frozenset) else frozenset()


def as_text(source: str | Path) -> str:
    """The source as settings hold it; a path that reads like a name is marked as one."""
    text = str(source)
    is_name = text in BUILT_IN or text.startswith("hf:") or parse_standard(text) is not None or is_spec(text)
    return f"./{text}" if isinstance(source, Path) and is_name else text


def as_unlabelled(source: str | Path) -> str:
    """A source of unlabelled images as settings hold it; the path of a folder called ``rest`` is marked as one."""
    return f"./{source}" if isinstance(source, Path) and str(source) == REST else as_text(source)


def _problem(found: object) -> str | None:
    return None if callable(found) else "is not a function that makes an apd.Dataset"


DATA: Registry[Callable[[], Dataset]] = Registry("data set", "apd.data", {}, _problem)
"""Makers of data sets of other packages, or as ``package.module:function``."""


def _made(text: str) -> Pools:
    """The data set that a function makes."""
    data = DATA.make(text)
    if not isinstance(data, Dataset):
        raise InputError(f"The data set {text!r} is a {type(data).__name__}, not an apd.Dataset.")
    if len(data.unlabelled):
        log.warning(
            f"The data set {text!r} comes with {len(data.unlabelled)} unlabelled images, which are left out: to train on them, "
            "name them with --unlabelled SOURCE (Python: unlabelled=)."
        )
    splits = (data.train, data.val if len(data.val) else None, data.test)
    return Pools(data.name, text, data.class_names, *splits, data.templates, data.mirror, test_only=not len(data.train))


def _only_for_tables(columns: Columns, source: str) -> str:
    return f"columns={columns} fit CSV, parquet, hub and saved data sets only, not {source}."


def _pools(text: str, columns: Columns | None) -> Pools:
    if text.startswith(IN_MEMORY):
        raise InputError(
            f"The data set {text.removeprefix(IN_MEMORY)!r} was made in Python and is not on disk: give the data set itself "
            "(data= in Python), or train on the function that makes it, as package.module:function."
        )
    if is_spec(text) or (DATA.knows(text) and text not in BUILT_IN):
        return _made(text)
    if text.startswith("hf:"):
        return _hub(text.removeprefix("hf:"), columns)
    path, standard = user_path(text), parse_standard(text)
    table = None if standard or text in BUILT_IN else _table(path, text, columns)
    if table is not None:
        return table
    if columns is not None:
        raise InputError(_only_for_tables(columns, text))
    if text in BUILT_IN:
        return BUILT_IN[text]()
    if standard:
        return load_standard(*standard, text)
    if path.is_dir():
        return load_folder(path.resolve(), text)
    if path.suffix == ".json" and path.is_file():
        pools = load_coop(path, text)
        known = next((known for known in STANDARD.values() if known.listing == path.name), None)
        return dressed(pools, known) if known else pools
    raise InputError(_unknown(text, path))


def _naming_hint(source: str, names: Sequence[str]) -> str:
    """How to name classes that have numbers or WordNet ids for names."""
    path = user_path(source)
    if not path.is_dir() or is_saved(path) or is_parquet_folder(path):
        return "Put readable names into the data itself: they become the class names."
    listing = path / "classes.txt"
    if any(BARE_WORDNET_ID.fullmatch(name) for name in names):
        own = "imagenet/classnames.txt"
        own = quoted(user_path(root) / own) if (root := os.environ.get(ROOT)) else f"${ROOT}/{own}"
        return f"ImageNet's names: copy {own} (see apd list data) to {quoted(listing)}. Others: write there FOLDER,name lines."
    return f"Name them in {quoted(listing)}: FOLDER,name in a line for each class."


def _table(path: Path, text: str, columns: Columns | None) -> Pools | None:
    """CSV, parquet and saved tables; None for anything else."""
    if is_csv(path):
        return load_csv(path, text, columns)
    if path.suffix == ".parquet" and path.is_file():
        return load_parquet(path, text, columns)
    if path.is_dir() and is_saved(path):
        return load_saved(path, text, columns)
    if is_parquet_folder(path):
        return load_parquet(path, text, columns)
    return None


def _is_table(source: str) -> bool:
    """Whether a source has columns."""
    if source in BUILT_IN or is_spec(source) or parse_standard(source):
        return False
    path = user_path(source)
    return source.startswith("hf:") or is_csv(path) or bool(table_files(path))


def has_columns(source: str, columns: Columns) -> bool:
    """Whether a source is a table with these columns.

    Raises:
        InputError: a table that cannot be read.
    """
    path, wanted = user_path(source), set(columns)
    if not _is_table(source):
        return False
    if is_csv(path):
        return wanted <= set(columns_of(path))
    return all(wanted <= set(rows.column_names) for rows in (_splits(path, source) or {}).values())


def _splits(path: Path, text: str) -> Splits | None:
    """The tables of a source by split; None for anything else."""
    if text.startswith("hf:"):
        return hub_splits(text.removeprefix("hf:"))
    if path.is_dir() and is_saved(path):
        return saved_splits(path, text)
    is_parquet = path.suffix == ".parquet" and path.is_file()
    return parquet_splits(path, text) if is_parquet or is_parquet_folder(path) else None


def _hub(spec: str, columns: Columns | None) -> Pools:
    known = next((known for known in STANDARD.values() if known.hub == spec), None)
    if known is None:
        return load_hub(spec, columns)
    return dressed(load_hub(spec, columns or known.columns), known)


def _unknown(text: str, path: Path) -> str:
    if path.is_file():
        return f"{text} is a file of another kind: data is a folder, a .json split file, a .csv or a .parquet file."
    folders = [folder.name for folder in subfolders(path.parent)] if path.parent.is_dir() else []
    meant = nearest(path.name, folders) if folders else ""
    beside = f" {meant}" if meant.startswith("Did") else ""
    if (
        path.is_absolute()
        or text.startswith((".", "~"))
        or path.suffix in (".json", ".parquet", *SUFFIXES)
        or text.count("/") > 1
    ):
        return f"there is no folder or file {text}.{beside}"
    if "/" in text:
        return f"there is no folder {text}.{beside} A data set of the hub is written hf:{text}."
    known = nearest(text, [*BUILT_IN, *STANDARD, *folders], listed=[*BUILT_IN, *STANDARD])
    return f"{text!r} is neither a built-in or standard data set nor a folder or file here. {known}"
