"""The layout that ARCHITECTURE.md draws: rooms of a size that one can know, no circle, one face."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    name: ROOT / folder / name
    for name, folder in {
        "wuwan": "runner",
        "wuwan_cli": ".",
        "wuwan_runner": "runner",
        "wuwan_worker": "image",
    }.items()
}
MOST = 20  # modules in one folder


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_too_large_to_know(package: str) -> None:
    """At most 20 modules in a folder, and each folder says what it is for."""
    for init in PACKAGES[package].rglob("__init__.py"):
        modules = [path for path in init.parent.glob("*.py") if path != init]
        assert len(modules) <= MOST, init.parent
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), init


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not within a room either, where the contracts say nothing; imports for types count."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                # A package's own __init__ names what is below it, and is imported by all of it.
                if imported not in PACKAGES:
                    visit(imported, (*above, module))
            done.add(module)

    for module in sorted(graph.modules - PACKAGES.keys()):
        visit(module, ())


def test_the_face_of_the_library() -> None:
    """`from wuwan import Tagger` works, and costs no more than it must."""
    code = (
        "import sys, wuwan; before = set(sys.modules)\n"
        "assert not before & {'docker', 'numpy', 'typer', 'wuwan_runner.tagger'}\n"
        "from wuwan import Tagger, TagOptions\n"
        "import wuwan_runner\n"
        "assert wuwan.__all__ == wuwan_runner.__all__ and Tagger is wuwan_runner.Tagger\n"
        "assert all(getattr(wuwan, name) for name in dir(wuwan))\n"
        "print(wuwan.__version__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "from wuwan import Nothing"], check=True, capture_output=True
        )
