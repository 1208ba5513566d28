"""Names that are no text, and streams that are closed, full or left: the work is done, and said so where it can be."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact, make_manifest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.output import Output, displayable

LATIN1 = os.fsdecode(b"lat\xe9.png")


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in names:
        Image.fromarray(pixels).save(folder / name)
    return folder


class TestNames:
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("plain name.png", "plain name.png"),
            ("J\u00e9r\u00f4me \u6f22\u5b57\u3000\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680.png",) * 2,
            (LATIN1, r"lat\xe9.png"),
            ("a\nb\tc\x1b[31m\x7f\x9b", r"a\nb\tc\x1b[31m\x7f\x9b"),
            ("gnp.\u202eexe\u2028", r"gnp.\u202eexe\u2028"),
            ("\ud800", r"\ud800"),
        ],
    )
    def test_what_is_shown(self, name: str, shown: str) -> None:
        assert displayable(name) == shown

    @given(st.binary(max_size=20))
    def test_any_file_name_is_one_line_that_can_be_encoded(self, name: bytes) -> None:
        shown = displayable(os.fsdecode(name))
        assert len(shown.encode().decode().splitlines()) <= 1
        assert "\x1b" not in shown

    def test_a_latin_1_name_reaches_every_table(self, tmp_path: Path, identity: Artifact) -> None:
        folder, table = write(tmp_path / "in", LATIN1), tmp_path / "figures.csv"
        result = echoir("evaluate", identity.model_path, "--data", folder, "--csv", table, "--log-json")
        assert result.code == 0
        with table.open(encoding="utf-8") as file:
            assert next(csv.DictReader(file))["picture"].endswith(r"sigma 25/lat\xe9.png")
        assert result.records[-1]["fields"]["picture"] == r"lat\xe9.png"

    def test_a_failure_stays_one_harmless_line(self, tmp_path: Path, identity: Artifact) -> None:
        names = ["a\nfailed: everything.png", "b\x1b]0;title\x07.png", LATIN1]
        for name in names:
            (tmp_path / name).write_bytes(b"")
        arguments = ("restore", tmp_path, "-m", identity.model_path, "-o", tmp_path / "out")
        result = echoir(*arguments)
        assert (result.code, len(result.err.splitlines())) == (3, 3)
        assert r"a\nfailed: everything.png: the file is empty" in result.err
        assert r"b\x1b]0;title\x07.png" in result.err
        result = echoir(*arguments, "--log-json")
        sources = [record["fields"]["source"] for record in result.records if record["event"] == "note"]
        assert sources == [f"{tmp_path}/{name}" for name in (*names[:2], r"lat\xe9.png")]

    def test_an_artifact_in_a_latin_1_folder_works(self, tmp_path: Path) -> None:
        folder = tmp_path / os.fsdecode(b"mod\xe8le")
        folder.mkdir()
        model = make_artifact(folder, "one").model_path
        write(tmp_path / "in", "a.png")
        assert echoir("restore", tmp_path / "in", "-m", model, "-o", tmp_path / "out").code == 0
        assert echoir("inspect", model).code == 0
        result = echoir("bench", "-m", folder, "--iterations", 2, "--warmup", 0)
        assert result.code == 0

    def test_a_manifests_name_that_is_no_text_is_refused_by_name(self, tmp_path: Path) -> None:
        model = make_artifact(tmp_path, "one").model_path
        manifest = json.loads(model.with_suffix(".json").read_text())
        for field, value in (("name", "a\ud800b"), ("versions", {"x": "\udce9"})):
            model.with_suffix(".json").write_text(json.dumps(manifest | {field: value}))
            for command in (["inspect", model], ["bench", "-m", model]):
                result = echoir(*command)
                assert result.code == 4
                assert result.err.startswith(f"error: {field}")

    def test_a_manifest_cannot_move_the_cursor(self, tmp_path: Path) -> None:
        network = replace(make_manifest().network, task="a\x1b[2Jb\nc")
        model = make_artifact(tmp_path, "one", network=network).model_path
        result = echoir("inspect", model)
        assert result.code == 0
        assert r"a\x1b[2Jb\nc" in result.out


def shell(line: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``$echoir`` is the program."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **{name: str(value) for name, value in variables.items()}}
    line = f'echoir() {{ "{sys.executable}" -m echoir "$@"; }}; set -o pipefail; {line}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, env=environment)


class TestStreams:
    RUN = 'echoir restore "$IN" -m "$MODEL" -o "$OUT"'

    @pytest.fixture
    def variables(self, tmp_path: Path, identity: Artifact) -> dict[str, Any]:
        write(tmp_path / "in", "a.png", "b.png", "c.png")
        (tmp_path / "in/d.png").touch()
        (tmp_path / "in/e.heic").touch()
        return {"IN": tmp_path / "in", "MODEL": identity.model_path, "OUT": tmp_path / "out"}

    @pytest.mark.parametrize("options", ["", "--quiet", "--log-json"])
    @pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
    def test_closed_or_full_ones_do_not_stop_the_work(
        self, variables: dict[str, Any], tmp_path: Path, streams: str, options: str
    ) -> None:
        done = shell(f"{self.RUN} {options} {streams}", **variables)
        assert (done.returncode, done.stderr) == (3, "")  # d.png is empty
        assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png"]
        for name in ("a.png", "b.png", "c.png"):
            with Image.open(tmp_path / "out" / name) as image:
                image.load()  # nothing else got into it

    def test_a_full_standard_output_is_named_after_the_work(self, variables: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "in/d.png").unlink()
        done = shell(f"{self.RUN} >/dev/full", **variables)
        assert done.returncode == 3
        assert done.stderr.splitlines()[-1] == "error: cannot write to standard output: No space left on device"
        assert "Traceback" not in done.stderr
        assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png"]

    @pytest.mark.parametrize("reader", ["head -c 5", "true", "head -1"])
    def test_a_reader_that_left_is_no_failure(self, variables: dict[str, Any], tmp_path: Path, reader: str) -> None:
        (tmp_path / "in/d.png").unlink()
        done = shell(f"{self.RUN} --log-json 2>&1 | {reader}", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png"]

    def test_a_stream_that_knows_ascii_alone_takes_any_name(self, variables: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "in/\u6f22.png").touch()
        done = shell(self.RUN, PYTHONIOENCODING="ascii", **variables)
        assert done.returncode == 3
        assert "\u6f22.png: the file is empty" in done.stderr

    def test_an_error_is_kept_and_nothing_more_is_tried(self) -> None:
        class Full:
            tried = 0

            def write(self, text: str) -> None:
                self.tried += 1
                raise OSError(28, "No space left on device")

            def flush(self) -> None:
                pass

            def fileno(self) -> int:
                raise ValueError

        stream: Any = Full()
        output = Output(stream)
        assert (output.write("a"), output.write("b"), stream.tried) == (1, 1, 1)
        assert output.lost == "No space left on device"
