"""Tables from committed results: ``python -m benchmarks.report [JSON ...] [--keep] [--readme README.md]``.

They are printed, and stand on the documentation's page on benchmarks, which is made when the site is built.

JSON files are those of ``pytest benchmarks --benchmark-only --benchmark-json=FILE`` (conftest.py trims them); without any,
the committed ones of the newest version. ``--keep`` copies them to ``benchmarks/results/<version>/<machine>.json``,
``--growth`` draws time and memory of the objective against N into a PNG beside each result (with matplotlib), ``--readme``
writes the short table of the README's first screen between its markers instead of printing all of them, ``--compare OLD NEW``
lists the rows that became slower beyond their noise and exits with 1 if there are any. Needs nothing else but Python.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

FORMAT = 1
START, END = "<!-- headline: start -->", "<!-- headline: end -->"
RESULTS = Path(__file__).parent / "results"
LEAST = 0.05  # differences below 5 % are never regressions
OTHER = {"compiled": "torch.compile of the reference"}  # rows under longer names
OURS = ("native", "shamisa.ridge", "one by one", "read_photo")  # the rows that the others are compared with


def load(path: str | Path) -> dict:
    """A trimmed result; ValueError where the file is anything else."""
    try:
        result = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format") if isinstance(result, dict) else type(result).__name__
        raise ValueError(f"{path} must be a result of format {FORMAT}, written by the benchmarks, got {found!r}")
    return result


def keep(result: dict) -> Path:
    """Write a result to its place among the committed ones."""
    machine = result["machine"]
    path = RESULTS / machine["versions"]["shamisa"] / f"{machine['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {k: v for k, v in result.items() if k != "benchmarks"}
    head = json.dumps(content, indent=1)[:-2]
    rows = ",\n".join("  " + json.dumps(row) for row in result["benchmarks"])  # a row per line: readable differences
    path.write_text(f'{head},\n "benchmarks": [\n{rows}\n ]\n}}\n')
    return path


def committed() -> list[Path]:
    """Results of the newest version."""
    folders = (p for p in RESULTS.glob("*") if p.is_dir())
    versions = sorted(folders, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    return sorted(versions[-1].glob("*.json")) if versions else []


# ---- numbers ---------------------------------------------------------------------------------------------------------
def number(x: float | None) -> str:
    """Three digits, thousands separated."""
    if x is None:
        return ""
    if x >= 1000:
        return f"{float(f'{x:.3g}'):,.0f}"
    if x == 0:
        return "0"
    return f"{x:.3g}" if x >= 0.01 else f"{x:.1e}"


def ms(row: dict) -> float:
    """Median milliseconds per image, or per call where there are no images."""
    return row["info"].get("ms_per_image") or 1e3 * row["stats"]["median"]


def error(row: dict | None) -> str:
    """The largest error of a row, or why it has none."""
    info = row["info"] if row else {}
    marked = "≈" if info.get("error_of") == "moments" else ""
    return marked + number(info["max_error"]) if "max_error" in info else info.get("no_error", "")


def errors(*rows: dict | None) -> str:
    """Those of the rows that stand beside the reference."""
    return " / ".join(error(r) or "-" for r in rows)


def calls(row: dict | None) -> str:
    """How often a row was timed: rounds, and calls in each where there are several."""
    if row is None:
        return ""
    rounds, iterations = row["stats"]["rounds"], row["stats"]["iterations"]
    return str(rounds) if iterations == 1 else f"{rounds} x {iterations}"


def peaks(*rows: dict | None) -> str:
    """Peak extra megabytes of rows, per image where there are images."""
    each = [r and r["info"].get("extra_mb") for r in rows]
    each = [m and m / r["info"].get("images", 1) for m, r in zip(each, rows, strict=True)]
    return " / ".join(number(m) or "-" for m in each)


def share_of_copy(row: dict | None) -> str:
    return f"{row['info']['share_of_copy']:.1%}" if row and "share_of_copy" in row["info"] else ""


def of_ceiling(row: dict | None) -> str:
    """Share of the rate of products, or of copying where a row has none."""
    info = row["info"] if row else {}
    for share, name in (("share_of_matmul", "matmul"), ("share_of_copy", "copy")):
        if share in info:
            return f"{info[share]:.1%} of {name}"
    return ""


def times(other: dict | None, ours: dict | None) -> str:
    """How many times faster ours is; bold where it is slower."""
    if other is None or ours is None:
        return ""
    ratio = ms(other) / ms(ours)
    return f"{number(ratio)}x" if ratio >= 1 else f"**{number(ratio)}x**"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    head, rows = list(head), [list(r) for r in rows]
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# ---- sections --------------------------------------------------------------------------------------------------------
class Section:
    """The rows of one section on one device: subject -> who -> row, in the order measured."""

    def __init__(self, result: dict, name: str, device: str) -> None:
        self.subjects: dict[str, dict[str, dict]] = {}
        for b in result["benchmarks"]:
            info = b["info"]
            if info["section"] == name and info["device"] == device:
                self.subjects.setdefault(info["subject"], {})[info["row"]] = b

    def rows(self) -> Iterable[tuple[str, str, dict]]:
        for subject, group in self.subjects.items():
            for who, row in group.items():
                yield subject, who, row


def engine(s: Section) -> str:
    rows = []
    for subject, who, row in s.rows():
        info, base = row["info"], s.subjects[subject].get("reference")
        cells = [number(info["images_per_s"]), times(base, row) if base else "", error(row)]
        cells.append(number(info["mean_error"]) if "mean_error" in info else "")
        cells += [number(info.get("extra_mb")), f"{info.get('share_of_copy', 0):.2%}", calls(row)]
        name = who if subject == "engine" else f"{subject}: {who}"
        rows.append([f"{name} ({info['threads']} thread{'s'[: info['threads'] > 1]})", *cells])
    head = (
        "",
        "images/s",
        "against reference",
        "max error",
        "mean error",
        "peak extra MB",
        "of copy bandwidth",
        "rounds",
    )
    return "Whole engine, published sampling, uint8 crops to normalised float32:\n\n" + table(head, rows)


BESIDE_REFERENCE = ("native ms", "reference ms", "ratio", "max error", "of copy bandwidth", "peak extra MB", "rounds")


def beside_reference(ours: dict | None, base: dict | None) -> list[str]:
    """The cells under that head."""
    times_ = [number(ms(ours)) if ours else "", number(ms(base)) if base else "", times(base, ours)]
    return [*times_, error(ours), share_of_copy(ours), peaks(ours, base), calls(ours)]


def distortions(s: Section) -> str:
    rows = []
    for subject, group in s.subjects.items():
        ours, base = group.get("native"), group.get("reference")
        others = []
        for who, row in group.items():
            if who not in ("native", "reference"):
                kin = "~" if row["info"].get("kin") else ""
                facts = "; ".join(filter(None, (times(row, ours), error(row))))
                others.append(f"{kin}{OTHER.get(who, who)} {number(ms(row))} ({facts})")
        rows.append([subject, *beside_reference(ours, base), ", ".join(others)])
    head = ("distortion, level 3", *BESIDE_REFERENCE)
    title = "One distortion, per 224 x 224 float image of 0.6 MB (~ marks another definition of the same kind; peak extra memory"
    title += " of native / reference, results included, without the memory that a thread keeps for its next call):"
    return f"{title}\n\n" + table((*head, "others, ms (ratio to native; max error)"), rows)


def chains(s: Section) -> str:
    rows = []
    for subject, group in s.subjects.items():
        rows.append([subject, *beside_reference(group.get("native"), group.get("reference"))])
    head = ("chain in one call", *BESIDE_REFERENCE)
    return table(head, rows)


def memory(s: Section) -> str:
    rows = []
    for subject, _, row in s.rows():
        info = row["info"]
        parts = [info["output_mb"], info["prefix_mb"], info["extra_mb"]]
        rows.append(
            [subject, *(number(p) for p in parts), number(max(0.0, parts[2] - parts[0] - parts[1])), error(row)]
        )
    head = ("peak extra memory, MB", "output", "prefix images", "measured", "beyond both", "max error")
    return table(head, rows)


def relations(s: Section) -> str:
    rows = []
    for subject, group in s.subjects.items():
        ours, base, compiled = (group.get(who) for who in ("native", "reference", "compiled"))
        cells = [number(ms(ours)) if ours else "not compiled", *against(base, ours), *against(compiled, ours)]
        rows.append(
            [subject, *cells, errors(ours, compiled), of_ceiling(ours), peaks(ours, base, compiled), calls(ours)]
        )
    head = (
        "N = 252, F = 2048, E = 768",
        "native ms",
        "reference ms",
        "ratio",
        "torch.compile ms",
        "ratio",
        "max error",
    )
    title = "Relation graphs (torch.compile: of the reference; max error of native / torch.compile; peak extra memory of native"
    title += " / reference / torch.compile, results included):"
    return f"{title}\n\n" + table((*head, "of ceiling", "peak extra MB", "rounds"), rows)


def against(other: dict | None, ours: dict | None) -> tuple[str, str]:
    """Milliseconds of another row, and how many times faster ours is."""
    return number(ms(other)) if other else "", times(other, ours)


def loss(s: Section) -> str:
    rows = []
    for subject, group in s.subjects.items():
        ours, base, compiled = (group.get(who) for who in ("native", "reference", "compiled"))
        threads = group.get("native, all threads")
        cells = [number(ms(ours)) if ours else "", *against(base, ours), *against(compiled, ours)]
        cells += [number(ms(threads)) if threads else "", errors(ours, compiled, threads), of_ceiling(ours)]
        rows.append([subject, *cells, peaks(ours, base, compiled), calls(ours)])
    head = ("loss, forward + backward", "native ms", "reference ms", "ratio", "torch.compile ms", "ratio")
    head = (*head, "native, all threads, ms", "max error", "of ceiling")
    title = "The whole objective (max error of native / torch.compile / all threads, gradients included; peak extra memory of"
    title += " native / reference / torch.compile includes the gradients of z and h; of ceiling: the operations of its products"
    title += " at torch's own rate, which halves of symmetric products and wider vectors can exceed):"
    return f"{title}\n\n" + table((*head, "peak extra MB", "rounds"), rows)


def step(s: Section) -> str:
    rows, beside = [], any("share_of_encoder" in row["info"] for _, _, row in s.rows())
    for subject, who, row in s.rows():
        split = row["info"].get("split_ms", {})
        parts = ", ".join(f"{k} {number(v)}" for k, v in split.items())
        threads = row["info"]["threads"]
        cells = [
            number(1e3 * row["stats"]["median"] / row["info"].get("steps", 1)),
            number(row["info"]["images_per_s"]),
            parts,
            error(row),
            of_ceiling(row),
            number(row["info"].get("extra_mb")),
            calls(row),
        ]
        if beside:
            share = row["info"].get("share_of_encoder")
            cells.insert(2, f"{share:.1%}" if share else "")
        rows.append([f"{subject}: {who} ({threads} thread{'s'[: threads > 1]})", *cells])
    head = ("training step", "ms", "images/s", "split, ms", "max error of the loss", "of ceiling", "peak extra MB")
    if beside:
        head = (*head[:3], "of the encoder's own rate", *head[3:])
    return table((*head, "rounds of 4 steps"), rows)


def plain(title: str):
    def render(s: Section) -> str:
        rows = []
        for subject, who, row in s.rows():
            ours = next((r for w, r in s.subjects[subject].items() if w in OURS), None)
            rate = number(row["info"].get("images_per_s"))
            # per image where the rows handle different numbers of images
            ratio = number(ms(row) / ms(ours)) + "x" if ours else ""
            cells = [number(1e3 * row["stats"]["median"]), rate, ratio, error(row), number(row["info"].get("extra_mb"))]
            cells += [of_ceiling(row), calls(row)]
            rows.append([f"{subject}: {who}", *cells])
        return table(
            (title, "ms", "images/s", "time, ours = 1x", "max error", "peak extra MB", "of ceiling", "rounds"), rows
        )

    return render


SECTIONS = {
    "engine": engine,
    "chains": chains,
    "distortions": distortions,
    "memory": memory,
    "relations": relations,
    "loss": loss,
    "step": step,
    "probe": plain("probe"),
    "loader": plain("loader, images are photographs read"),
    "scorer": plain("scores, images are photographs"),
}


def comparisons(result: dict) -> list[tuple[str, str, str, dict, dict]]:
    """Every row on one thread that stands beside one of ours: (device, subject, who, row, ours)."""
    found = []
    for device in devices(result):
        for name in SECTIONS:
            for subject, group in Section(result, name, device).subjects.items():
                ours = next((row for who, row in group.items() if who in OURS), None)
                for who, row in group.items() if ours else ():
                    # References do more than decoding, or less; a step can be no faster than its encoder
                    other_work = who.startswith(("References", "encoder alone"))
                    if row is not ours and row["info"]["threads"] == 1 and not other_work:
                        found.append((device, subject, who, row, ours))
    return found


def losses(result: dict) -> list[str]:
    """Where another row of the same subject is faster than ours, in words."""
    found = []
    for device, subject, who, row, ours in comparisons(result):
        if ms(row) < ms(ours):
            kin = " (another definition)" if row["info"].get("kin") else ""
            found.append(
                f"{subject}: {OTHER.get(who, who)}{kin} takes {number(ms(row))} ms, ours {number(ms(ours))} ms on {device}"
            )
    return found


def devices(result: dict) -> list[str]:
    return sorted({b["info"]["device"] for b in result["benchmarks"]})


def render(result: dict) -> str:
    """All tables of one machine."""
    m = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if v and k not in ("machine", "commit"))
    commit, _, changed = (m["versions"].get("commit") or "unknown").partition("+")
    gpu = f"{m['gpu']}, CUDA {m['cuda']}; " if m["gpu"] else ""
    rates = "; ".join(
        f"{device}: copy {number(c['copy_gb_s'])} GB/s, "
        + ", ".join(f"{k.split('_')[1]} matmul {number(v)} GFLOP/s" for k, v in c.items() if k.startswith("matmul"))
        for device, c in result["ceilings"].items()
    )
    parts = [
        f"**{gpu}{m['cpu']}, {m['cores']} cores, {m['memory_gb']:g} GB, {m['instructions']}** ({versions}; commit "
        f"{commit[:10]}{' with changes' if changed else ''}). One thread unless stated. Medians of the rounds; "
        f"interquartile ranges stand in `benchmarks/results/`; 20 x 3 is 20 rounds of 3 calls. "
        f'"Reference" is the package\'s own eager PyTorch chain. Errors are the largest absolute difference from the '
        f"reference as a share of its largest value; ≈ marks those of another random draw, of which mean and spread of the "
        f"change are compared. Ceilings measured in the same run: "
        f"{rates}. Load average at the end: {result['load_at_end']:g}."
    ]
    for device in devices(result):
        for name, draw in SECTIONS.items():
            section = Section(result, name, device)
            if section.subjects:
                parts.append(draw(section))
    slower = losses(result)
    if slower:
        parts.append("Where ours is slower than a row beside it:\n\n" + "\n".join(f"- {line}" for line in slower))
    return "\n\n".join(parts)


HEADLINE = {  # the rows that the README's first screen shows: (section, subject, row beside ours) -> in words
    ("engine", "engine", "reference"): ("distorting a 224 px image, 1 to 7 distortions", "its PyTorch reference"),
    ("distortions", "jpeg", "Pillow"): ("one JPEG round trip of a 224 px image", "Pillow"),
    ("distortions", "jpeg2000", "Pillow"): ("the same with JPEG 2000", "Pillow"),
    ("loss", "N = 252", "reference"): ("objective of 252 images, with gradients", "its PyTorch reference"),
    ("loss", "N = 2016", "reference"): ("objective of 2,016 images, with gradients", "its PyTorch reference"),
    ("loss", "N = 2016", "compiled"): ("the same", "torch.compile of the reference"),
    ("step", "demo, 96 px, N = 126", "reference"): (
        "training step of the demonstration, per image",
        "its PyTorch reference",
    ),
    ("probe", "ridge, 600 rows x 1024, 100 strengths", "scikit-learn loop"): (
        "ridge regression, 100 strengths",
        "scikit-learn",
    ),
}


def headline(result: dict) -> str:
    """A few rows of all the tables of one machine, one thread each, and how many comparisons are lost."""
    rows, m = [], result["machine"]
    for device in devices(result):
        for (section, subject, who), (words, beside) in HEADLINE.items():
            group = Section(result, section, device).subjects.get(subject, {})
            ours, other = next((r for w, r in group.items() if w in OURS), None), group.get(who)
            if ours is not None and other is not None:
                words = f"{words} ({device})" if len(devices(result)) > 1 else words
                rows.append([words, number(ms(ours)), beside, number(ms(other)), times(other, ours)])
    title = f"On {m['gpu'] or m['cpu']}, one CPU thread, medians, ms:"
    lost, every = len(losses(result)), len(comparisons(result))
    slower = f"Ours is the slower one in {lost} of {every} comparisons on one thread, listed in the documentation under Benchmarks."
    slower += " The reference is written to be read, not to be fast."
    return f"{title}\n\n{table(('', 'ours', 'beside it', 'its time', 'ratio'), rows)}\n\n{slower}"


def insert(readme: str, text: str) -> str:
    """The README with the text between its markers; ValueError where a marker is missing."""
    if readme.count(START) != 1 or readme.count(END) != 1 or readme.index(START) > readme.index(END):
        raise ValueError(f"the README must have {START} and {END} once each, in this order")
    before, rest = readme.split(START)
    return f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"


# ---- growth ----------------------------------------------------------------------------------------------------------
CURVES = {"native": "native", "reference": "reference (PyTorch)", **OTHER}


def draw_growth(result: dict, device: str, path: Path) -> None:
    """Time and memory of the objective against the number of nodes -> PNG; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    time, memory = figure.subplots(1, 2)
    subjects = Section(result, "loss", device).subjects.values()
    for who, name in CURVES.items():
        rows = [group[who] for group in subjects if who in group]
        rows.sort(key=lambda r: r["info"]["nodes"])
        if not rows:
            continue
        nodes = [r["info"]["nodes"] for r in rows]
        time.plot(nodes, [1e3 * r["stats"]["median"] for r in rows], "o-", markersize=4, label=name)
        known = [(r["info"]["nodes"], r["info"]["extra_mb"]) for r in rows if "extra_mb" in r["info"]]
        memory.plot(*zip(*known, strict=True), "o-", markersize=4, label=name) if known else None
    for axes, label in ((time, "ms, forward + backward"), (memory, "peak extra MB")):
        axes.set(xscale="log", yscale="log", xlabel="nodes N", ylabel=label)
        ticks = sorted({row["info"]["nodes"] for group in subjects for row in group.values()})
        axes.set_xticks(ticks, [str(n) for n in ticks], rotation=45)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend()
    name = result["machine"]["gpu"] if device == "cuda" else f"{result['machine']['cpu']}, one thread"
    figure.suptitle(f"Objective on {name}, F = 2048, E = 768")
    figure.savefig(path, dpi=90)


