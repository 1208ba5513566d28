"""Bench: figures against closed forms, time against sessions of known speed, and the command."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from builders import make_artifact, make_manifest, make_source, small_network
from running import echoir

from echoir.runtime import bench, profiling
from echoir.runtime.artifact import Artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.machine import UNKNOWN, describe_machine
from echoir.runtime.manifest import UINT8_NHWC, TensorSpec


class Sleeper:
    """A session that takes a known time and remembers when it ran."""

    def __init__(self, seconds: float, log: list[str], name: str) -> None:
        self.seconds, self.log, self.name = seconds, log, name

    def run(self, tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.log.append(self.name)
        time.sleep(self.seconds)
        return tiles

    def close(self) -> None: ...

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def sleepers(*seconds: float) -> tuple[list[bench.Subject], list[str]]:
    log: list[str] = []
    tiles = np.zeros((2, 3, 8, 8), np.float32)
    names = "abc"[: len(seconds)]
    subjects = [bench.Subject(n, Sleeper(s, log, n), tiles, (8, 8), 2) for n, s in zip(names, seconds, strict=True)]
    return subjects, log


def test_latency_and_throughput_in_closed_form() -> None:
    latency = bench.Latency("x", tuple(i / 100 for i in range(1, 102)), batch=4, tile=(100, 200), overlap=20)
    figures = latency.to_dict()
    assert figures["batch_ms"] == {"p50": pytest.approx(510), "p99": pytest.approx(1000)}
    assert figures["tile_ms"] == {"p50": pytest.approx(127.5), "p99": pytest.approx(250)}
    given, effective = 4 * 0.02 / 0.51, 4 * 80 * 180 / 1e6 / 0.51
    assert figures["megapixels_per_s"] == pytest.approx({"input": given, "output": given})
    assert figures["effective_megapixels_per_s"] == pytest.approx({"input": effective, "output": effective})


def test_effective_throughput_is_what_a_large_image_gets() -> None:
    """Tiles over an image of many tiles: pixels restored per tile approach the effective figure."""
    from echoir.runtime.tiling import tile_starts

    latency = bench.Latency("x", (1.0, 1.0), batch=1, tile=(64, 64), overlap=8)
    side = 100 * 56 + 8
    tiles = len(tile_starts(side, 64, 8)) ** 2
    assert side**2 / 1e6 / tiles == pytest.approx(latency.effective_megapixels_per_second("input"), rel=0.01)


def test_sessions_take_turns_in_alternating_order() -> None:
    subjects, log = sleepers(0.0, 0.0)
    times = bench.time_in_turn(subjects, iterations=3, warmup=2)
    assert "".join(log) == "abab" + "ab" + "ba" + "ab"
    assert [len(seconds) for seconds in times] == [3, 3]


def test_measured_times_and_ratio_are_those_of_the_sessions() -> None:
    subjects, _ = sleepers(0.01, 0.03)
    a, b = bench.measure(subjects, iterations=8, warmup=1)
    assert 0.01 <= a.percentile(50) < 0.025
    assert min(b.seconds) >= 0.03
    assert bench.ratio(b.seconds, a.seconds).median == pytest.approx(3, rel=0.4)


def test_ratio_is_the_median_over_turns_not_the_ratio_of_medians() -> None:
    """One clock change doubles both of a turn's times: their quotient does not notice."""
    quotients = bench.ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (quotients.median, quotients.pairs) == (2.0, 3)
    assert quotients.p90 == pytest.approx(2.8)


def test_sample_tiles_fill_layout_type_and_range() -> None:
    spec = make_manifest().input
    tiles = bench.sample_tiles(spec, (16, 24), 2)
    assert (tiles.shape, tiles.dtype, tiles.flags.c_contiguous) == ((2, 3, 16, 24), np.float32, True)
    assert 0 <= tiles.min() < 0.05 < 0.95 < tiles.max() <= 1
    codes = bench.sample_tiles(TensorSpec("image", **UINT8_NHWC), (16, 24), 2)
    assert (codes.shape, codes.dtype) == ((2, 16, 24, 3), np.uint8)
    assert (codes.min(), codes.max()) == (0, 255)
    np.testing.assert_array_equal(tiles, bench.sample_tiles(spec, (16, 24), 2))


