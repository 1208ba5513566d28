"""Folders on a Ray cluster: nothing lost, nothing doubled, whoever dies. `make ray` brings Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from PIL import Image
from running import echoir

from echoir.runtime.artifact import Artifact

ray = pytest.importorskip("ray", reason="Ray is not installed (make ray)")
HERE = Path(__file__).parent
PICTURES = 20


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("halving"), "halving", gain=0.5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty: RGB and gray, 8 and 16 bits, with metadata, in a tree."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    rng = np.random.default_rng(5)
    for index in range(PICTURES):
        place = folder / ("deep" if index % 2 else "")
        if index % 5 == 4:
            Image.fromarray(rng.integers(0, 65536, (70, 90 + index), np.uint16)).save(place / f"{index:02}.tif")
        else:
            picture = Image.fromarray(rng.integers(0, 256, (70, 90 + index, 3), np.uint8))
            exif = Image.Exif()
            exif[0x010E] = f"picture {index}"
            picture.save(place / f"{index:02}.{'jpg' if index % 3 else 'png'}", exif=exif, dpi=(300, 300))
    return folder


@pytest.fixture(scope="module")
def local(halving: Artifact, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    assert echoir("restore", pictures, "-m", halving.model_path, "-o", out, "--quiet").code == 0
    return out


class Run:
    """``echoir restore --on ray`` as a process, with workers that say what they do."""

    def __init__(self, *arguments: object, tally: Path, seconds: float = 0, on: str = "ray") -> None:
        program = "from echoir.cli import main; main()"
        command = [sys.executable, "-c", program, "restore", *map(str, arguments), "--on", on, "--workers", "2"]
        more = {"PYTHONPATH": str(HERE / "ray_worker"), "RAY_TALLY": str(tally), "RAY_SECONDS": str(seconds)}
        self._tally = tally
        self.process = subprocess.Popen(
            [*command, "--threads", "1"],
            env=os.environ | more,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_for(self, event: str, count: int, limit: float = 200) -> list[list[str]]:
        """What workers said, once they said it so often."""
        end = time.monotonic() + limit
        while len(found := [line for line in tally(self._tally) if line[2] == event]) < count:
            assert time.monotonic() < end, found
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return found

    def end(self, limit: float = 300) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=limit)
        finally:
            self.process.kill()
        print(err, file=sys.stderr)  # shown when the test fails
        return self.process.returncode, out, err


def tally(path: Path) -> list[list[str]]:
    """Picture, process and event, one a line."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def same(one: Path, other: Path) -> bool:
    found = [{str(p.relative_to(at)): p.read_bytes() for p in at.rglob("*") if p.is_file()} for at in (one, other)]
    return found[0] == found[1]


def test_pictures_come_out_byte_for_byte_as_from_restore(
    halving: Artifact, pictures: Path, local: Path, tmp_path: Path
) -> None:
    run = Run(pictures, "-m", halving.model_path, "-o", tmp_path / "out", tally=tmp_path / "tally")
    code, out, _ = run.end()
    assert (code, out) == (0, f"restored {PICTURES}, skipped 0, failed 0\n")
    assert same(tmp_path / "out", local)
    lines = tally(tmp_path / "tally")
    assert Counter(line[0] for line in lines if line[2] == "done").most_common(1)[0][1] == 1
    assert len({line[1] for line in lines}) == 2, "both workers had work"


def test_a_bad_file_and_one_that_kills_its_worker_are_named_and_the_rest_is_done(
    halving: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "kills", "z"):
        Image.effect_noise((90, 70), 40).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG no more")
    arguments = (tmp_path / "in", "-m", halving.model_path, "-o", tmp_path / "out", "--attempts", 2)
    code, out, err = Run(*arguments, tally=tmp_path / "tally").end()
    assert code == 3
    assert out == "restored 3, skipped 0, failed 2\n"
    assert "bad.png: " in err
    assert "kills.png: its worker was lost, 2 of 2 times" in err
    tried = Counter(line[0] for line in tally(tmp_path / "tally") if line[2] == "begun")
    assert tried == {"a.png": 1, "b.png": 1, "z.png": 1, "bad.png": 1, "kills.png": 2}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "z.png"]


