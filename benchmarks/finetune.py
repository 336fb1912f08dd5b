"""mIoU before and after fine-tuning, by images, classes, epochs and start; writes results/finetune.json.

    python benchmarks/finetune.py CAMVID PUBLISHED --work FOLDER            every run missing in results/finetune.json
    python benchmarks/finetune.py CAMVID PUBLISHED --work FOLDER --only 60  only runs with this text in their names

All settings not in the table are the defaults of `evitseg train`. The training images are spread evenly over CamVid's
train split without sequence 0006R0 and the last 20 frames of 0001TP (246 images; runs with 300 add 54 of val). Runs are
evaluated on 60 of the frames left out, but those of the bundled model, which was trained on them, on 60 images of the
test split. Long runs are evaluated about five times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import RESULTS

from evitseg.labels import load_labels
from evitseg.system.files import replacing
from evitseg.train import DataConfig, OptimConfig, Run, TrainConfig, fit
from evitseg.train.settings import read_config

HELD_OUT = 60
OTHER = {
    # of the data's 4 and 2 classes: which of CamVid's names are one class
    4: {"road": ["road", "pavement"], "building": ["building"], "car": ["car"]},
    2: {"road": ["road"]},
}
PUBLISHED_NAMES = {
    "pavement": ["sidewalk"], "tree": ["vegetation"], "sign": ["traffic sign"], "pedestrian": ["person"],
    "bicyclist": ["rider", "bicycle"],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        start: "published" (with matching classes in classes_from), "published, by name" (without), "bundled" or "none".
    """

    images: int
    classes: int
    epochs: int
    start: str
    freeze_norm: bool | None = None

    @property
    def name(self) -> str:
        frozen = {None: "", True: ", frozen norm", False: ", new statistics"}[self.freeze_norm]
        return f"{self.images} images, {self.classes} classes, {self.epochs} epochs, {self.start}{frozen}"


CASES = [
    *(Case(60, 11, epochs, start) for epochs in (3, 10) for start in ("published", "published, by name")),
    *(Case(10, 11, epochs, "published") for epochs in (3, 10, 40)),
    *(Case(30, 11, epochs, "published") for epochs in (3, 10)),
    *(Case(60, classes, 3, "published") for classes in (2, 4)),
    *(Case(60, 11, epochs, "published", freeze_norm=frozen) for epochs in (3, 10) for frozen in (True, False)),
    Case(60, 11, 3, "bundled"),
    Case(60, 11, 3, "none"),
    Case(300, 11, 3, "published"),
    *(Case(10, classes, 10, "published") for classes in (2, 4)),
    Case(60, 11, 40, "published"),
    Case(10, 11, 3, "published", freeze_norm=False),
    Case(10, 11, 3, "bundled"),
    Case(30, 4, 10, "none"),
    Case(30, 2, 3, "published"),
    Case(30, 11, 40, "published"),
    Case(300, 11, 10, "published"),
    Case(300, 4, 3, "published"),
    Case(60, 4, 10, "bundled"),
    Case(10, 11, 10, "none"),
    Case(60, 11, 40, "none"),
    Case(300, 11, 3, "published", freeze_norm=True),
    Case(300, 11, 10, "none"),
    Case(300, 11, 40, "published"),
]


