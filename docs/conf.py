"""The manual: `make docs` builds it into docs/_build."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from typing import ClassVar

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# Compiled modules keep no docstrings: here the sources beside them are imported.
sys.path_hooks.insert(0, FileFinder.path_hook((SourceFileLoader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES)))
sys.path_importer_cache.clear()

from avmm_console.cli import group as avmm_command  # noqa: E402

project = "avmm"
copyright = "the authors of avmm"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "avmm"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
nitpicky = False
HELP_WIDTH = 100


class CommandHelp(SphinxDirective):
    """``command-help``: what ``--help`` prints, of avmm and of each of its commands, a section each."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        self._add(avmm_command, "avmm", None, sections)
        return sections

    def _add(self, command: click.Command, name: str, parent: click.Context | None, sections: list[nodes.Node]) -> None:
        context = click.Context(command, parent=parent, info_name=name, max_content_width=HELP_WIDTH, terminal_width=HELP_WIDTH)
        path = context.command_path
        section = nodes.section(ids=[path.replace(" ", "-")], names=[path])
        section += nodes.title("", path)
        section += nodes.literal_block("", context.get_help(), language="none")
        sections.append(section)
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                if found is not None:
                    self._add(found, child, context, sections)


def setup(app: Sphinx) -> None:
    """Add our directive."""
    app.add_directive("command-help", CommandHelp)