def test_a_killed_worker_costs_one_more_try(halving: Artifact, pictures: Path, local: Path, tmp_path: Path) -> None:
    run = Run(pictures, "-m", halving.model_path, "-o", tmp_path / "out", tally=tmp_path / "tally", seconds=0.2)
    run.wait_for("done", 4)
    victim = run.wait_for("begun", 5)[-1]
    os.kill(int(victim[1]), signal.SIGKILL)
    code, out, err = run.end()
    assert (code, out) == (0, f"restored {PICTURES}, skipped 0, failed 0\n")
    assert "of 20 pictures were lost with their workers" in err
    assert same(tmp_path / "out", local)
    done = Counter(line[0] for line in tally(tmp_path / "tally") if line[2] == "done")
    assert sum(done.values()) <= PICTURES + 1


def test_after_a_killed_driver_the_same_command_does_the_rest(
    halving: Artifact, pictures: Path, local: Path, tmp_path: Path
) -> None:
    arguments = (pictures, "-m", halving.model_path, "-o", tmp_path / "out")
    run = Run(*arguments, tally=tmp_path / "tally", seconds=0.2)
    run.wait_for("done", 4)
    run.process.kill()
    run.process.communicate()
    end = time.monotonic() + 30
    while _alive(tally(tmp_path / "tally")) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _alive(tally(tmp_path / "tally")), "workers outlive their driver"
    there = {path for path in (tmp_path / "out").rglob("*.*") if not path.name.startswith(".")}
    assert 4 <= len(there) < PICTURES
    code, out, _ = Run(*arguments, tally=tmp_path / "again").end()
    assert code == 0
    assert out == f"restored {PICTURES - len(there)}, skipped {len(there)}, failed 0\n"
    assert same(tmp_path / "out", local)


def _alive(lines: list[list[str]]) -> set[str]:
    return {process for _, process, _ in lines if Path(f"/proc/{process}").exists()}


def test_a_killed_node_loses_nothing(halving: Artifact, pictures: Path, local: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    # Not loopback: Ray takes the machine's own address for it, where nothing would listen.
    own = ray.util.get_node_ip_address()
    arguments: dict[str, Any] = {"num_cpus": 1, "node_ip_address": own, "object_store_memory": 100 << 20}
    more = {"PYTHONPATH": str(HERE / "ray_worker"), "RAY_TALLY": str(tmp_path / "tally"), "RAY_SECONDS": "0.3"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in more.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args=arguments | {"include_dashboard": False})
        try:
            node = cluster.add_node(**arguments)
            place = f"ray:{cluster.address}"
            run = Run(
                pictures,
                "-m",
                halving.model_path,
                "-o",
                tmp_path / "out",
                tally=tmp_path / "tally",
                on=place,
                seconds=0.3,
            )
            run.wait_for("done", 4)
            assert len({line[1] for line in tally(tmp_path / "tally")}) == 2
            cluster.remove_node(node, allow_graceful=False)
            code, out, err = run.end()
        finally:
            cluster.shutdown()
    assert (code, out) == (0, f"restored {PICTURES}, skipped 0, failed 0\n"), err
    assert same(tmp_path / "out", local)


def test_progress_is_json_lines_and_what_is_wrong_as_a_whole_ends_the_run(halving: Artifact, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), "teal").save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "-m", halving.model_path, "-o", tmp_path / "out")
    code, _, err = Run(*arguments, "--log-json", "--overlap", 99, tally=tmp_path / "tally").end()
    assert code == 4
    assert "overlap: found 99, needed 0 to 63" in err
    assert err.startswith('{"event": "start", "task": "restore", "done": 0, "total": 1, "unit": "pictures"')


def test_a_cluster_that_is_not_there_is_said(halving: Artifact, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), "teal").save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "-m", halving.model_path, "-o", tmp_path / "out")
    code, _, err = Run(*arguments, tally=tmp_path / "tally", on="ray:127.0.0.1:1").end()
    assert code == 6
    assert "no Ray cluster on 127.0.0.1:1" in err
    assert "refused" in err, "said at once, where Ray itself would try for minutes"
    assert "Traceback" not in err
