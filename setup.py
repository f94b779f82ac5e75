"""Builds the native CPU kernels with the package; everything else about the package stands in pyproject.toml.

The library has a plain C ABI: no torch headers, no Python headers, no OpenMP. Each source gets the flags of its
instruction set, and the kernels choose at run time. Without a compiler the package installs all the same, and the
ops run through torch; ``recpress_kernels.native.status()`` says so.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("kernels/recpress_kernels/native")
COMMON = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
]
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
FLAGS = {
    "entry.cpp": [],
    "entry_bags.cpp": [],
    "entry_interaction.cpp": [],
    "portable.cpp": [],
    **(
        {
            "avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
            "vnni.cpp": ["-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
        }
        if X86
        else {}
    ),
}


class BuildNative(build_ext):
    """Compile each source with its own flags and link a library that carries no Python suffix."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            objects = []
            for name, flags in FLAGS.items():
                objects += self.compiler.compile(
                    [str(SOURCES / name)],
                    output_dir=self.build_temp,
                    extra_postargs=COMMON + flags + (["-DRP_X86"] if X86 else []),
                    depends=ext.depends,
                )
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.compiler.link_shared_object(objects, str(target), target_lang="c++")
        except Exception as error:  # no compiler, or one that fails: a slower path, said by status()
            print(f"recpress: native kernels not built, ops run through torch instead: {error}", file=sys.stderr)


setup(
    ext_modules=[
        Extension(
            "recpress_kernels.native.librecpress",
            sources=[str(SOURCES / name) for name in FLAGS],
            depends=[str(p) for p in sorted(SOURCES.glob("*.h"))],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
