"""Installation: what a clone, a wheel and a missing package come to, without an index."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import make_artifact
from PIL import Image

from echoir.runtime import errors

CLONE = Path(__file__).parent.parent
EXTRAS = (
    "train", "export", "foreign", "kernel", "cuda", "build", "tensorrt", "rtx", "openvino", "video", "gstreamer", "ray",
)  # fmt: skip


def python(*arguments: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What README's reader stands in: the sources, an exported artifact, a picture."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("echoir", "runtime", "export", "calibration", "pyproject.toml"):
        (folder / name).symlink_to(CLONE / name)
    (folder / "echoir-denoise-fp16").mkdir()
    make_artifact(folder / "echoir-denoise-fp16", "denoise-fp16", gain=0.5)
    Image.fromarray(np.full((70, 50, 3), 200, np.uint8)).save(folder / "photo.png")
    return folder


def test_the_snippet_of_the_readme_runs_in_a_clone(clone: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (CLONE / "README.md").read_text(), re.DOTALL)
    printed = python("-c", snippet + "\nprint(clean.shape, clean.dtype, clean.min(), clean.max())", folder=clone)
    assert printed == "(70, 50, 3) uint8 100 100\n"


@pytest.mark.parametrize("package", ["runtime", "runtime.streams", "export", "calibration"])
def test_in_a_clone_its_own_subpackages_are_imported(clone: Path, package: str) -> None:
    printed = python("-c", f"import echoir.{package} as it; print(it.__file__)", folder=clone)
    assert printed == f"{clone / package.replace('.', '/') / '__init__.py'}\n"


def test_in_a_clone_the_command_runs_as_a_module(clone: Path) -> None:
    assert "restore" in python("-m", "echoir", "--help", folder=clone)


def test_an_installed_package_reaches_no_further_than_its_folder(clone: Path, tmp_path: Path) -> None:
    installed = tmp_path / "echoir"
    installed.mkdir()
    (installed / "__init__.py").write_text((CLONE / "echoir" / "__init__.py").read_text())
    (installed / "runtime").mkdir()
    assert python("-c", "import echoir; print(*echoir.__path__)", folder=tmp_path) == f"{installed}\n"


def test_the_runtime_restores_where_neither_torch_nor_onnx_can_be_imported(clone: Path) -> None:
    program = """if True:
        import sys
        sys.modules.update(dict.fromkeys(["torch", "onnx", "PIL", "scipy", "skimage"]))
        from echoir.cli import main
        sys.argv[1:] = ["restore", "photo.png", "-m", "echoir-denoise-fp16", "-o", "light.png"]
        main()
    """
    python("-c", program, folder=clone)
    with Image.open(clone / "light.png") as restored:
        assert restored.getextrema() == ((100, 100),) * 3


def test_pip_takes_the_installed_package_for_the_name_in_a_remedy(tmp_path: Path) -> None:
    found = [re.fullmatch(r"run: pip install '(.*)'", errors.remedy(extra)) for extra in EXTRAS]
    wanted = [match[1] for match in found if match is not None]
    assert len(wanted) == len(EXTRAS)
    python("-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "-q", *wanted, folder=tmp_path)


def test_in_a_clone_that_is_not_installed_the_remedy_is_its_path(clone: Path) -> None:
    program = """if True:
        import importlib.metadata, sys
        def nothing(name): raise importlib.metadata.PackageNotFoundError(name)
        importlib.metadata.distribution = nothing
        from echoir.runtime.errors import remedy
        print(remedy("video"))
    """
    assert python("-c", program, folder=clone) == f"run: pip install '{clone}[video]'\n"


def test_on_a_jetson_tensorrt_is_not_to_come_from_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    monkeypatch.setattr(errors, "L4T_RELEASE", release)
    message = str(errors.MissingExtraError("tensorrt", "tensorrt"))
    assert "comes with JetPack" in message
    assert "--system-site-packages" in message
    assert "pip install" not in message
    assert "pip install" in str(errors.MissingExtraError("pycuda", "cuda"))
