"""The steps of a headless run: ``--expect`` and ``--type``, in the order in which they stand on the command line.

The invariant: the values come from click as for any option; only their order is taken from its parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import click

from avmm.devices.keys import for_text

_ORDER = "avmm_console.steps.order"
_KINDS = ("expect", "type")
_ESCAPES = {"n": "\n", "r": "\n", "t": "\t", "e": "\x1b", "b": "\b", "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: look for ``text``, or type it."""

    kind: Literal["expect", "type"]
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.text!r}"


class StepCommand(click.Command):
    """A command that knows in which order its options ``--expect`` and ``--type`` were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order if parameter.name in _KINDS]
        return super().parse_args(ctx, args)


def steps_in_order(ctx: click.Context, values: dict[str, Any]) -> tuple[Step, ...]:
    """Return the steps; ``values`` holds the tuples that click collected for each option. UsageError when one makes no sense."""
    remaining = {kind: iter(values[kind]) for kind in _KINDS}
    return tuple(_step(kind, next(remaining[kind])) for kind in ctx.meta[_ORDER])


def _step(kind: Literal["expect", "type"], text: str) -> Step:
    if not text:
        raise click.UsageError(f"--{kind} needs some text")
    return Step(kind, unescape(text) if kind == "type" else text)


def unescape(text: str) -> str:
    r"""Return what ``--type`` means: ``\n`` (and ``\r``) Enter, ``\t`` Tab, ``\e`` Escape, ``\b`` Backspace, ``\\`` a backslash."""

    def one(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise click.UsageError(rf"--type {text!r}: \{match[1]} means nothing; there are \n \t \e \b and \\")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.?)", one, text, flags=re.DOTALL)


def check_typable(step: Step) -> None:
    """UsageError when the text of a ``type`` step is not on a US keyboard."""
    try:
        for_text(step.text)
    except ValueError as error:
        raise click.UsageError(f"--type {step.text!r}: {error}; --type-to serial sends any text") from None
