"""``avmm demo storage``: one disk by every path from guest to VM-H, as a table, as bars, as a picture."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

import avmm_guests
from avmm.control.demo_linux import demo_linux, find_files
from avmm.control.demo_storage import Measurement, demo_builtin

from . import lifetime
from .outputs import check_writable

if TYPE_CHECKING:
    from PIL import Image

WIDTH = 40
COLOURS = {"pio": ("red", "#c0392b"), "dma": ("yellow", "#d9a400"), "shunt": ("cyan", "#2a9db0"), "enlightened": ("green", "#2e9e4f")}
"""Of each path, in the terminal and in pictures."""
PIXELS, LINE = 900, 18
_PATH = click.Path(path_type=Path)


@click.command("storage")
@click.option("--linux", is_flag=True, help="Measure in an unmodified Linux instead of the built-in guest.")
@click.option("--kernel", type=_PATH, help="The Linux kernel; by default the one the tests have fetched.")
@click.option("--initrd-modules", "modules", type=_PATH, help="Folder with the kernel's modules (lib/modules/VERSION/kernel).")
@click.option("--busybox", type=_PATH, help="A static busybox for the initrd.")
@click.option("--quick", is_flag=True, help="Fewer requests.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of {path, op, size, depth, mb_s, iops, p50_us, p99_us, ...}.")
@click.option("--plot", type=_PATH, help="Save the chart as a .png or .html file.")
def storage(  # noqa: PLR0917 - click gives them by name
    linux: bool, kernel: Path | None, modules: Path | None, busybox: Path | None, quick: bool, as_json: bool, plot: Path | None
) -> int:
    """Read and write one disk by each path, and compare.

    The paths are emulated PIO, emulated DMA, the shunt alone and the enlightened stack.
    """
    if plot is not None and plot.suffix not in (".png", ".html"):
        raise click.UsageError(f"a chart is a .png or a .html file, not {plot}")
    if plot is not None:
        check_writable("--plot", plot)
    if not linux and (kernel or modules or busybox):
        raise click.UsageError("--kernel, --initrd-modules and --busybox go with --linux")

    async def run() -> int:
        if linux:
            found = await demo_linux(find_files(kernel, modules, busybox), tell, quick=quick)
        else:
            found = await demo_builtin(avmm_guests.image(), tell, quick=quick)
        if as_json:
            click.echo(json.dumps([one.as_dict() for one in found], indent=2))
        else:
            show(found)
        if plot is not None:
            try:
                save(found, plot)
            except OSError as error:
                raise click.ClickException(f"cannot write {plot}: {error.strerror}") from error
        return 0

    return lifetime.run(run())


def tell(one: Measurement) -> None:
    """Say how far it is."""
    click.echo(f"{one.path}: {one.op} {one.size} B, {one.depth} at a time: {one.mb_s:,.1f} MB/s", err=True)


def show(found: list[Measurement]) -> None:
    """Print the table, and bars on a logarithmic scale."""
    console = Console(highlight=False)
    titles = ("path", "op", "size", "N", "MB/s", "IOPS", "p50us", "p99us", "exits", "IRPs", "sig", "int", "copied")
    title = "One disk by every path, N requests at a time; exits, IRPs, VMBus signals, interrupts and bytes copied per request"
    table = Table(*titles, title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for m in found:
        table.add_row(
            m.path, m.op, str(m.size), str(m.depth), f"{m.mb_s:.1f}", f"{m.iops:.0f}", f"{m.p50_us:.0f}", f"{m.p99_us:.0f}",
            f"{m.exits:.1f}", f"{m.irps:.1f}", f"{m.signals:.2f}", f"{m.interrupts:.2f}", f"{m.copied:.0f}",
        )  # fmt: skip
    console.print(table)
    console.print("\nMegabytes a second, logarithmic", markup=False)
    for title, bars in chart(found):
        console.print(title, markup=False)
        for path, value, part in bars:
            console.print(f"  {path:<12} [{COLOURS[path][0]}]{'█' * max(1, round(WIDTH * part))}[/] {value:,.1f}")


def chart(found: list[Measurement]) -> Iterator[tuple[str, list[tuple[str, float, float]]]]:
    """Yield each group of bars: its title, and of each bar the path, MB/s, and the length as a part of the longest one."""
    least, most = min(m.mb_s for m in found) / 2, max(m.mb_s for m in found)
    groups: dict[tuple[str, int, int], list[Measurement]] = {}
    for m in found:
        groups.setdefault((m.op, m.size, m.depth), []).append(m)
    for (op, size, depth), group in groups.items():
        bars = [(m.path, m.mb_s, math.log(m.mb_s / least) / math.log(most / least)) for m in group]
        yield f"{op} {size} B, {depth} at a time", sorted(bars, key=lambda bar: [*COLOURS].index(bar[0]))


def save(found: list[Measurement], to: Path) -> None:
    """Write the chart as a picture or a page, by the file's suffix."""
    if to.suffix == ".html":
        to.write_text(page(found))
    else:
        picture(found).save(to, "PNG")


def page(found: list[Measurement]) -> str:
    """Return the chart as a page that needs nothing else."""
    rows = []
    for title, bars in chart(found):
        rows.append(f"<h2>{html.escape(title)}</h2>")
        rows += [
            f'<div><b>{path}</b><i style="width:{60 * part:.1f}%;background:{COLOURS[path][1]}"></i>{value:,.1f}</div>'
            for path, value, part in bars
        ]
    style = "body{font:14px sans-serif;margin:2em}h2{font-size:14px;margin:1em 0 .2em}b{display:inline-block;width:8em;font-weight:normal}"
    style += "i{display:inline-block;height:.9em;margin-right:.6em}"
    title = "One disk by every path: MB/s, logarithmic"
    head = f'<!DOCTYPE html>\n<meta charset="utf-8"><title>{title}</title><style>{style}</style>\n<h1>{title}</h1>'
    return "\n".join([head, *rows, ""])


def picture(found: list[Measurement]) -> Image.Image:
    """Return the chart as a picture."""
    from PIL import Image, ImageDraw  # nobody else needs it

    groups = list(chart(found))
    height = LINE * (2 + sum(len(bars) + 2 for _, bars in groups))
    image = Image.new("RGB", (PIXELS, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((LINE, LINE // 2), "One disk by every path: MB/s, logarithmic", fill="black")
    y = 2 * LINE
    for title, bars in groups:
        draw.text((LINE, y), title, fill="black")
        for path, value, part in bars:
            y += LINE
            end = 120 + int((PIXELS - 220) * part)
            draw.text((2 * LINE, y), path, fill="black")
            draw.rectangle((120, y + 1, end, y + LINE - 5), fill=COLOURS[path][1])
            draw.text((end + 8, y), f"{value:,.1f}", fill="black")
        y += 2 * LINE
    return image