class TestProfile:
    """Shares of operators and modules."""

    def events(self, *nodes: tuple[str, str, int]) -> list[dict[str, Any]]:
        return [
            {"name": f"{name}_kernel_time", "args": {"op_name": kind}, "dur": micros, "ts": ts}
            for ts, (name, kind, micros) in enumerate(nodes)
        ]

    def test_shares_add_up_by_operator_module_and_function(self) -> None:
        profile = profiling.summarise(
            self.events(
                ("encoder1/0/attention/qkv/Conv_nchwc", "Conv", 30),
                ("ReorderInput_token_1", "ReorderInput", 2),  # for up3's reduction
                ("up3/reduce/Conv_nchwc", "Conv", 10),
                ("ReorderOutput_token_2", "ReorderOutput", 4),  # still up3's
                ("_inlfunc_EchoUpsample_sums", "MatMul", 8),
                ("Transpose_token_3", "Transpose", 1),  # between two nodes of the operator
                ("_inlfunc_EchoUpsample_output", "DepthToSpace", 1),
                ("up3/out/Conv_nchwc", "Conv", 4),
                ("Concat", "Concat", 6),  # the skip connection is not the upsampler
                ("up1/reduce/Conv", "Conv", 12),
                ("_inlfunc_EchoUpsample_token_1_sums", "MatMul", 2),
                ("refinement/0/Add", "Add", 20),
            ),
            runs=1,
        )
        assert profile.milliseconds == pytest.approx(0.1)
        assert profile.modules == pytest.approx({"encoder1": 0.30, "up3": 0.30, "refinement": 0.20, "up1": 0.14})
        assert list(profile.modules)[-1] == "up1"
        assert profile.functions == pytest.approx({"EchoUpsample": 0.12})
        assert profile.operators["Conv"] == pytest.approx(0.56)
        assert next(iter(profile.operators)) == "Conv"
        assert sum(profile.operators.values()) == pytest.approx(1)

    def test_the_first_run_does_not_count(self) -> None:
        events = [
            {"name": "model_run", "ts": 0, "dur": 10},
            {"name": "a_kernel_time", "args": {"op_name": "Conv"}, "ts": 5, "dur": 4},
            {"name": "model_run", "ts": 20, "dur": 10},
            {"name": "b_kernel_time", "args": {"op_name": "Add"}, "ts": 25, "dur": 3},
        ]
        assert [event["name"] for event in profiling.after_first_run(events)] == ["b_kernel_time"]

    def test_a_real_session_shows_the_operators_of_its_graph(self, identity: Artifact) -> None:
        tiles = bench.sample_tiles(identity.manifest.input, (64, 64), 1)
        profile = profiling.profile_onnxruntime(identity, tiles, threads=1, runs=2)
        assert set(profile.operators) <= {"Cast", "Mul", "Add", "Identity"}
        assert profile.operators
        assert sum(profile.operators.values()) == pytest.approx(1)
        assert not profile.modules
        assert not profile.functions

    @pytest.mark.slow
    def test_an_exported_network_names_its_modules_and_its_operator(self, tmp_path: Path) -> None:
        """Pins that the exporter's node names and ONNX Runtime's inlining are still as expected."""
        torch = pytest.importorskip("torch", reason="pip install '.[export]'")
        from echoir.export.typed import export_onnx
        from echoir.runtime.artifact import write_artifact

        torch.manual_seed(0)
        path = tmp_path / "tiny.onnx"
        export_onnx(make_source(small_network()), path, tile=(64, 64), batch=1)
        manifest = make_manifest(tile=(64, 64), batch=1)
        artifact = write_artifact(manifest, path)
        import onnxruntime

        name = onnxruntime.InferenceSession(path).get_inputs()[0].name
        from dataclasses import replace

        artifact = Artifact(replace(artifact.manifest, input=replace(manifest.input, name=name)), path)
        tiles = bench.sample_tiles(artifact.manifest.input, (64, 64), 1)
        profile = profiling.profile_onnxruntime(artifact, tiles, threads=1, runs=3)
        assert {"embed", "encoder1", "middle", "up1", "up2", "up3", "refinement", "output"} <= set(profile.modules)
        upsamplers = [profile.modules[name] for name in ("up1", "up2", "up3")]
        assert all(0.001 < share < 0.5 for share in upsamplers)
        assert 0.001 < profile.functions["EchoUpsample"] < sum(upsamplers)


