"""Fill the tables in README.md and docs/ from benchmarks/results.

    python benchmarks/tables.py            write them
    python benchmarks/tables.py --check    say which are out of date, with exit status 1

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from contest import RESULTS

from evitseg.system.files import replacing

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


# Names in the results that a reader of the tables would not understand.
LABELS = {
    "bundled before": "previous model",
    "taught": "distilled",
    "their mean": "mean of both",
    "engine, one after the other": "engine, one frame at a time",
    "each image alone": "single images",
    "the whole": "whole mosaic (exact)",
    "+ freed memory is kept": "+ freed memory kept",
}
PARTS = {"share ": "weight of the past ", "blended windows": "sliding windows"}


def label(name: str) -> str:
    for part, words in PARTS.items():
        name = name.replace(part, words)
    return LABELS.get(name, name)


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def end_to_end() -> str:
    rows = [
        (name, f"{row['median_ms']:.0f} ms", f"{row['p90_ms']:.0f} ms", f"{row['peak_mib']:.0f} MiB",
         f"{row['times_faster']:.1f}")
        for name, row in result("end_to_end")["results"].items()
    ]  # fmt: skip
    return table(("", "median", "90th percentile", "peak memory", "times faster"), rows)


def core(name: str) -> str:
    rows = []
    for network, row in result(name)["results"].items():
        for precision, words in (("float32", "float32"), ("half", "half precision")):
            if f"core, {precision}" in row:
                ours, faster = row[f"core, {precision}"], row[f"times faster, {precision}"]
                rate = row[f"GFLOP/s, {precision}"]
                rows.append(
                    (network.upper().replace("X", "×"), words, f"{ours['median_ms']:.1f} ms",
                     f"{ours['median_ms'] * faster:.1f} ms", f"{faster:.2f}", f"{rate:.0f}",
                     f"{ours['peak_mib']:.0f} MiB")
                )  # fmt: skip
    return table(("", "", "core", "plain conversion", "times faster", "GFLOP/s of the core", "peak memory"), rows)


def core_runtimes() -> str:
    rows = [
        (name, f"{row['median_ms']:.1f} ms", f"{row['p90_ms']:.1f} ms", f"{row['peak_mib']:.0f} MiB",
         f"{row['times_slower']:.2f}")
        for name, row in result("core_runtimes")["results"].items()
    ]  # fmt: skip
    return table(("", "median", "90th percentile", "peak memory", "relative to the core"), rows)


def core_profile() -> str:
    results = result("core_profile")["results"]
    first = results["float32"]
    rows = []
    for name, group in first["groups"].items():
        cells = [name, f"{2 * group['macs'] / 1e9:.1f}" if group["macs"] else "–", f"{group['bytes'] / 1e6:.1f}"]
        for run in results.values():
            own = run["groups"][name]
            cells.append(f"{own['ms']:.1f} ms")
            cells.append(f"{_of_peak(own['macs'], own['ms'], run):.0%}" if own["macs"] else "–")
        rows.append(cells)
    total = [
        "per image",
        f"{2 * first['macs'] / 1e9:.1f}",
        f"{sum(g['bytes'] for g in first['groups'].values()) / 1e6:.1f}",
    ]
    for run in results.values():
        total += [f"{run['network_ms']:.1f} ms", f"{_of_peak(run['macs'], run['network_ms'], run):.0%}"]
    header = ["", "GFLOP", "MB through memory (float32)"]
    for precision in results:
        header += [precision, "of peak"]
    return table(header, [*rows, total])


def _of_peak(macs: float, ms: float, run: dict[str, Any]) -> float:
    return float(2 * macs / ms / 1e6 / run["peak"]["gflops"])


def precision() -> str:
    rows = [
        (name, "yes" if row["finite"] else "no", f"{row['equal_pixels']:.2%}", f"{row['miou']:.2f}")
        for name, row in result("precision")["results"].items()
    ]
    return table(("", "all logits finite", "mask pixels equal to float32 PyTorch", "mIoU"), rows)


def size_rules() -> str:
    values = result("working_size")["results"]["rules"]
    names = dict.fromkeys(key.rsplit(", ", 1)[0] for key in values)
    rows = [(name, f"{values[f'{name}, 360']:.2f}", f"{values[f'{name}, 720']:.2f}") for name in names]
    return table(("how a multiple of 32 is reached", "short side 360", "short side 720"), rows)


def short_sides() -> str:
    values = result("working_size")["results"]["short sides"]
    return table(("short side", *values), [("mIoU", *(f"{value:.2f}" for value in values.values()))])


def training() -> str:
    rows = [
        (label(name), f"{row['median_ms']:.0f} ms", f"{row['peak_mib']:.0f} MiB", f"{row['times_faster']:.2f}")
        for name, row in result("training")["results"].items()
    ]
    return table(("", "median", "peak memory", "times faster"), rows)


def finetune() -> str:
    rows = sorted(
        result("finetune")["results"].values(),
        key=lambda row: (row["start_from"], str(row["freeze_norm"]), row["classes"], row["images"], row["epochs"]),
    )
    norms = {None: "", True: ", frozen norm", False: ", new statistics"}
    cells = [
        (row["start_from"] + norms[row["freeze_norm"]], str(row["classes"]), str(row["images"]),
         str(row["epochs"]), str(row["chosen"]["steps"]), *(f"{row[at]:.1f}" for at in ("start", "best", "last")))
        for row in rows
    ]  # fmt: skip
    return table(("start from", "classes", "images", "epochs", "steps", "start", "best", "last"), cells)


def facade() -> str:
    labels = {
        "b0-camvid": "bundled", "uncorrected": "the same without the constants", "previous": "bundled before",
        "published": "published, Cityscapes",
    }  # fmt: skip
    values = result("facade")["results"]
    classes = list(next(iter(values.values()))["iou"])
    rows = [
        [labels[name], *(f"{100 * own['iou'][key]:.1f}" for key in classes), f"**{100 * own['mean']:.1f}**"]
        for name, own in values.items()
    ]
    return table(["weights", *classes, "mean"], rows)


def camvid() -> str:
    values = result("camvid")["results"]
    names = list(next(iter(values.values()))["iou"])
    rows = [(name, *(f"{row['iou'][name]:.1f}" for row in values.values())) for name in names]
    rows.append(("**mean**", *(f"**{row['miou']:.2f}**" for row in values.values())))
    return table(("", *map(label, values)), rows)


def deploy() -> str:
    sizes = ("512x512", "1024x2048")
    rows = []
    for name, row in result("deploy")["results"].items():
        if ", plain" in name:
            continue
        times = [f"{row[size]['median_ms']:.1f} ms" if size in row else "–" for size in sizes]
        peak = f"{row[sizes[1]]['peak_mib']:.0f} MiB" if sizes[1] in row else "–"
        rows.append(
            (name, f"{row['bytes'] / 1e6:.2f} MB", *times, peak, f"{row['miou']:.2f}", f"{row['equal_pixels']:.2%}")
        )
    return table(("", "file", "512×512", "1024×2048", "peak memory", "mIoU", "equal pixels"), rows)


def w8a8(kind: str = "w8a8") -> str:
    values = result(kind)["results"]
    columns = {
        "start": "start, float32",
        "float32": "checkpoint, float32",
        "litert": "LiteRT, w8a8",
        "onnx": "ONNX Runtime, w8a8",
    }
    columns = {name: title for name, title in columns.items() if name in values}
    names = list(values["litert"]["iou"])
    rows = [(name, *(f"{values[kind]['iou'][name]:.1f}" for kind in columns)) for name in names]
    rows.append(("**mean**", *(f"**{values[kind]['miou']:.2f}**" for kind in columns)))
    sizes = (f"{values[kind]['bytes'] / 1e6:.2f} MB" if "bytes" in values[kind] else "" for kind in columns)
    rows.append(("file", *sizes))
    return table(("", *columns.values()), rows)


def w8a8_operators(kind: str = "w8a8") -> str:
    return table(
        ("operator", "type", "number"),
        [(name, type_.lower(), str(count)) for name, type_, count in result(kind)["operators"]],
    )


def w8a8_tensors() -> str:
    return table(("tensor",), [(f"`{name}`",) for name in result("w8a8")["int16_tensors"]])


def plain() -> str:
    values = {
        name: row["512x512"]["median_ms"] for name, row in result("deploy")["results"].items() if "512x512" in row
    }
    rows = []
    for name, took in values.items():
        if ", plain" in name:
            same = name.replace("plain, ", "")
            ours = values.get(f"{same}, one size", values.get(same, 0.0))
            rows.append((name.split(",")[0], f"{took:.1f} ms", f"{ours:.1f} ms", f"{took / ours:.2f}"))
    return table(("", "plain conversion", "our form", "times faster"), rows)


def video() -> str:
    rows = [
        (label(name), f"{row['frames_a_second']:.1f}", f"{row['of_the_engine']:.2f}", f"{row['peak_mib']:.0f} MiB")
        for name, row in result("video")["results"].items()
    ]
    return table(("", "frames per second", "relative to the engine", "peak memory"), rows)


def video_pixels() -> str:
    differing = result("video")["differing_pixels"]
    return table(
        ("mask pixels that differ from those of the frame as an image file", "in the worst frame"),
        [(f"{differing['mean']:.2%}", f"{differing['most']:.2%}")],
    )


def video_encoders() -> str:
    rows = [
        (name, f"{row['ms_a_frame']:.1f} ms", f"{row['megabits_a_second']:.1f} Mbit/s", f"{row['psnr_luma']:.1f} dB")
        for name, row in result("video")["encoders"].items()
    ]
    return table(("x264", "time per frame", "size", "PSNR of luma"), rows)


def video_smoothing() -> str:
    rows = [
        (label(name), f"{row['miou']:.2f}", f"{row['flicker']:.2%}", f"{row['back_and_forth']:.2%}")
        for name, row in result("video_smoothing")["results"].items()
    ]
    return table(("", "mIoU", "pixels that change per frame", "and change back"), rows)


def folder() -> str:
    rows = []
    for name, row in result("folder")["results"].items():
        height, width = row["network_input"]
        alone = max(rate for key, rate in row["images_per_s"].items() if key.startswith("engine"))
        shares = row["share_of_engine"]
        cells = [
            f"{row['images_per_s'][key]:.1f} per second ({shares[key]:.2f} of the engine)"
            for key in ("masks", "masks and overlays")
        ]
        rows.append((name, f"{height}×{width}", f"{alone:.1f} per second", *cells))
    return table(("files", "input of the network", "engine only", "masks", "masks and overlays"), rows)


def upsampling() -> str:
    content = result("upsampling")["results"]
    names = list(next(iter(content.values()))["median_ms"])
    rows = [
        (f"{float(share):.0%}", *(f"{row['median_ms'][name]:.1f} ms" for name in names))
        for share, row in content.items()
    ]
    return table(("cells that a boundary crosses", *names), rows)


def peers() -> str:
    content = result("peers")
    at = "1024x2048"
    rows = []
    for name, row in content["results"][at].items():
        peer, precision = name.rsplit(", ", 1)
        ours = content["results"][at][f"evitseg, {precision}"]["median_ms"]
        count = content["macs"][at].get(peer, content["macs"][at]["evitseg"])
        rows.append(
            (name, f"{count / 1e9:.1f} G", f"{row['median_ms']:.1f} ms", f"{row['p90_ms']:.1f} ms",
             f"{row['peak_mib']:.0f} MiB", f"{row['median_ms'] / ours:.2f}")
        )  # fmt: skip
    return table(
        ("1024×2048", "multiply-adds", "median", "90th percentile", "peak memory", "relative to evitseg"),
        rows,
    )


def peer_ratios() -> str:
    """How many times as fast ours is at 1024×2048, in the same engine and precision."""
    values = {name: row["median_ms"] for name, row in result("peers")["results"]["1024x2048"].items()}
    precisions = [name.rsplit(", ", 1)[1] for name in values if name.startswith("evitseg, ")]
    peers: dict[str, list[str]] = {"SegFormer-B0": ["SegFormer-B0"], "SegFormer-B1": ["SegFormer-B1"]}
    peers["the fastest plain conversion of the same network"] = list(
        dict.fromkeys(name.rsplit(", ", 1)[0] for name in values if name.startswith("plain "))
    )
    rows = []
    for label, names in peers.items():
        times = [min(values[f"{name}, {precision}"] for name in names) for precision in precisions]
        ours = [values[f"evitseg, {precision}"] for precision in precisions]
        rows.append((label, *(f"{time / own:.1f}" for time, own in zip(times, ours, strict=True))))
    return table(("times faster than", *precisions), rows)


def peer_sizes() -> str:
    content = result("peers")
    sizes = list(content["results"])
    megapixels = {size: math.prod(map(int, size.split("x"))) / 1e6 for size in sizes}
    rows = [
        (name, *(f"{content['results'][size][name]['median_ms'] / megapixels[size]:.1f}" for size in sizes))
        for name in content["results"][sizes[0]]
    ]
    return table(("ms per megapixel", *(size.replace("x", "×") for size in sizes)), rows)


def mosaics() -> str:
    rows = [
        (row["mosaics"], label(row["way"]), f"{row['miou']:.2f}",
         "–" if row["changes_at_lines"] is None else f"{100 * row['changes_at_lines']:.2f}",
         f"{100 * row['changes_elsewhere']:.2f}")
        for row in result("mosaics")["rows"]
    ]  # fmt: skip
    return table(("mosaics of", "method", "mIoU %", "changes at its lines %", "changes elsewhere %"), rows)


def scaling() -> str:
    content = result("scaling")["results"]
    rows = []
    for name, run in content.items():
        for timing in run["sizes"]:
            ratios = (timing[key] for key in ("per_pixel_to_reference", "softmax_per_pixel_to_reference"))
            rows.append(
                (f"{name}, {timing['height']}×{timing['width']}", f"{timing['network_ms']:.1f} ms",
                 f"{timing['end_to_end_ms']:.1f} ms", f"{timing['ms_per_megapixel']:.1f}",
                 *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios), f"{timing['noise']:.2f}",
                 f"{timing['peak_mib']:.0f} MiB")
            )  # fmt: skip
    header = (
        "", "network", "end to end", "network, ms per megapixel", "time per pixel, 1024×1024 = 1",
        "multiply-adds per pixel with softmax",
        "p90 / median", "peak memory",
    )  # fmt: skip
    return table(header, rows)


def service_rates() -> str:
    found = result("service")["throughput"]
    rows = [(f"`{name}`", f"{rate:.1f}") for name, rate in found["images_per_s"].items()]
    return table(["", "images per second"], [*rows, ("ratio, median of the rounds", f"{found['ratio']:.2f}")])


def service_overload() -> str:
    found = result("service")["overload"]
    rows = [
        (status, f"{count:,}", f"{found['median_ms'][status]:.0f} ms") for status, count in found["statuses"].items()
    ]
    return table(["status", "requests", "median time"], rows)


def service_memory() -> str:
    found = result("service")["memory"]
    every = [(number, mib) for number, mib in found["resident_mib"] if number % 200 == 0]
    return table(["requests", *(f"{number:,}" for number, _ in every)], [("MiB", *(f"{mib:.0f}" for _, mib in every))])


def web() -> str:
    rows = [
        (name, f"{row['median_ms']:.1f} ms", f"{row['fastest_ms']:.1f} ms", f"{row['with_everything_ms']:.1f} ms",
         f"{row['times_slower']:.2f}", f"{row['largest_difference']:.0e}" if row["largest_difference"] else "0",
         f"{row['equal_pixels']:.2%}")
        for name, row in result("web")["results"].items()
    ]  # fmt: skip
    header = (
        "",
        "median",
        "fastest",
        "with everything",
        "relative to evitseg",
        "largest difference",
        "equal mask pixels",
    )
    return table(header, rows)


def web_page() -> str:
    content = result("web")
    page, first = content["page"], content["first_mask_ms"]
    rows = [
        ("the page, with one of the four builds of the core, compressed", f"{page['one_visit_gzipped'] / 1e3:.0f} KB"),
        ("of this, the first image", f"{page['example_image'] / 1e3:.0f} KB"),
        ("all files, which the service worker keeps, compressed", f"{page['all_gzipped'] / 1e3:.0f} KB"),
        ("the model, compressed", f"{page['model_gzipped'] / 1e6:.1f} MB"),
        ("first mask of a new visitor, on localhost", f"{first['median'] / 1e3:.2f} s"),
    ]
    return table(("", ""), rows)


TABLES: dict[str, Callable[[], str]] = {
    "web": web,
    "web-page": web_page,
    "end-to-end": end_to_end,
    "core": lambda: core("core"),
    "core-zen4": lambda: core("core_zen4"),
    "core-runtimes": core_runtimes,
    "core-profile": core_profile,
    "precision": precision,
    "size-rules": size_rules,
    "short-sides": short_sides,
    "training": training,
    "finetune": finetune,
    "camvid": camvid,
    "facade": facade,
    "deploy": deploy,
    "plain": plain,
    "w8a8": w8a8,
    "w8a8-operators": w8a8_operators,
    "w8a8-trained": lambda: w8a8("w8a8_trained"),
    "w8a8-trained-operators": lambda: w8a8_operators("w8a8_trained"),
    "w8a8-tensors": w8a8_tensors,
    "video": video,
    "video-pixels": video_pixels,
    "video-encoders": video_encoders,
    "video-smoothing": video_smoothing,
    "folder": folder,
    "upsampling": upsampling,
    "peers": peers,
    "peer-ratios": peer_ratios,
    "peer-sizes": peer_sizes,
    "scaling": scaling,
    "mosaics": mosaics,
    "service-rates": service_rates,
    "service-overload": service_overload,
    "service-memory": service_memory,
}


def filled(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    if text.count("<!-- table ") != text.count("<!-- end -->"):
        raise SystemExit("a table has no end: every <!-- table NAME --> needs its <!-- end -->")
    return re.sub(r"(<!-- table ([\w-]+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = {page: new for page in PAGES if (new := filled(old := page.read_text(encoding="utf-8"))) != old}
    for page, new in stale.items():
        if not arguments.check:
            with replacing(page) as file:
                file.write(new.encode())
        print(f"{page.relative_to(ROOT)}: {'out of date' if arguments.check else 'written'}")
    if arguments.check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
