"""From a JPEG file to a mask file, in one warm process: this package beside the usual procedure.

    python benchmarks/end_to_end.py CHECKPOINT

The usual procedure is what the published evaluation script and most code around it do: decode, normalise in numpy,
eager PyTorch in float32, bicubic up-sampling of the logits to the image's size, argmax, default PNG. Both have the
same weights and work on all of the image's 1024×2048 pixels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from contest import compete, report, serve
from PIL import Image

from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.engine import PRECISIONS
from evitseg.errors import EngineError

SIZE = (1024, 2048)


def ours(model_file: Path, image: Path, out: Path, precision: str, threads: int) -> None:
    import evitseg

    segment = evitseg.load(model_file, precision=precision, threads=threads, size="native")  # type: ignore[arg-type]
    serve(lambda: segment(image).save(out))


def usual(checkpoint: Path, image: Path, out: Path, threads: int) -> None:
    import numpy as np
    import torch

    from evitseg.model.checkpoints import load_checkpoint

    torch.set_num_threads(threads)
    network, _ = load_checkpoint(checkpoint)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

    @torch.inference_mode()
    def work() -> None:
        pixels = np.asarray(Image.open(image).convert("RGB"))
        normalised = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
        logits = network(torch.from_numpy(np.ascontiguousarray(normalised))[None])
        full = torch.nn.functional.interpolate(logits, size=pixels.shape[:2], mode="bicubic", align_corners=False)
        Image.fromarray(full.argmax(1)[0].numpy().astype(np.uint8)).save(out)

    serve(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--as", dest="contestant", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        role, image, out, *rest = arguments.contestant
        if role == "usual":
            usual(arguments.checkpoint, Path(image), Path(out), arguments.threads)
        else:
            ours(Path(rest[0]), Path(image), Path(out), role, arguments.threads)
        return

    from evitseg import export, load

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        image = place / "street.jpg"
        Image.open(EXAMPLE_IMAGE).resize(SIZE[::-1], Image.Resampling.LANCZOS).save(image, quality=95)
        model_file, _ = export(arguments.checkpoint, "onnx", place / "model.onnx")
        command = [sys.executable, __file__, str(arguments.checkpoint), "--threads", str(arguments.threads), "--as"]
        commands = {"usual procedure": [*command, "usual", str(image), str(place / "usual.png")]}
        for precision in PRECISIONS[1:] + PRECISIONS[:1]:
            try:
                load(model_file, precision=precision)
            except EngineError as error:
                print(f"left out: {error}")
                continue
            name = f"evitseg, {precision}" if precision != "auto" else "evitseg, default"
            commands[name] = [*command, precision, str(image), str(place / f"{precision}.png"), str(model_file)]
        results = compete(commands, arguments.rounds)
    settings = {"size": SIZE, "threads": arguments.threads, "checkpoint": arguments.checkpoint.name}
    report("end_to_end", settings, results, reference="usual procedure")


if __name__ == "__main__":
    main()
