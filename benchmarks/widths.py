"""What a width and a depth of EchoIR are worth: quality after one budget of training, against time for a tile.

    python benchmarks/widths.py --data DIR [--budget 300] [--arms 24 48 ...] [-o runs/widths]
    python benchmarks/widths.py --budget 0 --arms "32 (tiny)" "32, refinement"      times alone

Every arm trains for denoising on the same pictures with the same schedule, for ``--budget`` seconds of *processor
time*: a few steps are timed first, which says how many fit. So it does not matter what else the machine does. Quality
is that of held-out pictures in the forms of training's validation, averaged weights; time that of a 256 x 256 tile in
ONNX Runtime, float32, one thread, all arms and FFDNet (random weights) in turns; and frames a second of 1280 x 720 on
AGX Orin as ``predicted.py`` predicts them. Arms that are finished are not trained again. With ``--budget 0`` nothing is
trained, and only the columns of time are filled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import torch
from predicted import CARDS, rate
from sessions import FFDNet
from torch import nn

from echoir.checkpoint import load_checkpoint
from echoir.data import list_pictures
from echoir.export.request import OVERLAP
from echoir.export.sources import TorchSource
from echoir.journal import read_csv
from echoir.networks.echoir import PRESETS, EchoIR, EchoIRConfig
from echoir.recipe import Recipe, Stage
from echoir.runtime.descriptor import Descriptor
from echoir.train import Trainer

TILE = 256
FORMS = ("rgb15", "rgb25", "rgb50", "gray25", "jpeg42025")
HEAD = ["network", "M", "steps in s", *FORMS, "Orin, 720p", "ms a tile", "to FFDNet"]
ARMS: dict[str, EchoIRConfig] = {
    "16, full resolution": EchoIRConfig(16, (1, 1, 2), 2, 0, stem=1),
    "24": EchoIRConfig(24, (1, 1, 2), 2, 0, stem=2),
    "32, shallow": EchoIRConfig(32, (1, 1, 1), 1, 0, stem=2),
    "32, no residual blocks": EchoIRConfig(32, (1, 1, 2), 2, 0, stem=2),
    "32 (tiny)": PRESETS["tiny"],
    "32, deep": EchoIRConfig(32, (2, 2, 2), 4, 0, stem=2),
    "48": EchoIRConfig(48, (1, 1, 2), 2, 0, stem=2),
}
TIMED: dict[str, EchoIRConfig] = ARMS | {
    "32, one residual block": replace(PRESETS["tiny"], residual_blocks=1),
    "32, three residual blocks": replace(PRESETS["tiny"], residual_blocks=3),
    "32, refinement": replace(PRESETS["tiny"], residual_blocks=0, refinement=1),
    "32, second level": replace(PRESETS["tiny"], residual_blocks=0, blocks=(1, 2, 2), middle=3),
}


def train(config: EchoIRConfig, folder: Path, arguments: argparse.Namespace) -> tuple[int, float]:
    """Steps, and seconds of the processor, of one arm; or those of the same run found in its folder."""
    done = folder / "spent.json"
    described = json.loads(json.dumps(asdict(config)))
    if done.exists():
        found = json.loads(done.read_text())
        if found["network"] != described:
            raise SystemExit(f"{folder} holds the run of another network: move it away")
        return found["steps"], found["seconds"]
    if not arguments.data:
        raise SystemExit("to train an arm, give --data DIR; --budget 0 times networks without training them")
    pictures = list_pictures(arguments.data)

    def run(steps: int, into: Path) -> float:
        recipe = Recipe(
            "tiny",
            (Stage(steps, arguments.patch, arguments.batch),),
            learning_rate=1e-3,
            warmup=min(50, steps // 4),
            ema=0.99,
            clip=15.0,
            holdout=8,
            validate_every=steps,
            checkpoint_every=steps,
            loss="psnr",
            autocast=True,
            network=asdict(config),
        )
        trainer = Trainer("denoise", recipe, pictures, into)
        begun = time.process_time()
        trainer.run()
        return time.process_time() - begun

    with tempfile.TemporaryDirectory() as scrap:
        few, more = run(4, Path(scrap) / "few"), run(24, Path(scrap) / "more")
    steps = max(8, round((arguments.budget - few) * 20 / (more - few)))
    seconds = run(steps, folder)
    done.write_text(json.dumps({"steps": steps, "seconds": seconds, "network": described}))
    return steps, seconds


def session(network: nn.Module, descriptor: Descriptor) -> Callable[[], object]:
    model = TorchSource(network, descriptor).graph(tile=(TILE, TILE), batch=1, io="float")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    tile = np.random.default_rng(0).random((1, 3, TILE, TILE), np.float32)
    return lambda: opened.run(None, {opened.get_inputs()[0].name: tile})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="clean pictures; may be repeated")
    parser.add_argument("--budget", type=float, default=300, help="seconds of processor time for each arm")
    parser.add_argument("--arms", nargs="+", choices=TIMED, default=list(ARMS))
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/widths"), help="the runs; kept between calls")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    calls = {"FFDNet": session(FFDNet(), Descriptor("FFDNet", "denoise", 852_108, multiple=(2, 2), phase=(2, 2)))}
    for name in arguments.arms:
        config, trained = TIMED[name], ["", *[""] * len(FORMS)]
        network = EchoIR(config).eval()
        if arguments.budget:
            folder = arguments.output / name.replace(", ", "-").replace(" ", "-").strip("()")
            steps, seconds = train(config, folder, arguments)
            network.load_state_dict(load_checkpoint(str(folder / "denoise.safetensors")).network.state_dict())
            scores = {form: float(value) for form, value in read_csv(folder / "validation.csv")[-1].items()}
            trained = [f"{steps} in {seconds:.0f}", *(f"{scores[form]:.2f}" for form in FORMS)]
        parameters = sum(tensor.numel() for tensor in network.parameters()) / 1e6
        orin = rate(config, CARDS[1], TILE, OVERLAP, (720, 1280), 2)
        rows[name] = [f"{parameters:.2f}", *trained, f"{orin:.1f}"]
        calls[name] = session(network, network.describe("denoise", "tiny"))
        print(f"{name}: {rows[name]}", flush=True)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            spent[name].append(time.process_time() - begun)
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for name, times in spent.items():
        quotient = median(one / other for one, other in zip(times, spent["FFDNet"], strict=True))
        columns = rows.get(name, ["0.85", *[""] * (len(HEAD) - 4)])
        print(f"| {' | '.join([name, *columns, f'{1e3 * median(times):.0f}', f'{quotient:.2f}'])} |")


if __name__ == "__main__":
    main()
