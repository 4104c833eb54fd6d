"""Decoding: every kind of image, threads in order, broken files."""

from __future__ import annotations

import io
import struct
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from apd.data import ImageSet, decode
from apd.data.decode import find_bad, to_rgb
from apd.models.preprocessing import Preprocessing
from apd.util.messages import command_line

from .command_line import Said
from .refusals import refused

PREPROCESSING = Preprocessing(8, 8, "crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def reopened(image: Image.Image, **options: object) -> Image.Image:
    """The image as it comes back from a file."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def plain(colour: tuple[int, ...] | int | str, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


def saved(folder: Path, name: str, image: Image.Image) -> Path:
    image.save(folder / name)
    return folder / name


def image_set(*paths: Path) -> ImageSet:
    return ImageSet(tuple(p.name for p in paths), torch.arange(len(paths)), paths)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    rgb = np.asarray(to_rgb(reopened(Image.fromarray(values), format="PNG")))
    assert rgb.shape == (1, 4, 3)
    assert rgb[0, :, 0].tolist() == [0, 1, round(32768 / 257), 255]


def test_grey_images_of_12_bits_are_told_once(said: Said) -> None:
    decode._warn_of_shallow.cache_clear()
    for most in (0, 65535, 4095, 255):
        to_rgb(Image.fromarray(np.array([[0, most]], dtype=np.uint16)))
        assert len(said()) == (most < 65535 and most > 0)


def test_integers_beyond_16_bits_and_floats_are_refused() -> None:
    with refused("integers", "8", "16", by=ValueError):
        to_rgb(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))
    with refused("floats", "8", "16", by=ValueError):
        to_rgb(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))


@pytest.mark.parametrize(
    "image",
    [
        reopened(plain((255, 0, 0, 0), "RGBA"), format="PNG"),
        reopened(plain((0, 0), "LA"), format="PNG"),
        reopened(plain((10, 20, 30)).quantize(2), format="GIF", transparency=0),
        reopened(plain((10, 20, 30)), format="PNG", transparency=(10, 20, 30)),
        reopened(plain(5000, "I;16"), format="PNG", transparency=5000),
    ],
    ids=["rgba", "grey-alpha", "palette", "rgb-key", "16-bit"],
)
def test_transparency_is_laid_on_white(image: Image.Image) -> None:
    assert to_rgb(image).getpixel((3, 3)) == (255, 255, 255)


def test_half_transparent_red_is_pink() -> None:
    red, green, blue = to_rgb(plain((255, 0, 0, 128), "RGBA")).getpixel((0, 0))
    assert red == 255
    assert green == blue == 127


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (reopened(plain(77, "L"), format="PNG"), (77, 77, 77)),
        (reopened(plain(1, "1"), format="PNG"), (255, 255, 255)),
        (reopened(plain((200, 30, 40)).quantize(4), format="PNG"), (200, 30, 40)),
        (reopened(plain((0, 255, 255, 0), "CMYK"), format="TIFF"), (255, 0, 0)),
    ],
    ids=["grey", "1-bit", "palette", "cmyk"],
)
def test_other_modes(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert to_rgb(image).getpixel((4, 4)) == expected


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (16, 8), "black")
    image.paste((255, 255, 255), (0, 0, 8, 8))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    turned = to_rgb(reopened(image, format="PNG", exif=exif))
    assert turned.size == (8, 16)
    assert turned.getpixel((4, 2)) == (255, 255, 255)
    assert turned.getpixel((4, 13)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reopened(Image.fromarray(pixels), format="PNG", exif=exif)
    assert to_rgb(image).tobytes() == (ImageOps.exif_transpose(image) or image).tobytes()


@pytest.mark.parametrize("broken", [b"Exif\0\0garbagegarbage", b"II*\0"])
def test_exif_that_cannot_be_read_does_not_hide_the_image(broken: bytes) -> None:
    for kind in ("PNG", "WEBP"):
        assert to_rgb(reopened(plain("red"), format=kind, exif=broken, lossless=True)).getpixel((0, 0)) == (255, 0, 0)


def test_an_odd_tag_beside_the_orientation_is_no_obstacle() -> None:
    """An XResolution of text, which cannot be written again."""
    tags = struct.pack("<4sIH", b"II*\0", 8, 2) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    tags += struct.pack("<HHI4sI", 0x011A, 2, 4, b"300\0", 0)
    assert to_rgb(reopened(plain("red", size=(8, 4)), format="JPEG", exif=b"Exif\0\0" + tags)).size == (4, 8)


def test_decoded_is_the_encoders_own_preprocessing_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (9 + i % 5, 12, 3), dtype=np.uint8)) for i in range(40)]
    paths = [saved(tmp_path, f"{i:02d}.png", image) for i, image in enumerate(images)]
    decoded = image_set(*paths).decode(PREPROCESSING)
    assert decoded.images.dtype == torch.uint8
    assert decoded.images.shape == (40, 3, 8, 8)
    for index, image in enumerate(images):
        expected = np.asarray(PREPROCESSING.apply(image))
        assert np.array_equal(decoded.images[index].permute(1, 2, 0).numpy(), expected)
    assert decoded.labels.tolist() == list(range(40))
    assert len(decoded) == 40


def test_pixels_are_floats_in_the_unit_interval(tmp_path: Path) -> None:
    decoded = image_set(saved(tmp_path, "a.png", plain((255, 51, 0)))).decode(PREPROCESSING)
    assert decoded.pixels(0).dtype == torch.float32
    torch.testing.assert_close(decoded.pixels(0)[:, 4, 4], torch.tensor([1.0, 0.2, 0.0]))
    assert decoded.pixels().shape == decoded.pixels(torch.tensor([0])).shape == (1, 3, 8, 8)


def broken_set(folder: Path) -> ImageSet:
    good = saved(folder, "good.jpg", plain((9, 9, 9), size=(64, 64)))
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:-200])
    (folder / "text.png").write_text("no image")
    return image_set(good, folder / "cut.jpg", folder / "text.png", saved(folder, "last.png", plain((7, 7, 7))))


def test_an_unreadable_image_is_named_with_the_way_out(tmp_path: Path) -> None:
    images = broken_set(tmp_path)
    with refused("cut.jpg", "--skip-bad-images", "skip_bad_images: true", "skip_bad_images=True"):
        images.decode(PREPROCESSING)
    with refused("text.png"):
        images.select([0, 2]).decode(PREPROCESSING)
    with refused("gone.png") as told:
        image_set(tmp_path / "gone.png").decode(PREPROCESSING)
    assert "Errno" not in str(told.value)


def test_bad_images_can_be_skipped_and_are_listed(tmp_path: Path) -> None:
    decoded = broken_set(tmp_path).decode(PREPROCESSING, skip_bad=True)
    assert decoded.skipped == ("cut.jpg", "text.png")
    assert decoded.ids == ("good.jpg", "last.png")
    assert decoded.labels.tolist() == [0, 3]
    assert decoded.images[:, 0, 4, 4].tolist() == [9, 7]
    with refused("2", "cut.jpg"):
        broken_set(tmp_path).select([1, 2]).decode(PREPROCESSING, skip_bad=True)


def test_bad_images_are_found_without_a_whole_decoding_and_within_a_time(tmp_path: Path) -> None:
    images = broken_set(tmp_path)
    bad, looked = find_bad(images.ids, images.sources, 60.0, progress=False)
    assert looked == 4 and len(bad) == 2
    assert f"cannot read the image {tmp_path / 'cut.jpg'} (" in bad[1] and "text.png" in bad[2]
    assert find_bad(images.ids, images.sources, 0.0, progress=False) == ({}, 1), "no time: one image"
    assert find_bad((), (), 60.0, progress=False) == ({}, 0)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def test_git_lfs_pointers_say_how_to_get_the_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text(POINTER)
    images = image_set(tmp_path / "a.jpg", tmp_path / "b.png")
    for skip in (False, True):
        with refused("a.jpg", "git lfs pull"):
            images.decode(PREPROCESSING, skip_bad=skip)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.dng", "a.nef", "a.jpg", "a.avif"])
def test_photos_that_cannot_be_read_are_told_by_name_or_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    images = image_set(saved(tmp_path, "good.png", plain("red")), tmp_path / name)
    with refused(name) as told:
        images.decode(PREPROCESSING)
    assert ("HEIC" in str(told.value)) if name == "a.jpg" else (f"-format jpg *{Path(name).suffix}" in str(told.value))
    assert images.decode(PREPROCESSING, skip_bad=True).skipped == (name,)


def test_raw_files_are_not_read_as_their_preview(tmp_path: Path) -> None:
    plain("red", size=(16, 16)).save(tmp_path / "photo.dng", format="TIFF")
    with refused("photo.dng"):
        image_set(tmp_path / "photo.dng").decode(PREPROCESSING)


def test_large_photos_are_read_quietly_and_too_large_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    images = image_set(
        saved(tmp_path, "large.png", plain("red", size=(15, 10))),
        saved(tmp_path, "huge.png", plain("red", size=(21, 10))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = images.decode(PREPROCESSING, skip_bad=True)
        bad, _ = find_bad(images.ids, images.sources, 60.0, progress=False)
    assert decoded.ids == ("large.png",) and decoded.skipped == ("huge.png",)
    assert list(bad) == [1] and "huge.png" in bad[1]


def test_no_images_decode_to_an_empty_tensor(tmp_path: Path) -> None:
    assert broken_set(tmp_path).select([]).decode(PREPROCESSING).images.shape == (0, 3, 8, 8)


def test_running_out_of_memory_is_no_bad_image() -> None:
    def full() -> Image.Image:
        raise MemoryError

    with pytest.raises(MemoryError):
        ImageSet(("a",), torch.zeros(1, dtype=torch.int64), (full,)).decode(PREPROCESSING, skip_bad=True)


def test_progress_goes_to_standard_error_and_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(value: int) -> Image.Image:
        time.sleep(0.01)
        return plain((value, value, value))

    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    images = ImageSet(tuple("abcd"), torch.arange(4), tuple(partial(slow, i) for i in range(4)))
    with command_line():
        assert images.decode(PREPROCESSING, progress=True).images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        quiet = capsys.readouterr()
        monkeypatch.setattr("apd.util.progress.PATIENCE", 0.0)
        images.decode(PREPROCESSING, progress=True)
    shown = capsys.readouterr()
    assert (quiet.out, shown.out) == ("", "")
    assert "decoding images" not in quiet.err
    assert "decoding images" in shown.err


def test_an_image_that_is_upright_and_in_rgb_is_not_copied() -> None:
    """Two copies of a photo of 150 million pixels are 1.2 GB."""
    image = Image.new("RGB", (4, 2), "red")
    assert to_rgb(image) is image
    image.getexif()[0x0112] = 6
    turned = to_rgb(image)
    assert turned is not image and turned.size == (2, 4) and image.size == (4, 2)


def test_the_check_leaves_images_of_the_caller_as_they_are(tmp_path: Path) -> None:
    photo = reopened(plain((10, 20, 30), size=(64, 64)), format="JPEG")
    bad, _ = find_bad(("a",), (lambda: photo,), 60.0, progress=False)
    assert not bad and photo.size == (64, 64)
