"""Device images: where the hypervisor gets the code of a device model from, and how it is checked before it is used.

An image is a Python module with a ``Device`` in it. It comes through a channel: ``builtin`` (part of avmm), an
entry point of an installed package (group ``avmm.devices``), a file handed over by the service OS, or a URL (http, https,
file). The last two need the SHA-256 of what is expected.

The invariant: no byte that came from a file or a URL is executed before its hash was compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from avmm.devices.device import Device

GROUP = "avmm.devices"
LIMIT = 1 << 20
"""Bytes of an image at most."""
PATIENCE = 10.0
"""Seconds that a server may be silent."""
_MODULE = "avmm_image_"


class DeviceImageError(Exception):
    """An image cannot be had or must not be used; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Image:
    """What came through a channel, not executed yet. ``load`` does that, once it has been verified."""

    origin: str
    load: Callable[[], type[Device]]
    data: bytes | None = None
    sha256: str = ""
    """What is expected of ``data``; empty for code that is installed here already."""

    def verify(self) -> type[Device]:
        """Compare the hash, then execute the image and return its device class. DeviceImageError when either fails."""
        if self.data is not None:
            found = hashlib.sha256(self.data).hexdigest()
            if not hmac.compare_digest(found, self.sha256.lower()):
                raise DeviceImageError(f"{self.origin} has SHA-256 {found}, not {self.sha256 or 'any that was given'}: it was not used")
        return self.load()


class Channel(Protocol):
    """A way to get an image."""

    origin: str

    async def fetch(self) -> Image:
        """Return the image. DeviceImageError when it cannot be had."""


class BuiltinChannel:
    """The model that is part of avmm."""

    def __init__(self, image: type[Device]) -> None:
        self.origin = "builtin"
        self._image = image

    async def fetch(self) -> Image:
        return Image(self.origin, lambda: self._image)


class EntryPointChannel:
    """An installed package that publishes a device under the group ``avmm.devices``."""

    def __init__(self, name: str) -> None:
        self.origin = f"entry-point:{name}"
        self._name = name

    async def fetch(self) -> Image:
        return Image(self.origin, lambda: entry_point_class(self._name))


class FileChannel:
    """A Python file that the service OS reads and hands over."""

    def __init__(self, path: str | Path, sha256: str, name: str = "") -> None:
        self.origin = str(path)
        self._sha256, self._name = _checked(sha256, self.origin), name

    async def fetch(self) -> Image:
        return _source(self.origin, await _in_thread(self._read), self._sha256, self._name)

    def _read(self) -> bytes:
        try:
            with open(self.origin, "rb") as file:
                return file.read(LIMIT + 1)
        except OSError as error:
            raise DeviceImageError(f"cannot read the image {self.origin}: {error.strerror}") from None


class UrlChannel:
    """A Python file behind an http, https or file URL."""

    def __init__(self, url: str, sha256: str, name: str = "", patience: float = PATIENCE) -> None:
        self.origin = url
        self._patience = patience
        self._sha256, self._name = _checked(sha256, url), name

    async def fetch(self) -> Image:
        return _source(self.origin, await _in_thread(self._get), self._sha256, self._name)

    def _get(self) -> bytes:
        import urllib.error
        import urllib.request

        try:
            with urllib.request.urlopen(self.origin, timeout=self._patience) as answer:
                data: bytes = answer.read(LIMIT + 1)
                return data
        except urllib.error.HTTPError as error:
            error.close()
            raise DeviceImageError(f"cannot fetch the image {self.origin}: {error}") from None
        except (OSError, ValueError) as error:  # URLError is an OSError; a malformed answer is a ValueError or an OSError
            raise DeviceImageError(f"cannot fetch the image {self.origin}: {error}") from None


def channel(image: str, sha256: str = "", *, builtin: type[Device] | None = None) -> Channel:
    """Return the channel that ``image`` names: ``builtin``, ``entry-point:NAME``, a URL, or a path.

    Behind a path or URL ``#Name`` may say which class of the file it is. DeviceImageError when it names none.
    """
    if image == "builtin":
        if builtin is None:
            raise DeviceImageError("avmm has no built-in image of this device")
        return BuiltinChannel(builtin)
    if image.startswith("entry-point:"):
        return EntryPointChannel(image.removeprefix("entry-point:"))
    place, _, name = image.partition("#")
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", place, re.IGNORECASE)
    if scheme is None:
        return FileChannel(place, sha256, name)
    if scheme[1].lower() not in ("http", "https", "file"):
        raise DeviceImageError(f"cannot fetch an image by {scheme[1]}: choose http, https or file")
    return UrlChannel(place, sha256, name)


def entry_point_class(name: str) -> type[Device]:
    """Return the device class that an installed package publishes as ``name``."""
    import importlib.metadata  # takes as long as all the rest of the module, and few machines have devices of others

    found = importlib.metadata.entry_points(group=GROUP, name=name)
    if not found:
        known = sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})
        raise DeviceImageError(f"no installed package publishes the device {name!r} (known: {', '.join(known) or 'none'})")
    point = next(iter(found))
    try:
        image = point.load()
    except (Exception, SystemExit) as error:
        raise DeviceImageError(f"the device {name!r} ({point.value}) cannot be imported: {_short(error)}") from error
    if not (isinstance(image, type) and issubclass(image, Device)):
        raise DeviceImageError(f"{point.value} is not a Device class")
    return image


def _checked(sha256: str, origin: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DeviceImageError(f"the image {origin} needs its SHA-256, 64 hexadecimal digits")
    return sha256.lower()


async def _in_thread(read: Callable[[], bytes]) -> bytes:
    """Read in a thread of its own. Cancelled, it is left to its time-out, and what it reads is thrown away."""
    threads = ThreadPoolExecutor(1, "avmm-image")
    try:
        data = await asyncio.get_running_loop().run_in_executor(threads, read)
    finally:
        threads.shutdown(wait=False)
    if len(data) > LIMIT:
        raise DeviceImageError(f"the image is longer than {LIMIT >> 10} KiB")
    return data


def _source(origin: str, data: bytes, sha256: str, name: str) -> Image:
    return Image(origin, lambda: _execute(origin, data, sha256, name), data, sha256)


def _execute(origin: str, data: bytes, sha256: str, name: str) -> type[Device]:
    """Execute a module, known by its hash, and return the device class in it. One hash is executed once."""
    called = _MODULE + sha256[:32]
    module = sys.modules.get(called)
    if module is None:
        module = types.ModuleType(called)
        module.__file__ = origin
        sys.modules[called] = module  # dataclasses look their module up there
        try:
            exec(compile(data, origin, "exec", dont_inherit=True), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[called]
            raise DeviceImageError(f"the image {origin} cannot be imported: {_short(error)}") from error
    own = {
        key: value for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Device) and value.__module__ == called
    }  # fmt: skip
    if name:
        if name not in own:
            raise DeviceImageError(f"there is no device class {name} in {origin}")
        return own[name]
    if len(own) != 1:
        raise DeviceImageError(f"{origin} has {len(own)} device classes: say which with #Name" if own else f"no device class in {origin}")
    return next(iter(own.values()))


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
