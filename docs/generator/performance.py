"""What the benches measured: the tables of the page on performance. Without a file of results they are empty."""

import json
from pathlib import Path
from typing import Any

from generator.markdown import table

RESULTS = Path(__file__).parent.parent.parent / "bench" / "results"


def performance_blocks(results: Path = RESULTS) -> dict[str, str]:
    """Block name to tables."""
    names = ("engine", "same_answers", "scaling", "compiled", "fits", "gpu")
    engine, verified, scaling, compiled, fits, gpu = (_read(results / f"{name}.json") for name in names)
    return {
        "engine": _dated(engine, _engine(engine.get("rows", []))),
        "floor": _floor([row for row in engine.get("rows", []) if "floor" in row]),
        "agreement": _agreement([row for row in engine.get("rows", []) if row.get("agreement") or row.get("loss")]),
        "verified": _dated(verified, _verified(verified.get("cells", []))),
        "settings": _settings(engine.get("rows", []), engine.get("grid", [])),
        "scaling": _dated(scaling, _scaling(scaling.get("rows", []))),
        "compiled": _dated(compiled, _compiled(compiled.get("rows", []))),
        "fits": _dated(fits, _fits(fits.get("rows", []))),
        "gpu": _dated(gpu, _gpu(gpu.get("rows", []))),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _dated(file: dict[str, Any], rows: str) -> str:
    if not rows:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in file["versions"].items())
    return f"{rows}\n\n{file['date'][:10]}, {file['machine']}; {versions}."


def _engine(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    header = ("work", "on", "model", "against", "ours", "theirs", "ratio", "runs", "precision", "processor", "date")
    return table(
        header,
        [
            (
                *_named(row),
                row["peer"],
                _amount(row["ours"], row["unit"]),
                _amount(row["theirs"], row["unit"]),
                f"**{row['ratio']:.1f}x**",
                str(len(row["runs"]["ours"])),
                row["precision"],
                row.get("machine", "").partition(",")[0],
                row["date"][:10],
            )
            for row in rows
        ],
    )


def _named(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"`{row['work']}`", row["variant"], row["model"]


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.1f} GiB"
    return f"{value:.0f} tokens/s" if unit.endswith("tokens/s") else f"{value:.1f} s"


def _floor(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    header = ("work", "on", "model", "precision", "products", "copies", "floor", "reached", "where the time goes")
    return table(
        header,
        [
            (
                *_named(row),
                row["precision"],
                f"{row['machine_operations'] / 1e9:.0f} GFLOP/s",
                f"{row['machine_bytes'] / 1e9:.0f} GB/s",
                _amount(row["floor"], row["unit"]),
                f"{100 * row['share_of_floor']:.0f}%",
                ", ".join(f"{name} {100 * share:.0f}%" for name, share in _largest(row["profile"])),
            )
            for row in rows
        ],
    )


def _largest(profile: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(((name, share) for name, share in profile.items() if share >= 0.01), key=lambda pair: -pair[1])


def _agreement(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    header = ("work", "on", "model", "precision", "the two sides")
    return table(header, [(*_named(row), row["precision"], _agrees(row)) for row in rows])


def _agrees(row: dict[str, Any]) -> str:
    if "loss" in row:
        return f"mean training loss {row['loss']['ours']:.4f} and {row['loss']['theirs']:.4f}"
    agreement = row["agreement"]
    if "same_choice" in agreement:
        return (
            f"likeliest choice the same for {100 * agreement['same_choice']:.0f}%, "
            f"log-likelihoods up to {agreement['largest_difference_nats']:.2f} nats apart"
        )
    return f"text the same for {100 * agreement['same_text']:.0f}%, answer for {100 * agreement['same_answer']:.0f}%"


def _verified(cells: list[dict[str, Any]]) -> str:
    if not cells:
        return ""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        kinds.setdefault(cell["what"].partition(",")[0], []).append(cell)
    return table(
        ("compared", "models", "cells", "failed", "tokens", "largest relative difference"),
        [
            (
                kind,
                str(len({cell["model"] for cell in own})),
                str(len(own)),
                str(sum(not cell["passed"] for cell in own)),
                str(sum(cell["tokens"] for cell in own)),
                _worst([cell["worst_relative"] for cell in own if cell["worst_relative"] is not None]),
            )
            for kind, own in kinds.items()
        ],
    )


def _worst(differences: list[float]) -> str:
    return f"{max(differences):.1e}" if differences else ""


def _settings(rows: list[dict[str, Any]], grid: list[dict[str, Any]]) -> str:
    if not grid:
        return ""
    names = ("work", "variant", "model", "precision")
    measured = {tuple(row[name] for name in names) for row in rows}
    return table(
        ("work", "on", "model", "precision", "best", "tried"),
        [
            (*_named(one), one["precision"], f"`{_words(one['best'])}`", str(len(one["points"])))
            for one in grid
            if tuple(one[name] for name in names) in measured or one["work"] == "study"
        ],
    )


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _scaling(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    header = (
        "what grows",
        "work",
        "model",
        "from",
        "to",
        "seconds",
        "growth",
        "of the floor",
        "exponent",
        "overhead of one more",
    )
    return table(
        header,
        [
            (
                row["work"],
                row["variant"],
                row["model"],
                str(row["sizes"][0]),
                str(row["sizes"][-1]),
                f"{row['seconds'][0]:.1f} to {row['seconds'][-1]:.1f}",
                f"{row['growth']:.2f}x",
                f"{row['floor_growth']:.2f}x" if "floor_growth" in row else "",
                f"{row['exponent']:.2f}",
                f"{100 * row['overhead_per_trial']:.1f}%" if "overhead_per_trial" in row else "",
            )
            for row in rows
        ],
    )


def _compiled(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    return table(
        ("trains", "model", "compiled", "first step", "each after it", "pays after"),
        [
            (
                row["method"],
                row["model"],
                what,
                f"{row['first_step_seconds'][what]:.1f} s",
                f"{seconds:.1f} s",
                _pays(row["pays_after_steps"].get(what, 0), what),
            )
            for row in rows
            for what, seconds in row["step_seconds"].items()
        ],
    )


def _pays(steps: float | None, what: str) -> str:
    if what == "nothing":
        return ""
    return "never" if steps is None else f"{steps:.0f} steps"


def _fits(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    return table(
        ("trains", "model", "weights", "precision", "limit", "is enough"),
        [
            (
                row["method"],
                row["model"],
                f"{row['parameters'] / 1e6:.0f}M",
                row["precision"],
                f"{row['limit'] / 1e9:g} GB",
                "yes" if row["fits"] else "no",
            )
            for row in rows
        ],
    )


def _gpu(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    header = (
        "work",
        "on",
        "shape of",
        "against",
        "ours",
        "theirs",
        "ratio",
        "of the GPU's peak",
        "memory, ours / theirs",
    )
    return table(
        header,
        [
            (
                *_named(row),
                row["peer"],
                _amount(row["ours"], row["unit"]),
                _amount(row["theirs"], row["unit"]),
                f"**{row['ratio']:.1f}x**",
                f"{100 * row['mfu']:.0f}%" if "mfu" in row else "",
                f"{row['memory_ours'] / 2**30:.0f} / {row['memory_theirs'] / 2**30:.0f} GiB" if "mfu" in row else "",
            )
            for row in rows
        ],
    )