class TestMachine:
    """What is read about the machine, from a tree made up for the test."""

    def write(self, root: Path, files: dict[str, str]) -> None:
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def test_a_jetson(self, tmp_path: Path) -> None:
        self.write(
            tmp_path,
            {
                "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
                "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
                "proc/loadavg": "0.25 0.5 0.5 1/100 1234\n",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600\n",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
                "sys/class/thermal/thermal_zone0/temp": "48500\n",
                "sys/class/thermal/thermal_zone1/temp": "-256000\n",
                "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
                "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
            },
        )
        machine = describe_machine(tmp_path)
        assert machine.device == "NVIDIA Jetson Orin Nano Developer Kit"
        assert machine.cpu == "ARMv8 Processor rev 1 (v8l)"
        assert machine.clocks_mhz == "730 to 1510"
        assert machine.governor == "performance, schedutil"
        assert machine.power_mode == "nvpmodel 2 (MAXN_SUPER)"
        assert machine.temperature == "48 °C"
        assert machine.load == "0.25"

    def test_a_server_without_cpufreq(self, tmp_path: Path) -> None:
        cpuinfo = "model name\t: Some CPU\ncpu MHz\t\t: 2100.5\nmodel name\t: Some CPU\ncpu MHz\t\t: 3400.0\n"
        self.write(tmp_path, {"proc/cpuinfo": cpuinfo, "sys/firmware/acpi/platform_profile": "balanced\n"})
        machine = describe_machine(tmp_path)
        assert (machine.cpu, machine.clocks_mhz, machine.power_mode) == ("Some CPU", "2100 to 3400", "balanced")

    def test_what_cannot_be_read_is_unknown(self, tmp_path: Path) -> None:
        machine = describe_machine(tmp_path)
        unreadable = (machine.device, machine.clocks_mhz, machine.governor, machine.power_mode, machine.temperature)
        assert unreadable == (UNKNOWN,) * 5


