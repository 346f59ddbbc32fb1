"""QMP commands that do what a person at the machine does: press keys, move the mouse, look at the screen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from avmm.clock import MILLISECOND
from avmm.control.commands.command import Arg, Call, Table
from avmm.control.qmp import QmpError
from avmm.control.vm import Vm
from avmm.devices.keys import KEYS, find, for_text

TABLE = Table()
HOLD_MS = 100
KEYS_AT_ONCE = 16
TEXT_AT_ONCE = 4096
FORMATS = {"ppm": "PPM", "png": "PNG"}
_BUTTONS = {"left": 0, "right": 1, "middle": 2}
_NUMBERS = {key.make[0][-1] | (0x80 if len(key.make[0]) == 2 else 0): name for name, key in KEYS.items() if len(key.make[0]) <= 2}
"""Keys by QMP's key numbers: the set 1 code, with bit 7 for those after E0."""


def key_name(value: object) -> str:
    """Return the key that a QMP KeyValue means. QmpError when there is none."""
    if isinstance(value, dict) and value.keys() == {"type", "data"}:
        kind, data = value["type"], value["data"]
        if kind == "qcode" and isinstance(data, str):
            try:
                return find(data).name
            except ValueError:
                raise QmpError(f"Parameter 'data' does not accept value '{data}'") from None
        if kind == "number" and isinstance(data, int) and data in _NUMBERS:
            return _NUMBERS[data]
    raise QmpError('a key is {"type": "qcode", "data": NAME} or {"type": "number", "data": CODE}')


def press(vm: Vm, names: list[str], hold_ms: int) -> None:
    """Press keys together and let go of them later, in machine time."""
    if not 0 < len(names) <= KEYS_AT_ONCE:
        raise QmpError(f"press between 1 and {KEYS_AT_ONCE} keys at once")
    if not 0 <= hold_ms <= 60_000:
        raise QmpError("Parameter 'hold-time' is a number of milliseconds up to 60000")
    keyboard, clock = vm.keyboard, vm.partition.clock

    def release() -> None:
        for name in reversed(names):
            keyboard.release(name)

    for name in names:
        keyboard.press(name)
    clock.timer(release).arm(clock.now() + hold_ms * MILLISECOND)


@TABLE.command("send-key", keys=Arg(list), hold_time=Arg(int, HOLD_MS))
async def _send_key(call: Call) -> object:
    press(call.running, [key_name(value) for value in call["keys"]], call["hold-time"])
    return {}


@TABLE.command("x-avmm-type", text=Arg(str))
async def _type_text(call: Call) -> object:
    """Type text; the keyboard controller passes it on as the guest reads it."""
    vm, text = call.running, call["text"]
    if len(text) > TEXT_AT_ONCE or vm.keyboard.queued > TEXT_AT_ONCE:
        raise QmpError(f"the keyboard holds {TEXT_AT_ONCE} characters: wait until the guest has read some")
    try:
        for_text(text)
    except ValueError as error:
        raise QmpError(str(error)) from None
    vm.keyboard.feed(text)
    return {}


@TABLE.command("input-send-event", events=Arg(list), device=Arg(str, ""), head=Arg(int, 0))
async def _input_send_event(call: Call) -> object:
    vm = call.running
    for act in [_input(vm, event) for event in call["events"]]:  # all are checked before the first is sent
        act()
    return {}


def _input(vm: Vm, event: Any) -> Any:
    """Return the action for one QMP InputEvent."""
    match event:
        case {"type": "key", "data": {"down": bool(down), "key": key}}:
            name = key_name(key)
            return lambda: (vm.keyboard.press if down else vm.keyboard.release)(name)
        case {"type": "btn", "data": {"down": bool(down), "button": str(button)}} if button in _BUTTONS:
            return lambda: vm.mouse.button(_BUTTONS[button], down)
        case {"type": "btn", "data": {"down": bool(down), "button": "wheel-up" | "wheel-down" as button}}:
            return lambda: vm.mouse.move(0, 0, (1 if button == "wheel-up" else -1) if down else 0)
        case {"type": "rel", "data": {"axis": "x" | "y" as axis, "value": int(value)}}:
            return lambda: vm.mouse.move(value if axis == "x" else 0, value if axis == "y" else 0)
    raise QmpError("an input event is a key, a btn (left, middle, right, wheel-up, wheel-down) or a rel (x, y)")


@TABLE.command("x-avmm-screen")
async def _screen_text(call: Call) -> object:
    """Return what the screen shows as text; empty in a graphics mode."""
    return {"text": call.vm.screen.text()}


@TABLE.command("screendump", filename=Arg(str), device=Arg(str, ""), head=Arg(int, 0), format=Arg(str, "ppm"))
async def _screendump(call: Call) -> object:
    dump(call.vm, call["filename"], call["format"])
    return {}


def dump(vm: Vm, filename: str, format: str) -> None:
    """Write a picture of the screen."""
    if format not in FORMATS:
        raise QmpError(f"Parameter 'format' does not accept value '{format}'")
    width, height, rgb = vm.screen.pixels()
    data = io.BytesIO()
    Image.frombytes("RGB", (width, height), rgb).save(data, FORMATS[format])
    try:
        Path(filename).write_bytes(data.getvalue())
    except (OSError, ValueError) as error:
        raise QmpError(f"cannot write {filename}: {getattr(error, 'strerror', None) or error}") from None
