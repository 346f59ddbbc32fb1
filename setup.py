"""How avmm's native parts are built: the C shim in front of Unicorn, pieces of guest memory, and the modules of compiled.txt by mypyc.

mypyc makes of each of those modules a C file in build/ and an extension that is imported instead of the source beside it. An object
is compiled again only when its C file or a header has changed. With AVMM_INTERPRETED=1 in the environment none is made.

The invariant: avmm/compiled.json has the digest of the source of every compiled module that lies there, so that
avmm/compiled.py can tell when one is not what the source says.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

GROUP = "avmm.compiled"  # all modules share one library, avmm/compiled__mypyc, and call each other without looking names up
C = Path("build")
# `make lint` is who is strict. The checkout may lie anywhere, be it in a package of somebody else.
MYPYC = ("--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--explicit-package-bases")

SHIM = Extension(
    "avmm.cpu.unicorn._shim",
    sorted(map(str, Path("avmm/cpu/unicorn/shim").glob("*.c"))),
    depends=sorted(map(str, Path("avmm/cpu/unicorn/shim").glob("*.h"))),
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-fno-strict-aliasing", "-fvisibility=hidden"],
)
PIECES = Extension("avmm._pieces", ["avmm/_pieces.c"], extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"])
MODULES = [line for line in Path("compiled.txt").read_text().split("\n") if line and not line.startswith("#")]
if os.environ.get("AVMM_INTERPRETED", "0") not in ("", "0"):
    MODULES = []
DIGESTS = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in MODULES}
BUILDING = not {"build", "build_ext", "bdist_wheel", "editable_wheel"}.isdisjoint(sys.argv)  # or only asked for names


def translate() -> list[Extension]:
    """Return the extensions of the modules, whose C files are written here."""
    if not MODULES or not BUILDING:
        return []
    from mypyc.build import mypycify

    extensions = mypycify([*MYPYC, *MODULES], opt_level="2", debug_level="0", multi_file=True, group_name=GROUP, target_dir=str(C))
    for extension in extensions:
        extension.include_dirs.append(str(C / "avmm"))  # where the group's header is
        extension.extra_compile_args.append("-Wno-error")  # another compiler may have more to say
    return extensions


class Build(build_ext):
    """Builds the shim and the compiled modules, several C files at once, in place of all that was built before."""

    def run(self) -> None:
        if self.inplace:
            for old in [Path("avmm/compiled.json"), *Path("avmm").rglob(f"*{self.get_ext_filename('')}")]:
                old.unlink(missing_ok=True)
        self.build_temp = str(C / f"{self.plat_name}-{sys.implementation.cache_tag}")  # pip's own is gone when it is done
        super().run()
        here = Path() if self.inplace else Path(self.build_lib)
        (here / "avmm/compiled.json").write_text(json.dumps(DIGESTS, indent=0))

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], output_dir: str, **how: Any) -> list[str]:
            headers = max((path.stat().st_mtime for path in C.rglob("*.h")), default=0.0)
            headers = max(headers, *(os.stat(path).st_mtime for path in how.get("depends") or ["setup.py"]))

            def make(source: str) -> str:
                [made] = self.compiler.object_filenames([source], output_dir=output_dir)
                if not os.path.exists(made) or os.stat(made).st_mtime <= max(headers, os.stat(source).st_mtime):
                    compile_one([source], output_dir=output_dir, **how)
                return made

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(make, sources))

        self.compiler.compile = compile_all
        super().build_extensions()


setup(ext_modules=[SHIM, PIECES, *translate()], cmdclass={"build_ext": Build})
