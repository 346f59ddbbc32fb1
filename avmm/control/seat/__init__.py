"""A place in front of a machine: what its screen shows and its serial line says, keyboard, mouse; here or over a socket."""

from avmm.control.seat.client import RemoteSeat
from avmm.control.seat.facts import Counters, DiskFacts, Facts
from avmm.control.seat.local import LocalSeat
from avmm.control.seat.picture import Picture, PixelPicture, TextPicture
from avmm.control.seat.seat import Seat, SeatError, Viewer
from avmm.control.seat.server import SeatServer

__all__ = [
    "Counters", "DiskFacts", "Facts", "LocalSeat", "Picture", "PixelPicture", "RemoteSeat", "Seat", "SeatError", "SeatServer",
    "TextPicture", "Viewer",
]  # fmt: skip
