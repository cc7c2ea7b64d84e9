"""What the simulation found: the tables of the page on statistics. Without its file they are empty."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from generator.markdown import table

BENCH = Path(__file__).parent.parent.parent / "bench" / "results"
TRUTH = BENCH / "truth.json"
MUTATION = BENCH / "mutation.json"
Row = dict[str, Any]
NUMBERS = {
    "coverage_min": "least coverage of 95% intervals of differences, any cell",
    "coverage_min_stress": "the same under stress",
    "coverage_accuracy_min": "least coverage of 95% intervals of single accuracies, any cell",
    "coverage_accuracy_min_stress": "the same under stress",
    "coverage_mean": "mean coverage of differences",
    "width_ratio_to_oracle": "mean width over the oracle's, 3 seeds, arm against zero-shot",
    "familywise_error_max": "greatest family-wise error",
    "power_gap": "power that the oracle has more, mean",
    "wrong_ours": "wrong recommendations",
    "wrong_common": "wrong recommendations of common practice",
    "undecided_ours": "studies left undecided",
    "undecided_oracle": "studies that the oracle leaves undecided",
}
LEAST = ("coverage_min", "coverage_min_stress")
"""Of these, what is required is a least."""


def statistics_blocks(path: Path = TRUTH) -> dict[str, str]:
    """Block name to table."""
    file: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    makers = {
        "truth": lambda rows: _head(file),
        "artifact": _artifact,
        "coverage": _coverage,
        "unequal": _unequal,
        "families": _families,
        "power": _power,
        "regret": _regret,
        "variants": _variants,
        "plans": _plans,
        "floors": _floors,
        "ceilings": _ceilings,
        "looks": _looks,
    }
    blocks = {name: _made(maker, file["cells"]) if file else "" for name, maker in makers.items()}
    return {**blocks, "mutants": mutants()}


def mutants(path: Path = MUTATION) -> str:
    """By module, how many mutants the tests were run against, and the share that they noticed."""
    if not path.is_file():
        return ""
    file = json.loads(path.read_text())
    rows = [
        (f"`finetrap.{name}`", f"{found['killed'] + found['survived']} of {found['mutants']}", f"{found['share']:.1%}")
        for name, found in file["modules"].items()
    ]
    run, all_ = (sum(f(m) for m in file["modules"].values()) for f in (_run, lambda m: m["mutants"]))
    rows.append(("all", f"{run} of {all_}", f"{file['share']:.1%}"))
    shown = table(("module", "mutants run", "noticed"), rows)
    return f"{shown}\n\n{file['tool']}, {file['date'][:10]}, {file['machine']}. Each survivor is in the file."


def _run(module: Row) -> int:
    found: int = module["killed"] + module["survived"]
    return found


def _made(maker: Callable[[Sequence[Row]], str], rows: Sequence[Row]) -> str:
    """A table; empty while the simulation has not come to all of its cells."""
    try:
        return maker(rows)
    except (ValueError, ZeroDivisionError, IndexError, KeyError, StopIteration):
        return ""


def _head(file: dict[str, Any]) -> str:
    def found(name: str) -> str:
        error = file.get(f"{name}_se")
        return f"{file[name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")

    bounds = {
        "coverage_min": 0.94,
        "coverage_min_stress": 0.90,
        "width_ratio_to_oracle": 1.25,
        "familywise_error_max": 0.05,
        "power_gap": 0.12,
        "wrong_ours": file["wrong_common"] / 5,
        "undecided_ours": file["undecided_oracle"] + 0.25,
    }
    rows = [(says, _required(name, bounds), found(name)) for name, says in NUMBERS.items()]
    missed = [_missed(file, name, bounds[name]) for name in bounds if _misses(file[name], name, bounds[name])]
    versions = ", ".join(f"{name} {version}" for name, version in file["versions"].items() if name != "code")
    older = sum(row["code"] != file["versions"]["code"] for row in file["cells"])
    kept = f" {older} of the cells were simulated by older code; each cell names its own." if older else ""
    said = f"{len(file['cells'])} cells, {sum(row['studies'] for row in file['cells']):,} studies."
    met = f"Not as required: {'; '.join(missed)}." if missed else "Everything is as required."
    studies = f"{said} {file['date'][:10]}, {file['machine']}; {versions}.{kept}"
    return f"{table(('', 'required', 'found'), rows)}\n\n{met}\n\n{studies}"


def _required(name: str, bounds: dict[str, float]) -> str:
    if name not in bounds:
        return ""
    digits = 4 if name.startswith("wrong") else 2
    return f"{'at least' if name in LEAST else 'at most'} {bounds[name]:.{digits}f}"


def _misses(value: float, name: str, bound: float) -> bool:
    return value < bound if name in LEAST else value > bound


def _missed(file: dict[str, Any], name: str, bound: float) -> str:
    """What is on the wrong side, by how many of its standard errors, and in which cell."""
    says, error = NUMBERS[name], file.get(f"{name}_se")
    if error is None:
        return says
    fields = ("coverage", "coverage_pair") if name in LEAST else ("familywise_error",)
    cell = next(row for row in file["cells"] if file[name] in _values([row], fields[0]) + _values([row], fields[-1]))
    world = ", ".join(f"{key} {value}".replace("_", " ") for key, value in cell["world"].items())
    return f"{says}, by {abs(file[name] - bound) / error:.1f} of its standard error ({cell['kind']}: {world})"


def _of(rows: Iterable[Row], kind: str, choose: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    return [row for row in rows if row["kind"] == kind and choose(row["world"])]


def _values(rows: Sequence[Row], field: str) -> list[float]:
    found = [row[field] for row in rows if row.get(field) is not None]
    return [value["mean"] if isinstance(value, dict) else value for value in found]


def _mean(rows: Sequence[Row], field: str) -> float:
    values = _values(rows, field)
    return sum(values) / len(values)


def _alike(world: Row) -> bool:
    return len(set(world["seed_sd"])) == len(set(world["accuracy"])) == 1


def _artifact(rows: Sequence[Row]) -> str:
    cells = _of(rows, "artifact")
    return table(
        ("one checkpoint, items only", "least", "mean", "greatest"),
        [
            (says, f"{min(values):.3f}", f"{sum(values) / len(values):.3f}", f"{max(values):.3f}")
            for says, field in (("coverage of Tango's interval", "coverage"), ("size of the test at 5%", "size"))
            for values in [_values(cells, field)]
        ],
    )


def _coverage(rows: Sequence[Row]) -> str:
    out = []
    for n in (100, 400, 1319):
        for seeds in (2, 3, 5):
            cells = _of(rows, "coverage", lambda w, n=n, s=seeds: _alike(w) and (w["n"], w["seeds"]) == (n, s))
            widths, pairs = _values(cells, "width_ratio"), _values(cells, "width_ratio_pair")
            least = (min(_values(cells, f"coverage{end}")) for end in ("", "_pair", "_accuracy"))
            out.append(
                (
                    f"{n}",
                    f"{seeds}",
                    *(f"{value:.3f}" for value in least),
                    f"{sum(widths) / len(widths):.2f} ({max(widths):.2f})",
                    f"{sum(pairs) / len(pairs):.2f} ({max(pairs):.2f})",
                )
            )
    header = ("items", "seeds", "arm - zero-shot", "arm - arm", "accuracy", "width", "width, arm - arm")
    return table(header, out)


def _unequal(rows: Sequence[Row]) -> str:
    cells = [
        row
        for kind in ("coverage", "stress")
        for row in _of(rows, kind, lambda w: len(set(w["seed_sd"])) > 1 and len(set(w["seed_sd"][:4])) == 1)
    ]
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in cells:
        first, last = (f"{100 * row['world']['seed_sd'][index]:g}" for index in (0, -1))
        stress = ", stress" if row["kind"] == "stress" else ""
        at = "" if row["world"]["accuracy"][1] == row["world"]["accuracy"][-1] else " (accuracy .02 and .5)"
        groups.setdefault(
            (f"{first}, {first}, {first}, {first}, {last}{at}{stress}", row["world"]["seeds"]), []
        ).append(row)
    return table(
        (
            "sd between seeds, points",
            "seeds",
            "arm - zero-shot",
            "arm - arm",
            "accuracy",
            "family-wise error, greatest",
        ),
        [
            (
                says,
                f"{seeds}",
                *(f"{min(_values(each, f'coverage{end}')):.3f}" for end in ("", "_pair", "_accuracy")),
                f"{max(values):.3f}" if (values := _values(each, "familywise_error")) else "",
            )
            for (says, seeds), each in groups.items()
        ],
    )


def _families(rows: Sequence[Row]) -> str:
    cells = [row for row in rows if row["kind"] in ("coverage", "null") and _alike(row["world"])]
    out = []
    for says, end in (("finetrap", ""), ("oracle", "_oracle"), ("common practice", "_common")):
        values = _values(cells, f"familywise_error{end}")
        out.append((says, f"{sum(values) / len(values):.3f}", f"{max(values):.3f}"))
    return table((f"{len(cells)} cells, every arm as good as zero-shot", "mean", "greatest"), out)


def _power(rows: Sequence[Row]) -> str:
    def lone(n: int, effect: float, sd: float) -> Row | None:
        def chosen(world: Row) -> bool:
            accuracy, step = world["accuracy"], world["accuracy"][-1] - world["accuracy"][0]
            shape = (world["n"], world["seeds"], accuracy[0], accuracy[1], world["seed_sd"][0])
            return shape == (n, 3, 0.3, 0.3, sd) and abs(step - effect) < 1e-9

        return next(iter(_of(rows, "power", chosen)), None)

    out = []
    for n in (200, 400, 1319):
        for sd in (0.01, 0.02):
            cells = [row for effect in (0.02, 0.05, 0.10) if (row := lone(n, effect, sd)) is not None]
            powers = [f"{row['power']['mean']:.2f} ({row['power_oracle']['mean']:.2f})" for row in cells]
            out.append((f"{n}", f"{100 * sd:g}", *powers, f"{100 * cells[0]['mde']:.1f}" if cells else ""))
    header = ("items", "sd of seeds, points", "2 points", "5 points", "10 points", "median MDE, points")
    return table(header, [row for row in out if len(row) == len(header)])


def _regret(rows: Sequence[Row]) -> str:
    cells = _of(rows, "regret")
    covered = f"coverage of the 90% bound at least {min(_values(cells, 'coverage_regret')):.3f}"
    out = []
    for says, name in (
        ("finetrap", "ours"),
        ("oracle", "oracle"),
        ("common practice", "common"),
        ("common practice, every arm at its own rate", "tuned"),
    ):
        wrong, undecided = _values(cells, f"wrong_{name}"), _values(cells, f"undecided_{name}") or [0.0]
        mean = sum(undecided) / len(undecided)
        out.append((says, f"{sum(wrong) / len(wrong):.4f}", f"{max(wrong):.3f}", f"{mean:.2f}"))
    return table((f"{len(cells)} cells; {covered}", "wrong, mean", "greatest", "undecided, mean"), out)


def _variants(rows: Sequence[Row]) -> str:
    says = {
        "clusters": "items in clusters of {cluster}",
        "samples": "{samples} answers an item",
        "seed_correlation": "seed effects of two arms correlated, {correlation}",
    }
    out = []
    for row in rows:
        if row["kind"] in says:
            world = row["world"]
            by_item = row.get("coverage_by_item")
            out.append(
                (
                    says[row["kind"]].format(**world),
                    f"{world['n']}, {world['seeds']}",
                    f"{row['coverage']['mean']:.3f}",
                    f"{row['coverage_pair']['mean']:.3f}",
                    f"{row['coverage_accuracy']['mean']:.3f}",
                    f"{row['familywise_error']['mean']:.3f}",
                    f"{by_item['mean']:.3f}" if by_item else "",
                )
            )
    header = ("", "items, seeds", "arm - zero-shot", "arm - arm", "accuracy", "family-wise error", "clusters ignored")
    return table(header, out)


def _plans(rows: Sequence[Row]) -> str:
    out = []
    for kind, asks in (("plan", "a difference of"), ("plan_regret", "a bound on regret, room of")):
        for row in _of(rows, kind):
            for what in ("items", "seeds"):
                planned = row.get(f"{what}_planned")
                world = row["world"]
                out.append(
                    (
                        f"{asks} {100 * row['target']:.0f} points; {world['n']} items, {world['seeds']} seeds, "
                        f"sd {100 * world['seed_sd'][0]:g}",
                        what,
                        f"{row[f'{what}_impossible']['mean']:.2f}",
                        f"{planned}" if planned else "none",
                        f"{row[f'{what}_power']['mean']:.2f}" if planned else "",
                    )
                )
    return table(("what is to be shown, and the study that asks", "more", "says none", "median plan", "power"), out)


def _floors(rows: Sequence[Row]) -> str:
    cells = _of(rows, "floor")
    names = ("passes", "passes_any", "passes_checkpoint", "passes_checkpoint_any")
    header = ("five arms like the trivial one", "one passes", "any", "one checkpoint passes", "any checkpoint")
    out = [
        (
            f"accuracy {row['world']['accuracy'][0]:g}, {row['world']['n']} items, "
            f"sd {100 * row['world']['seed_sd'][0]:g}",
            *(f"{row[name]['mean']:.3f}" for name in names),
        )
        for row in cells
    ]
    return table(header, out) if out else ""


def _ceilings(rows: Sequence[Row]) -> str:
    return table(
        (
            "arms",
            "items",
            "errors needed",
            "closed form",
            "of a checkpoint",
            "called a ceiling",
            "and yet an arm is shown to gain",
        ),
        [
            (
                f"{len(row['world']['seed_sd'])}",
                f"{row['world']['n']}",
                f"{row['errors_needed']}",
                f"more than {row['errors_at_most_by_formula']:.1f}",
                f"{row.get('errors_needed_checkpoint', '')}",
                f"{row['ceiling']['mean']:.2f}",
                f"{row['contradicted']['mean']:.3f}",
            )
            for row in _of(rows, "ceiling")
        ],
    )


def _looks(rows: Sequence[Row]) -> str:
    return table(
        ("three looks", "family-wise error by the schedule", "each at 5%"),
        [
            (says, *(f"{row[f'familywise_error_by_{what}{end}']['mean']:.3f}" for end in ("", "_without_schedule")))
            for row in _of(rows, "looks")
            for says, what in (("more items each time", "items"), ("more seeds each time", "seeds"))
        ],
    )
