"""The sources of data that there are, for people."""

from __future__ import annotations

from apd.data.sources.standard import STANDARD, Standard


def list_data() -> list[tuple[str, str]]:
    """What ``load_data`` takes: (name or form, description)."""
    return [
        ("digits", "built in: 1,797 real scans of handwritten digits, 10 classes (from scikit-learn)"),
        ("FOLDER", "class folders of images, with or without train/, val/ and test/ above; classes.txt may name them"),
        ("split_zhou_NAME.json", "a CoOp split file, with the images beside it"),
        ("FILE.csv", "a CSV or TSV file with an image's path and its class per row; a column split divides it"),
        ("hf:OWNER/NAME[:CONFIGURATION]", "a data set of the Hugging Face hub (extra hub)"),
        ("FILE.parquet", "a parquet file with an image and a label column, or a folder of such files (extra hub)"),
        ("SAVED_FOLDER", "a folder written by save_to_disk of the datasets library"),
        *((name, _about(known)) for name, known in STANDARD.items()),
    ]


def _about(known: Standard) -> str:
    use = ", for testing only" if known.test_only else ""
    online = f", or hf:{known.hub}" if known.hub else ""
    return (
        f"{known.title}, {known.classes} classes{use}: $APD_DATA/{known.folder}/ with {', '.join(known.holds)}{online}"
    )