# ---- comparison ------------------------------------------------------------------------------------------------------
def compare(old: dict, new: dict) -> tuple[list[str], list[str]]:
    """(regressions, remarks): rows of both results whose median grew by more than their noise, the worst first.

    Noise is the sum of the two interquartile ranges as a share of the old median, and at least 5 %.
    """
    rows = {(b["group"], b["name"]): b for b in old["benchmarks"]}
    slower, remarks = [], []
    if old["machine"]["name"] != new["machine"]["name"]:
        remarks.append(f"different machines: {old['machine']['name']} and {new['machine']['name']}")
    for b in new["benchmarks"]:
        before = rows.pop((b["group"], b["name"]), None)
        if before is None:
            remarks.append(f"only in the new result: {b['name']}")
            continue
        was, now = before["stats"], b["stats"]
        ratio, noise = now["median"] / was["median"], (was["iqr"] + now["iqr"]) / was["median"]
        if ratio - 1 > max(LEAST, noise):
            slower.append(
                (
                    ratio,
                    f"{ratio:.2f}x  {b['name']}  {was['median']:.4g} s -> {now['median']:.4g} s (noise {noise:.1%})",
                )
            )
    remarks += [f"only in the old result: {name}" for _, name in rows]
    return [line for _, line in sorted(slower, reverse=True)], remarks


