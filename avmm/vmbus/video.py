"""The synthetic video channel: an enlightened guest says where its frame buffer is and how the picture lies in it.

What Linux's hyperv_fb speaks (versions 3.0 to 3.5; messages in :mod:`avmm.vmbus.video_wire`). The guest chooses where the
frame buffer appears: in the range that the VMBus device's ``_CRS`` names, where our memory is put and stored to with no exit,
or in its own RAM. It tells which parts have changed, so that nobody has to compare pictures.

The invariant: what is shown was checked to lie inside the frame buffer before it is shown, and every answer owed is sent or
waits for room; a guest that does not take its answers loses the channel.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from avmm.devices.device import Board, Device, MemoryRange
from avmm.memory import PAGE
from avmm.vmbus import video_wire as wire
from avmm.vmbus.outbox import Outbox
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.server import ENUMERATE_INTERFACE, PIPE_MODE, ChannelEnd, Offer
from avmm.vmbus.video_wire import Message, PointerPart, Situation
from avmm.vmbus.wire import WireError

INTERFACE: Final = UUID("da0a7802-e377-4aac-8e77-0558eb1073f8")
INSTANCE: Final = UUID("5620e0c7-8062-4dce-aeb7-520c7ef76171")
MEGABYTES: Final = 8
SIZE: Final = MEGABYTES << 20
MESSAGE_MODE: Final = 4
WAITING: Final = 64
"""Answers that may wait for room in the guest's ring."""
LARGEST: Final = 8192
DEFAULT_RESOLUTION: Final = (1024, 768)
STANDARD: Final = ((1920, 1080), (1600, 1200), (1280, 1024), (1152, 864), (1024, 768), (800, 600), (640, 480))
_RAW_MODES = {32: "BGRX", 16: "BGR;16"}
_BIOS_INFO = bytes(16)
_CAPABILITIES = bytes(64)
_EVERYTHING = bytes((1, 1, 1, 1))
"""What we want to be told of: dirt, pointer position, pointer shape, situation."""


@dataclass(frozen=True)
class State:
    """Saved state: where the frame buffer is, what it shows, and our memory of it."""

    location: int | None
    situation: Situation | None
    pointer: PointerPart | None
    pointer_at: tuple[bool, int, int]
    vram: bytes
    accepted: bool
    version: int = 1


@dataclass(frozen=True, slots=True)
class ChannelState:
    """Saved state of an open channel: answers that wait, and the pieces of a pointer of which not all have come."""

    waiting: tuple[bytes, ...]
    parts: bytes
    version: int = 1


