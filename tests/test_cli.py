"""The command line as a whole: instant help, documented exit codes, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import echoir

from echoir.cli import COMMANDS
from echoir.runtime import errors
from echoir.runtime.artifact import Artifact
from echoir.runtime.manifest import Manifest

HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "pyvips", "rich", "tensorrt", "tensorrt_rtx"}
PROGRAM = Path(sys.executable).with_name("echoir")


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_importing_and_every_help_load_nothing_heavy() -> None:
    """Numbers, images and engines load when a command runs, so that help comes at once."""
    program = """
import json, sys
import echoir, echoir.runtime
from echoir.cli import COMMANDS, cli, run
loaded = {}
for arguments in ([], *([name] for name in COMMANDS)):
    try:
        run(cli, [*arguments, "--help"], name="echoir")
    except SystemExit as exit:
        assert exit.code == 0, arguments
    loaded[" ".join(arguments)] = sorted(set(sys.modules) & set(sys.argv[1:]))
print(json.dumps(loaded))
"""
    done = python(program, *HEAVY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [] for name in ["", *COMMANDS]}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_that_names_its_options(name: str) -> None:
    result = echoir(name, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: echoir {name} ")
    help = result.out[result.out.index("Options:") :]
    options = re.findall(r"^  (-[^\n]*)(?=\n)", help, re.MULTILINE)
    assert options
    described = re.sub(r"\n {8,}", "  ", help)
    undescribed = [line for line in described.splitlines() if line.startswith("  -") and "  " not in line[2:].strip()]
    assert undescribed == []


def test_exit_codes_are_the_documented_ones() -> None:
    text = " ".join(echoir("--help").out.split())
    documented = {int(code) for code in re.findall(r"(\d) [a-z]", text[text.index("Exit codes:") :])}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EchoIRError)]
    raised = {kind.exit_code for kind in kinds if kind is not errors.EchoIRError}
    assert documented == {0, 2} | raised == {0, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("restore",),
        ("restore", "a.png", "-o", "out"),
        ("restore", "a.png", "-m", "model", "-o", "out", "--exists", "maybe"),
        ("restore", "a.png", "-m", "model", "-o", "out", "--overlap", "-1"),
        ("restore", "a.png", "b.png", "-m", "model", "-o", "out.png"),
        ("bench",),
        ("bench", "-m", "model", "--iterations", "0"),
        ("bench", "-m", "model", "--weights", "denoise"),
        ("inspect",),
        ("export", "--precision", "fp7"),
        ("train", "--task", "nonsense"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_usage(arguments: tuple[str, ...]) -> None:
    result = echoir(*arguments)
    assert result.code == 2
    assert result.err.startswith("Usage: echoir")
    assert "Error: " in result.err


def test_a_process_ends_with_the_code_and_one_line(identity: Artifact, tmp_path: Path) -> None:
    command = [PROGRAM, "inspect", identity.model_path]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    done = subprocess.run([PROGRAM, "inspect", tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: artifact: found no artifact in {tmp_path}")


def test_a_reader_that_leaves_early_is_no_traceback(identity: Artifact) -> None:
    with subprocess.Popen(
        [PROGRAM, "inspect", identity.model_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("torch", "train", ("bench", "-m", "{model}", "--iterations", "2", "--against", "pytorch")),
        ("torch", "train", ("train", "--task", "denoise", "--data", "{folder}", "-o", "{folder}/run")),
        ("torch", "export", ("export", "-o", "{folder}/out")),
        ("onnx", "export", ("export", "-o", "{folder}/out")),
        ("onnx", "build", ("build", "{model}", "--target", "tensorrt-rtx")),
        ("torch", "export", ("parity", "-m", "{model}")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_extra_says_what_to_install(
    identity: Artifact, tmp_path: Path, missing: str, extra: str, arguments: tuple[str, ...]
) -> None:
    """With None in its place in sys.modules, a package cannot be imported, as if it were not installed."""
    given = [argument.format(model=identity.model_path, folder=tmp_path) for argument in arguments]
    program = f"import sys; sys.modules[{missing!r}] = None; from echoir.cli import main; main()"
    done = python(program, *given)
    assert done.stderr == f"error: {missing} is not installed; run: pip install 'echoir[{extra}]'\n"
    assert done.returncode == 6


class TestInspect:
    """``echoir inspect``: the manifest of a model that was checked."""

    def test_json_is_the_manifest(self, identity: Artifact) -> None:
        result = echoir("inspect", identity.model_path, "--json")
        assert (result.code, result.err) == (0, "")
        assert Manifest.from_json(result.out) == identity.manifest
        assert result.out == identity.model_path.with_suffix(".json").read_text()

    def test_the_first_look_is_some_ten_lines(self, identity: Artifact) -> None:
        lines = echoir("inspect", identity.model_path.parent).out.splitlines()
        assert 9 <= len(lines) <= 13
        shown = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
        assert identity.manifest.model.sha256 in shown["file"]
        assert shown["tile"] == "64 x 64, overlap 8, batch any"
        assert shown["parity"].startswith("not measured")

    def test_in_full_every_value_stands_beside_its_dotted_name(self, identity: Artifact) -> None:
        values, _, tiles = echoir("inspect", identity.model_path.parent, "--full").out.partition("\n\n")
        lines = values.splitlines()
        assert "1080p" in tiles, "what tiles cost comes last"
        shown = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
        assert shown["model.sha256"] == identity.manifest.model.sha256
        assert shown["tile.width"] == "64"
        assert shown["input.range"] == "0.0, 1.0"
        assert shown["parity"] == "none"

    def test_what_does_not_match_is_not_shown(self, identity: Artifact, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(identity.model_path.read_bytes())
        (tmp_path / "a.json").write_bytes(identity.model_path.with_suffix(".json").read_bytes())
        result = echoir("inspect", tmp_path / "a.onnx")
        assert (result.code, result.out) == (4, "")
        assert "model.file: found a.onnx, needed identity.onnx" in result.err


def test_want_of_memory_is_a_line_and_exit_code_6(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(path: object) -> None:
        raise MemoryError("Unable to allocate 2.01 GiB")

    monkeypatch.setattr("echoir.runtime.artifact.Artifact.open", fail)
    result = echoir("inspect", tmp_path)
    assert (result.code, result.err) == (6, "error: out of memory: Unable to allocate 2.01 GiB\n")