def main(argv: list[str] | None = None) -> int:
    """The command -> 0, 1 for regressions, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("json", nargs="*", metavar="JSON", help="results [the committed ones of the newest version]")
    parser.add_argument("--keep", action="store_true", help="copy them to benchmarks/results/<version>/<machine>.json")
    parser.add_argument("--growth", action="store_true", help="draw RESULT-DEVICE-growth.png beside each result")
    parser.add_argument("--readme", metavar="FILE", help="write the short table between the markers of this file")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="list regressions beyond noise")
    given = parser.parse_args(argv)
    try:
        if given.compare:
            slower, remarks = compare(*(load(p) for p in given.compare))
            print("\n".join([*remarks, *(slower or ["no row became slower beyond its noise"])]))
            return 1 if slower else 0
        paths = given.json or committed()
        if not paths:
            raise ValueError(
                f"no results: run pytest benchmarks --benchmark-only --benchmark-json=FILE first ({RESULTS.name}/)"
            )
        results = [load(p) for p in paths]
        if given.keep:
            for result in results:
                print(keep(result), file=sys.stderr)
        if given.growth:
            for path, result in zip(map(Path, paths), results, strict=True):
                for device in devices(result):
                    picture = path.with_name(f"{path.stem}-{device}-growth.png")
                    draw_growth(result, device, picture)
                    print(picture, file=sys.stderr)
        if given.readme:
            readme = Path(given.readme)
            readme.write_text(insert(readme.read_text(), "\n\n".join(headline(r) for r in results)))
        else:
            print("\n\n".join(render(r) for r in results))
    except (ValueError, OSError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
