"""How the modules of the package lean on each other, read from their source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("echoir", "echoir.export", "echoir.runtime", "echoir.calibration")  # each may lie in a folder of its own


def files() -> Iterator[tuple[str, Path]]:
    """All modules by name."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        folder = Path(spec.submodule_search_locations[0])
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


def modules() -> dict[str, ast.Module]:
    """What each holds."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files()}


def nodes(tree: ast.AST, types: bool) -> Iterator[ast.AST]:
    """Everything in a module; what only a type checker imports, if asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            continue
        yield node
        yield from nodes(node, types)


def imported(tree: ast.Module, names: set[str], types: bool) -> set[str]:
    """The modules of the package that a module imports, in functions too."""
    found = set()
    for node in nodes(tree, types):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in names else str(node.module))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            found.update(argument.value for argument in node.args if isinstance(argument, ast.Constant))
    return found & names


@pytest.mark.parametrize("types", [False, True], ids=["when run", "for types too"])
def test_no_modules_import_each_other_in_a_circle(types: bool) -> None:
    trees = modules()
    imports = {name: imported(tree, set(trees), types) for name, tree in trees.items()}
    assert "echoir.runtime.cuda.session" in imports["echoir.runtime.sessions"]  # inside a function
    assert ("echoir.runtime.restorer" in imports["echoir.runtime"]) == types
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("old", "new"), [("echoir.network", "echoir.networks.echoir"), ("echoir.upsampler", "echoir.networks.upsampler")]
)
def test_the_former_import_paths_give_the_same_objects(old: str, new: str) -> None:
    before, now = import_module(old), import_module(new)
    public = {name for name, value in vars(now).items() if name[0] != "_" and getattr(value, "__module__", "") == new}
    assert public <= set(before.__all__)
    assert all(getattr(before, name) is getattr(now, name) for name in before.__all__)


# Where a network may be named outside its own files: the tables, the reader of manifests of format 1, the plugin for
# old versions of TensorRT, and what a GStreamer user sees.
NAMED = {
    "echoir.export.lowering",
    "echoir.export.operators",
    "echoir.runtime.manifest",
    "echoir.runtime.cuda.plugin_class",
    "echoir.runtime.streams.gst.python.echoirrestore",
}
NETWORK = re.compile(r"\bEchoIR\b|\bEchoUpsampl|\becho_upsampl|networks\.(echoir|upsampler|grl)")


def test_generic_code_names_no_network() -> None:
    named = set()
    for name, path in files():
        generic = name.startswith(("echoir.export.", "echoir.runtime.", "echoir.calibration."))
        if (
            generic
            and not f"{name}.".startswith(("echoir.export.echo.", "echoir.export.grl."))
            and NETWORK.search(path.read_text(encoding="utf-8"))
        ):
            named.add(name)
    assert named <= NAMED