class SyntheticVideo(Device):
    """A monitor on VMBus: a device for the frame buffer's memory, and a ``ChannelServer`` for the messages.

    ``window`` is where the guest may have the frame buffer besides its RAM, the first and the last address. ``resolution`` is
    what a guest is told to use when it next asks.
    """

    name = "synthetic-video"

    def __init__(self, board: Board, window: tuple[int, int], resolution: tuple[int, int] = DEFAULT_RESOLUTION) -> None:
        super().__init__(board)
        self.memory = (MemoryRange(window[0], window[1] + 1 - window[0]),)
        data = MESSAGE_MODE.to_bytes(4, "little")
        self._offer = Offer(INTERFACE, INSTANCE, data, ENUMERATE_INTERFACE | PIPE_MODE, mmio_megabytes=MEGABYTES, name="video")
        self.resolution = resolution
        self.vram = memoryview(mmap.mmap(-1, SIZE))
        """Page-aligned: the guest is given these very pages."""
        self.location: int | None = None
        """Where the guest has its frame buffer."""
        self.situation: Situation | None = None
        self.generation = 0
        """Grows with everything the guest says has changed."""
        self.pointer_at = (False, 0, 0)
        self._pointer: PointerPart | None = None
        self._parts = b""
        self._mapped: int | None = None
        self._accepted = False
        self._outbox = Outbox()
        self._handlers: dict[int, Callable[[bytes], None]] = {
            Message.VRAM_LOCATION: self._take_location,
            Message.SITUATION_UPDATE: self._take_situation,
            Message.POINTER_POSITION: self._take_position,
            Message.POINTER_SHAPE: self._take_shape,
            Message.DIRT: self._take_dirt,
            Message.BIOS_INFO_REQUEST: lambda body: self._answer(Message.BIOS_INFO_RESPONSE, _BIOS_INFO),
            Message.RESOLUTION_REQUEST: self._take_resolution_request,
            Message.CAPABILITY_REQUEST: lambda body: self._answer(Message.CAPABILITY_RESPONSE, _CAPABILITIES),
        }

    # -- the picture, as the VGA has it

    @property
    def shown(self) -> bool:
        """Whether the monitor shows this picture, and not the VGA's."""
        return self.location is not None and self.situation is not None and bool(self.situation.active)

    @staticmethod
    def mode() -> str:
        """Return "graphics"; there is no other."""
        return "graphics"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return (0, 0) if self.situation is None else (self.situation.width, self.situation.height)

    @staticmethod
    def text_rows() -> list[str]:
        """Return an empty list: there are only pixels."""
        return []

    def pixels(self) -> tuple[int, int, bytes]:
        """Return width, height and the picture as red, green, blue bytes, with the pointer."""
        from PIL import Image

        shown = self.situation
        if shown is None or self.location is None:
            return 0, 0, b""
        data = self._bytes(self.location, shown)
        size = shown.width, shown.height
        picture = Image.frombuffer("RGB", size, data, "raw", _RAW_MODES[shown.depth], shown.pitch, 1)
        pointer, (visible, x, y) = self._pointer, self.pointer_at
        if pointer is not None and visible and -pointer.width < x < shown.width and -pointer.height < y < shown.height:
            shape = Image.frombuffer("RGBA", (pointer.width, pointer.height), pointer.data, "raw", "BGRA", 0, 1)
            picture = picture.copy()
            picture.paste(shape, (x, y), shape)
        return *size, picture.tobytes()

    def _bytes(self, location: int, shown: Situation) -> bytes:
        """The rows of the picture, each as long as the pitch."""
        rows = shown.pitch * shown.height
        if self._mapped is not None:
            return bytes(self.vram[shown.offset : shown.offset + rows]).ljust(rows, b"\0")
        return self.board.memory.read(location + shown.offset, shown.end - shown.offset).ljust(rows, b"\0")

    # -- memory

    def read_memory(self, address: int, size: int) -> int:
        at = address - (self._mapped or 0)
        if self._mapped is None or not 0 <= at <= SIZE - size:
            return (1 << 8 * size) - 1
        return int.from_bytes(self.vram[at : at + size], "little")

    def write_memory(self, address: int, size: int, value: int) -> None:
        at = address - (self._mapped or 0)
        if self._mapped is not None and 0 <= at <= SIZE - size:
            self.vram[at : at + size] = value.to_bytes(size, "little")

    def _in_window(self, address: int) -> bool:
        (window,) = self.memory
        return address % PAGE == 0 and window.first <= address <= window.first + window.size - SIZE

    def _map(self, address: int | None) -> None:
        if self._mapped is not None and self._mapped != address:
            self.board.map_ram(self._mapped, SIZE, None)
            self._mapped = None
        if address is not None and self._mapped is None:
            self.board.map_ram(address, SIZE, self.vram)
            self._mapped = address

    def reset(self) -> None:
        self.closed()
        self.vram[:] = bytes(SIZE)

    # -- ChannelServer

    @property
    def offer(self) -> Offer:
        """What the guest is told of the channel."""
        return self._offer

    def opened(self, channel: ChannelEnd) -> None:
        """The guest's driver came."""
        self.closed()
        self._outbox.open(channel)

    def closed(self) -> None:
        """The guest's driver went: the monitor shows the VGA again."""
        self._outbox.close()
        self._accepted = False
        self._map(None)
        self.location = self.situation = self._pointer = None
        self.pointer_at, self._parts = (False, 0, 0), b""
        self.generation += 1

    def received(self, packet: Packet) -> None:
        """A message came in."""
        channel = self._outbox.channel
        if channel is None or packet.kind is PacketKind.COMPLETION:
            return
        if packet.completion_requested:
            channel.send(PacketKind.COMPLETION, b"", packet.transaction_id)
        try:
            if packet.kind is not PacketKind.IN_BAND:
                raise WireError("video: a packet that is no message")
            kind, body = wire.parse(packet.payload)
            if kind == Message.VERSION_REQUEST:
                self._take_version(body)
            elif not self._accepted:
                raise WireError(f"video: message {kind} before a version was agreed on")
            elif kind in self._handlers:
                self._handlers[kind](body)
            else:
                channel.board.trace("video: unknown message", type=kind)
        except WireError as error:
            channel.fail(str(error))

    def _take_version(self, body: bytes) -> None:
        asked = wire.version(body)
        self._accepted = asked[0] == wire.MAJOR and asked <= wire.WIN10
        self._answer(Message.VERSION_RESPONSE, wire.version_answer(asked, self._accepted))

    def _take_resolution_request(self, body: bytes) -> None:
        sizes = [self.resolution, *(size for size in STANDARD if size != self.resolution)]
        self._answer(Message.RESOLUTION_RESPONSE, wire.resolutions_answer(body[0], sizes))

    def _take_location(self, body: bytes) -> None:
        context, address = wire.vram_location(body)
        self.situation = self.location = None
        if address is None:
            self._map(None)
        else:
            self.location = self._located(address)
        self.generation += 1
        self._answer(Message.VRAM_LOCATION_ACK, context.to_bytes(8, "little"))
        self._answer(Message.FEATURE_CHANGE, _EVERYTHING)

    def _take_situation(self, body: bytes) -> None:
        context, count, shown = wire.situation(body)
        if self.location is None:
            raise WireError("video: a situation without a frame buffer")
        self.situation = self._checked(shown, self.location) if shown.active and count else None
        self.generation += 1
        self._answer(Message.SITUATION_UPDATE_ACK, context.to_bytes(8, "little"))

    def _checked(self, shown: Situation, location: int) -> Situation:
        """Return a situation whose picture lies in a frame buffer at ``location``. WireError when it does not."""
        room = SIZE if self._mapped is not None else min(SIZE, self.board.memory.size - location)
        if shown.depth not in _RAW_MODES or not (0 < shown.width <= LARGEST and 0 < shown.height <= LARGEST):
            raise WireError(f"video: {shown.width}x{shown.height} with {shown.depth} bits is no picture")
        if shown.offset < 0 or shown.pitch < shown.width * shown.depth // 8 or shown.end > room:
            raise WireError(f"video: rows of {shown.pitch} bytes from {shown.offset:#x} on do not fit the frame buffer")
        return shown

    def _located(self, address: int) -> int:
        """Put the frame buffer there. WireError when it can be neither in the window nor in RAM."""
        inside = self._in_window(address)
        if not inside and not 0 <= address < self.board.memory.size:
            raise WireError(f"video: a frame buffer at {address:#x}, which is neither RAM nor where VMBus devices have memory")
        self._map(address if inside else None)
        return address

    def _take_position(self, body: bytes) -> None:
        self.pointer_at = wire.pointer_position(body)
        self.generation += 1

    def _take_shape(self, body: bytes) -> None:
        """Pointers with colours are drawn; monochrome ones, which invert what is below, are left out."""
        part = wire.pointer_part(body)
        whole = 4 * part.width * part.height
        self._parts = ((b"" if part.index == 0 else self._parts) + part.data)[:whole]
        if part.index != wire.POINTER_COMPLETE:
            return
        data, self._parts = self._parts, b""
        self._pointer = replace(part, data=data) if part.argb and len(data) == whole else None
        self.generation += 1

    def _take_dirt(self, body: bytes) -> None:
        if wire.dirt(body):
            self.generation += 1

    # -- to the guest

    def _answer(self, kind: Message, body: bytes) -> None:
        if len(self._outbox) >= WAITING:
            raise WireError("video: the guest asks and does not take the answers")
        self._outbox.put([wire.pack(kind, body)])

    # -- saved state

    def save_channel(self) -> ChannelState:
        """Return what the channel adds to the monitor's own state."""
        return ChannelState(tuple(self._outbox.waiting), self._parts)

    def restore_channel(self, channel: ChannelEnd, state: Any) -> None:
        """Go on from a saved channel; the monitor's own state follows."""
        if not isinstance(state, ChannelState) or state.version != 1 or len(state.waiting) > WAITING:
            raise ValueError("not a saved channel of this monitor")
        self.opened(channel)
        self._outbox.waiting.extend(bytes(answer) for answer in state.waiting)
        self._parts = bytes(state.parts)

    def save(self) -> State:
        vram = bytes(self.vram) if self.location is not None else b""  # nobody sees it before there is a place for it
        return State(self.location, self.situation, self._pointer, self.pointer_at, vram, self._accepted)

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1 or len(state.vram) not in (0, SIZE):
            raise ValueError("not a saved state of this monitor")
        self.vram[:] = state.vram or bytes(SIZE)
        self._map(None)
        self.location = None if state.location is None else self._located(state.location)
        self.situation = None
        if state.situation is not None and self.location is not None:
            self.situation = self._checked(state.situation, self.location)
        pointer = state.pointer
        if pointer is not None and len(pointer.data) != 4 * pointer.width * pointer.height:
            raise ValueError(f"a saved pointer of {pointer.width}x{pointer.height} pixels with {len(pointer.data)} bytes")
        self._pointer, self.pointer_at, self._accepted = pointer, state.pointer_at, state.accepted
        self.generation += 1
