"""GPADLs: lists of guest pages that a guest hands to the host, in a header message and as many bodies as it takes.

As in Linux' include/linux/hyperv.h (vmbus_channel_gpadl_header, vmbus_channel_gpadl_body). A body names no channel, so at any time
one list at most is being built under an id.

The invariant: a finished list names only pages of the guest's memory, and what one guest can make the host hold is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from avmm.vmbus.ranges import GpaRange, pack_ranges, unpack_ranges
from avmm.vmbus.wire import GpadlBody, GpadlHeader, WireError

MAX_LISTS = 1024
MAX_PAGES = 1 << 19  # in all lists of a guest: 2 GiB of shared memory


@dataclass(frozen=True, slots=True)
class Gpadl:
    """A finished list."""

    channel_id: int
    gpadl: int
    ranges: tuple[GpaRange, ...]

    @property
    def pages(self) -> int:
        """How many pages it names."""
        return sum(len(one.pfns) for one in self.ranges)


@dataclass(slots=True)
class _Building:
    channel_id: int
    wanted: int
    count: int
    data: bytearray


@dataclass(frozen=True, slots=True)
class BuildingState:
    """A list of which not all bodies have come: what was announced, and the data so far."""

    channel_id: int
    gpadl: int
    wanted: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class GpadlTableState:
    """All lists of a connection."""

    lists: tuple[Gpadl, ...]
    building: tuple[BuildingState, ...]
    version: int = 1


@dataclass(slots=True)
class GpadlTable:
    """The lists of one connection. ``pages`` is how many pages the guest's memory has."""

    pages: int
    lists: dict[tuple[int, int], Gpadl] = field(default_factory=dict)
    _building: dict[int, _Building] = field(default_factory=dict)

    def header(self, message: GpadlHeader) -> Gpadl | None:
        """Begin a list. Returns it when it is complete already, None when bodies must follow; WireError when it cannot be."""
        key = (message.channel_id, message.gpadl)
        if key in self.lists or message.gpadl in self._building:
            raise WireError(f"GPADL {message.gpadl:#x} of channel {message.channel_id} exists already")
        if len(self.lists) + len(self._building) >= MAX_LISTS:
            raise WireError(f"more than {MAX_LISTS} GPADLs")
        if not message.range_count or not message.range_bytes or message.range_bytes % 8:
            raise WireError(f"a GPADL of {message.range_count} ranges in {message.range_bytes} bytes")
        building = _Building(message.channel_id, message.range_bytes, message.range_count, bytearray())
        self._building[message.gpadl] = building
        return self._append(message.gpadl, building, message.data)

    def body(self, message: GpadlBody) -> tuple[int, Gpadl | None]:
        """Continue a list: its channel, and the list when it is complete. WireError when there is none to continue."""
        building = self._building.get(message.gpadl)
        if building is None:
            raise WireError(f"a GPADL body for {message.gpadl:#x}, which is not being built")
        return building.channel_id, self._append(message.gpadl, building, message.data)

    def owner(self, gpadl: int) -> int | None:
        """Return the channel for which ``gpadl`` is being built."""
        building = self._building.get(gpadl)
        return building.channel_id if building is not None else None

    def _append(self, gpadl: int, building: _Building, data: bytes) -> Gpadl | None:
        building.data += data
        # A message is padded to 8 bytes by some guests; more than that is not what the header announced.
        if len(building.data) > building.wanted + 7:
            del self._building[gpadl]
            raise WireError(f"GPADL {gpadl:#x} brings more than the {building.wanted} bytes it announced")
        if len(building.data) < building.wanted:
            return None
        del self._building[gpadl]
        ranges, used = unpack_ranges(bytes(building.data[: building.wanted]), building.count, self.pages)
        if used != building.wanted:
            raise WireError(f"GPADL {gpadl:#x} announced {building.wanted} bytes and has {used}")
        done = Gpadl(building.channel_id, gpadl, tuple(ranges))
        if done.pages + sum(one.pages for one in self.lists.values()) > MAX_PAGES:
            raise WireError(f"GPADLs of more than {MAX_PAGES} pages")
        self.lists[building.channel_id, gpadl] = done
        return done

    def get(self, channel_id: int, gpadl: int) -> Gpadl | None:
        """Return a finished list."""
        return self.lists.get((channel_id, gpadl))

    def remove(self, channel_id: int, gpadl: int) -> bool:
        """Forget a finished list; False when there is none."""
        return self.lists.pop((channel_id, gpadl), None) is not None

    def drop_channel(self, channel_id: int) -> None:
        """Forget all lists of a channel."""
        for key in [key for key in self.lists if key[0] == channel_id]:
            del self.lists[key]
        for gpadl in [gpadl for gpadl, building in self._building.items() if building.channel_id == channel_id]:
            del self._building[gpadl]

    def clear(self) -> None:
        """Forget everything."""
        self.lists.clear()
        self._building.clear()

    def save(self) -> GpadlTableState:
        """Return the state."""
        building = [BuildingState(one.channel_id, gpadl, one.wanted, one.count, bytes(one.data)) for gpadl, one in self._building.items()]
        return GpadlTableState(tuple(self.lists.values()), tuple(building))

    def restore(self, state: GpadlTableState) -> None:
        """Go on from a saved state: each list is taken again, as if the guest had just sent it. WireError when it could not have been."""
        if state.version != 1:
            raise WireError(f"saved GPADLs of version {state.version}")
        self.clear()
        for done in state.lists:
            data = pack_ranges(list(done.ranges))
            if self.header(GpadlHeader(done.channel_id, done.gpadl, len(data), len(done.ranges), data)) != done:
                raise WireError(f"GPADL {done.gpadl:#x} has another length than its pages")
        for one in state.building:
            if self.header(GpadlHeader(one.channel_id, one.gpadl, one.wanted, one.count, one.data)) is not None:
                raise WireError(f"GPADL {one.gpadl:#x} is complete, and was not when it was saved")
