"""One name for one thing, in every command; former names are still understood, and spoken of no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from builders import make_artifact
from PIL import Image
from running import echoir

from echoir.cli import COMMANDS, cli
from echoir.export import cached
from echoir.runtime.artifact import Artifact
from echoir.runtime.commands import artifact_of

FORMER = [
    ("export", "--images", "--data", "data"),
    ("parity", "--images", "--data", "data"),
    ("evaluate", "--images", "--data", "data"),
    ("parity", "--reference", "--weights", "reference"),
    ("bench", "--reference", "--weights", "reference"),
    ("stream", "--overwrite", "--force", "overwrite"),
]
REST = {
    "export": [],
    "parity": ["a"],
    "evaluate": ["a", "--data", "d"],
    "bench": ["a"],
    "stream": ["a", "b", "-m", "c"],
}
TAKE_AN_ARTIFACT = ["build", "parity", "golden", "bench", "inspect", "triton", "evaluate"]


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def options(name: str) -> dict[str, click.Option]:
    return {one: found for found in command(name).params if isinstance(found, click.Option) for one in found.opts}


@pytest.mark.parametrize(("name", "old", "new", "keyword"), FORMER, ids=lambda value: value)
def test_a_former_name_means_the_same_and_help_knows_the_new_one(
    name: str, old: str, new: str, keyword: str, tmp_path: Path
) -> None:
    value = [] if keyword == "overwrite" else [str(tmp_path)]
    given = [command(name).make_context(name, [*REST[name], one, *value]).params[keyword] for one in (old, new)]
    assert given[0] == given[1]
    assert str(given[0]) == (str(tmp_path) if value else "True")
    words = echoir(name, "--help").out.split()
    assert new in words
    assert old not in words
    assert echoir(name, *REST[name], old, *value).err.count("deprecat") == 0


@pytest.mark.parametrize("name", TAKE_AN_ARTIFACT)
def test_an_artifact_is_named_in_its_place_or_by_m(name: str, tmp_path: Path) -> None:
    rest = ["-o", tmp_path / "out"] if name in ("golden", "triton", "build") else []
    rest += ["--data", tmp_path] if name == "evaluate" else []
    missing = tmp_path / "nothing.onnx"
    for artifact in ([missing], ["-m", missing]):
        result = echoir(name, *artifact, *rest)
        assert (result.code, str(missing) in result.err) == (4, True)
    for artifact in ([], [missing, "-m", missing]):
        result = echoir(name, *artifact, *rest)
        assert (result.code, "-m" in result.err or "which artifact?" in result.err) == (2, True)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_several_commands_have_is_alike_in_all(name: str) -> None:
    found = options(name)
    assert ("--log-json" in found) == ("--quiet" in found)
    if "--threads" in found:
        assert found["--threads"].help == "Threads. [default: one per physical core]"
    if name not in ("inspect",) and "--json" in found:
        assert found["--json"].metavar == "FILE"
    assert not {"--overwrite", "--images", "--reference"} & set(found)


def test_restore_takes_force_for_exists_overwrite(gain: Artifact, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out)
    command = ("restore", tmp_path / "a.png", "-m", gain.model_path, "-o", out)
    assert echoir(*command).code == 0
    assert np.asarray(Image.open(out)).max() == 0
    assert echoir(*command, "--force").code == 0
    assert np.asarray(Image.open(out)).max() == 50


def test_export_says_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from echoir import __version__
    from echoir.cli import export_main

    monkeypatch.setattr("sys.argv", ["echoir-export", "--version"])
    monkeypatch.setattr("echoir.cli.guard_streams", lambda: None)
    with pytest.raises(SystemExit) as end:
        export_main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"echoir, version {__version__}\n"


# A shipped checkpoint where an artifact is wanted


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The exports that were asked for; each is an artifact that halves every pixel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requests: list[Any] = []

    def export(request: Any, source: Any, **_: Any) -> None:
        requests.append(request)
        request.output.mkdir(parents=True)
        make_artifact(request.output, gain=0.5)

    monkeypatch.setattr(cached, "export_artifact", export)
    return requests


@pytest.mark.parametrize(("name", "tile"), [("denoise", "free"), ("sr-x4", None)])
def test_a_shipped_checkpoint_has_free_tiles_where_its_network_takes_any_size(
    name: str, tile: str | None, made: list[Any]
) -> None:
    cached.cached_artifact(name, lambda _: None, quiet=True)
    assert [request.tile for request in made] == [tile]


def test_a_shipped_checkpoint_is_exported_once_and_that_is_said(made: list[Any], tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "a.png")
    for run in (1, 2):
        result = echoir("restore", tmp_path / "a.png", "-m", "denoise", "-o", tmp_path / f"{run}.png")
        assert result.code == 0
        assert ("exporting it once" in result.err) == (run == 1)
        assert str(made[0].output) in result.err
        assert np.asarray(Image.open(tmp_path / f"{run}.png")).max() == 50
    assert len(made) == 1
    assert (made[0].precision, made[0].weights) == ("fp32", "denoise")
    assert made[0].output.parent == tmp_path / "cache" / "echoir" / "exports"


def test_an_export_that_was_damaged_or_is_of_another_version_is_made_anew(made: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    folder = Path(artifact_of("denoise", said.append))
    old = folder.with_name(f"{folder.name.rsplit('-', 1)[0]}-0.0.1")
    old.mkdir()
    (folder / "test.onnx").write_bytes(b"?")
    assert Path(artifact_of("denoise", said.append)) == folder
    assert len(made) == 2
    assert Artifact.open(folder).manifest.name == "test"
    assert not old.exists()


@pytest.mark.parametrize("name", ["no-such-thing", "http://127.0.0.1:1/denoise", "echoir-denoise-fp16/"])
def test_other_names_are_taken_as_they_are(name: str, made: list[Any]) -> None:
    assert artifact_of(name, print) == name
    assert made == []


def test_a_file_of_that_name_comes_first(made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "denoise").mkdir()
    assert artifact_of("denoise", print) == "denoise"
    assert made == []