class TestCommand:
    """``echoir bench``."""

    def test_json_has_every_figure(self, identity: Artifact, tmp_path: Path) -> None:
        file = tmp_path / "bench.json"
        arguments = ("--iterations", 4, "--warmup", 1, "--threads", 1, "--batch", 2)
        result = echoir("bench", "-m", identity.model_path, *arguments, "--json", file)
        assert result.code == 0
        assert "identity, batch 2" in result.out
        figures = json.loads(file.read_text())
        (own,) = figures["latency"]
        assert (own["batch"], own["tile"], own["iterations"]) == (2, [64, 64], 4)
        assert 0 < own["batch_ms"]["p50"] <= own["batch_ms"]["p99"]
        assert own["tile_ms"]["p50"] == pytest.approx(own["batch_ms"]["p50"] / 2)
        assert (figures["threads"], figures["ratios"]) == (1, {})
        assert 0 < figures["memory"]["before_bytes"] <= figures["memory"]["peak_bytes"]
        assert sum(figures["profile"]["operators"].values()) == pytest.approx(1)
        assert set(figures["machine"]) >= {"cpu", "cores", "clocks_mhz", "governor", "power_mode", "temperature"}

    @pytest.mark.parametrize("batch", [1, 2, 3])
    def test_a_fixed_batch_is_timed_and_profiled_at_any_size(self, gain: Artifact, batch: int) -> None:
        result = echoir("bench", "-m", gain.model_path, "--iterations", 2, "--json", "-", "--batch", batch)
        assert result.code == 0
        assert json.loads(result.out)["latency"][0]["batch"] == batch

    def test_json_on_standard_output_is_alone(self, identity: Artifact) -> None:
        result = echoir("bench", "-m", identity.model_path, "--iterations", 2, "--json", "-", "--no-profile")
        assert json.loads(result.out)["profile"] is None

    def test_another_artifact_runs_in_turn(self, identity: Artifact, identity_uint8: Artifact, tmp_path: Path) -> None:
        arguments = ("--against", identity_uint8.model_path, "--iterations", 3, "--no-profile")
        result = echoir("bench", "-m", identity.model_path, *arguments, "--json", tmp_path / "b.json")
        assert result.code == 0
        assert "times as long per pixel (median of 3 turns" in result.out
        figures = json.loads((tmp_path / "b.json").read_text())
        assert len(figures["latency"]) == 2
        assert len(figures["ratios"]) == 1

    def test_pixels_that_go_in_and_come_out_are_told_apart(self, tmp_path: Path) -> None:
        """Of a network that enlarges three times, and of one that makes four pixels of a mosaic one colour each."""
        networks = [Descriptor("Repeat", "sr", 1, scale=3), Descriptor("Raw", "demosaic", 1, input="RGGB", scale=2)]
        larger, raw = (
            make_artifact(tmp_path, network.architecture, tile=(64, 96), overlap=8, network=network)
            for network in networks
        )
        timed = ("--iterations", 2, "--warmup", 0, "--threads", 1, "--no-profile", "--json", tmp_path / "b.json")
        result = echoir("bench", "-m", larger.model_path, "--against", raw.model_path, *timed)
        assert result.code == 0
        figures = json.loads((tmp_path / "b.json").read_text())
        for own, given, made in zip(figures["latency"], (1, 4), (9, 4), strict=True):
            seconds = own["batch_ms"]["p50"] / 1e3
            whole, effective = 64 * 96 / 1e6 / seconds, 56 * 88 / 1e6 / seconds
            assert own["megapixels_per_s"] == pytest.approx({"input": given * whole, "output": made * whole})
            assert own["effective_megapixels_per_s"] == pytest.approx(
                {"input": given * effective, "output": made * effective}
            )
        per = figures["ratios"]["Raw"]
        assert per["per_output_pixel"]["median"] == pytest.approx(9 * per["per_input_pixel"]["median"])
        assert "times as long per pixel that goes in" in result.out
        assert "times as long per pixel that comes out" in result.out
        assert "out: of what it becomes" in result.out
        seconds = figures["latency"][0]["tile_ms"]["p50"] / 1e3
        assert figures["pictures"]["720p"] == {
            "input": [720, 1280],
            "output": [2160, 3840],
            "tiles": 13 * 15,
            "tile": [64, 96],
            "waste": pytest.approx(13 * 15 * 64 * 96 / (720 * 1280)),
            "seconds": pytest.approx(13 * 15 * seconds),
        }
        assert "1280 x 720 to 3840 x 2160" in result.out

    def test_pytorch_runs_in_turn(self, tmp_path: Path) -> None:
        pytest.importorskip("torch", reason="pip install '.[train]'")
        from echoir.checkpoint import save_checkpoint

        network = small_network()
        weights = tmp_path / "tiny.safetensors"
        save_checkpoint(weights, network, "denoise", "tiny", {})
        config = json.loads(json.dumps(network.config.to_dict()))
        artifact = make_artifact(tmp_path, network=Descriptor("EchoIR", "denoise", 1, config=config))
        arguments = ("--against", "pytorch", "--weights", weights, "--iterations", 2, "--warmup", 1, "--threads", 1)
        result = echoir("bench", "-m", artifact.model_path, *arguments, "--json", tmp_path / "b.json")
        assert result.code == 0
        figures = json.loads((tmp_path / "b.json").read_text())
        # Against one multiplication per pixel, any network is slow.
        assert figures["ratios"]["pytorch"]["per_input_pixel"]["median"] > 5
        assert [latency["name"] for latency in figures["latency"]] == ["test", "pytorch"]

        other = make_artifact(
            tmp_path, "other", network=Descriptor("EchoIR", "denoise", 1, config=config | {"width": 48})
        )
        result = echoir("bench", "-m", other.model_path, *arguments)
        assert result.code == 4
        assert "network.config" in result.err
