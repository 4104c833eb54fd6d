"""The body of a request: multipart, read piece by piece, each image decoded as soon as it is there.

No more than one undecoded image per request is held, so a request takes the memory of its largest image and not of all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from apd.serve.model import Pixels
from apd.serve.refused import Late, Refused
from apd.serve.settings import ServeSettings
from apd.util.text import printable

FIELD = "images"
"""The form's field that holds the images."""
_LINGER = 2.0
"""Seconds in which the rest of a refused body is read, so that a client that is still sending gets to see why."""

Decode = Callable[[bytes, str], Awaitable[Pixels]]


async def read_images(request: Request, settings: ServeSettings, decode: Decode) -> list[Pixels]:
    """Read and decode the images of a request.

    Args:
        request: whose body is multipart, with files in the field ``images``.
        settings: limits.
        decode: file and its name for messages, to pixels.

    Raises:
        Refused: a body of another kind, damaged, too large or too slow; no or too many images; one that cannot be read.
    """
    async with aclosing(request.stream()) as stream:
        try:
            form = _Form(_boundary(request), settings)
            if int(request.headers.get("content-length") or 0) > settings.body_bytes:
                raise _too_long(settings)
            async with asyncio.timeout(settings.timeout):
                return await _read(stream, form, settings, decode)
        except TimeoutError as error:
            if form.decoding:  # the body is here; other requests keep the decoders busy
                raise Late from error
            raise Refused(
                408, f"The body took longer than {settings.timeout:g} seconds; send fewer or smaller images."
            ) from error
        except ClientDisconnect as error:
            raise Refused(400, "The connection was closed before the body was whole.") from error
        except Refused:
            if "expect" not in request.headers:  # whoever asks first has sent nothing yet
                await _linger(stream)
            raise


def _too_long(settings: ServeSettings) -> Refused:
    return Refused(
        413,
        f"The body may have {settings.max_images} images of {settings.max_image_mb:g} MB; send fewer in a request.",
    )


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refused(415, f"Send images as multipart/form-data in the field {FIELD!r}: curl -F {FIELD}=@cat.jpg …")
    if not options.get(b"boundary"):
        raise Refused(
            400, "The content type multipart/form-data names no boundary; let the HTTP library set the header."
        )
    return options[b"boundary"]


async def _read(stream: AsyncIterator[bytes], form: _Form, settings: ServeSettings, decode: Decode) -> list[Pixels]:
    images: list[Pixels] = []
    length = 0
    async for chunk in stream:
        length += len(chunk)
        if length > settings.body_bytes:
            raise _too_long(settings)
        form.write(chunk)
        form.decoding = True
        for name, file in form.take():
            images.append(await decode(file, name))
        form.decoding = False
    form.check_end()
    return images


async def read_on(request: Request) -> None:
    """Read a body that is not wanted, for a moment: closed at once, the connection would be reset and the answer lost."""
    if "expect" not in request.headers:
        await _linger(request.stream())


async def _linger(stream: AsyncIterator[bytes]) -> None:
    """Read on and throw away, for a moment."""
    end = time.monotonic() + _LINGER
    try:
        async with asyncio.timeout(_LINGER):
            async for _ in stream:
                if time.monotonic() > end:
                    return
    except (TimeoutError, ClientDisconnect):
        return


class _Form:
    """The parts of a multipart body, as they become whole.

    Args:
        boundary: between parts.
        settings: limits.

    Raises:
        Refused: see `read_images`.
    """

    def __init__(self, boundary: bytes, settings: ServeSettings) -> None:
        self._settings = settings
        self._header, self._value, self._disposition, self._part = bytearray(), bytearray(), b"", bytearray()
        self._whole: list[tuple[str, bytes]] = []
        self._count, self._ended, self._name = 0, False, ""
        self.decoding = False
        """Whether an image is waited for that is here already."""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise Refused(400, "The boundary of the multipart body is too long.") from error

    def write(self, data: bytes) -> None:
        """Take the next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refused(
                400, "The body is not multipart/form-data with the boundary that its header names."
            ) from error

    def take(self) -> list[tuple[str, bytes]]:
        """The images that became whole since the last call: how to call them in a message, and their bytes."""
        whole, self._whole = self._whole, []
        return whole

    def check_end(self) -> None:
        """Refuse a body that ends early or holds nothing."""
        if not self._ended:
            raise Refused(400, "The multipart body ends before its closing boundary.")
        if not self._count:
            raise Refused(422, f"Send at least one image in the field {FIELD!r}.")

    def _begin(self) -> None:
        self._disposition, self._part = b"", bytearray()

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        field, file = (_text(options.get(key, b"")) for key in (b"name", b"filename"))
        if field != FIELD:
            raise Refused(422, f"There is no field {field!r}; send images in the field {FIELD!r}.")
        self._count += 1
        if self._count > self._settings.max_images:
            raise Refused(422, f"A request may have {self._settings.max_images} images; send the others in another.")
        self._name = f"Image {self._count}" + (f" ({file})" if file else "")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if len(self._part) + end - start > self._settings.image_bytes:
            raise Refused(413, f"{self._name} is larger than {self._settings.max_image_mb:g} MB; send a smaller one.")
        self._part += data[start:end]

    def _end_part(self) -> None:
        self._whole.append((self._name, bytes(self._part)))
        self._part = bytearray()

    def _end(self) -> None:
        self._ended = True


def _text(value: bytes) -> str:
    """A name from a header, short and safe to show."""
    return printable(value.decode("utf-8", "replace"))[:80]