def spread(frames: list[Path], count: int) -> list[Path]:
    return [frames[at] for at in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def make_data(camvid: Path, case: Case, folder: Path) -> Path:
    """Write the case's images and masks in the layout of the SegNet tutorial; labels.json if classes are merged."""
    root = folder / f"data-{case.images}-{case.classes}-{'test' if case.start == 'bundled' else 'fold'}"
    if (root / "ready").exists():
        return root
    frames = {split: sorted((camvid / split).iterdir()) for split in ("train", "val", "test")}
    last = [f for f in frames["train"] if f.name.startswith("0001TP")][-20:]
    sequence = [f for f in frames["train"] if f.name.startswith("0006R0")]
    rest = [f for f in frames["train"] if f not in {*last, *sequence}]
    chosen = rest + frames["val"][: case.images - len(rest)] if case.images > len(rest) else spread(rest, case.images)
    held = spread(frames["test"], HELD_OUT) if case.start == "bundled" else spread(sequence, 45) + spread(last, 15)
    for split, images in (("train", chosen), ("val", held)):
        for name in (split, f"{split}annot"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for image in images:
            shutil.copy(image, root / split)
            shutil.copy(
                image.parent.with_name(f"{image.parent.name}annot") / f"{image.stem}.png", root / f"{split}annot"
            )
    if case.classes in OTHER:
        space = load_labels("camvid")
        ids = {c.name: c.raw_ids for c in space.classes}
        groups = {name: [i for part in parts for i in ids[part]] for name, parts in OTHER[case.classes].items()}
        groups["other"] = sorted(set().union(*map(set, ids.values())) - {i for them in groups.values() for i in them})
        colors = [[40 * at, 90, 200 - 40 * at] for at in range(len(groups))]
        classes = [
            {"name": name, "raw_ids": them, "color": color}
            for (name, them), color in zip(groups.items(), colors, strict=True)
        ]
        content = {"name": f"camvid-{case.classes}", "ignored_ids": list(space.ignored_ids), "classes": classes}
        (root / "labels.json").write_text(json.dumps(content))
    (root / "ready").touch()
    return root


def classes_from(case: Case) -> dict[str, tuple[str, ...]]:
    if case.start not in ("published", "bundled"):
        return {}
    if case.classes not in OTHER:
        return {name: tuple(parts) for name, parts in PUBLISHED_NAMES.items()} if case.start == "published" else {}
    groups = OTHER[case.classes]
    theirs = load_labels("cityscapes" if case.start == "published" else "camvid").names
    same = PUBLISHED_NAMES if case.start == "published" else {}
    parts = {name: [p for member in members for p in same.get(member, [member])] for name, members in groups.items()}
    if case.classes == 4 and case.start == "published":
        parts["car"] = ["car", "truck", "bus"]
    taken = {part for them in parts.values() for part in them}
    return {name: tuple(them) for name, them in parts.items()} | {"other": tuple(n for n in theirs if n not in taken)}


def run(case: Case, camvid: Path, published: Path, folder: Path) -> tuple[Run, dict[str, object]]:
    starts = {"bundled": "b0-camvid", "none": "none"}
    optim = OptimConfig() if case.freeze_norm is None else OptimConfig(freeze_norm=case.freeze_norm)
    config = TrainConfig(
        start=starts.get(case.start, str(published)), classes_from=classes_from(case), epochs=case.epochs,
        eval_interval=max(1, case.epochs // 5), data=DataConfig(workers=0), optim=optim,
    )  # fmt: skip
    out = folder / "runs" / case.name.replace(", ", "-").replace(" ", "_")
    done = fit(make_data(camvid, case, folder), config, out, resume=(out / "state.pt").exists())
    content = json.loads((out / "config.json").read_text())
    settings = read_config(out).flat()
    return done, {key: settings[key] for key in content["chosen"]} | {"steps": content["steps"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path, help="CamVid in the layout of the SegNet tutorial")
    parser.add_argument("published", type=Path, help="published B0 weights of Cityscapes")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for data and runs; interrupted runs are resumed"
    )
    parser.add_argument("--only", default="", help="text in the names of the runs to do")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = RESULTS / "finetune.json"
    for case in CASES:
        results: dict[str, Any] = {"held_out": HELD_OUT, "results": {}}
        if path.exists():
            results = json.loads(path.read_text())
        if case.name in results["results"] or arguments.only not in case.name:
            continue
        began = time.process_time()
        done, chosen = run(case, arguments.camvid, arguments.published, arguments.work)
        scores = {"start": done.start_miou, "best": done.miou, "last": done.last_miou}
        row = {name: round(100 * value, 2) for name, value in scores.items()}
        results["results"][case.name] = {
            **row, "images": case.images, "classes": case.classes, "epochs": case.epochs, "start_from": case.start,
            "freeze_norm": case.freeze_norm, "chosen": chosen, "cpu_s": round(time.process_time() - began),
        }  # fmt: skip
        with replacing(path) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
        print(f"{case.name}: {row}", flush=True)


if __name__ == "__main__":
    main()
