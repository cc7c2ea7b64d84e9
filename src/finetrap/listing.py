"""Lists that commands print: models, methods, tasks, what a study would take, where its answer lies."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from finetrap.method import default_settings, is_trained, method
from finetrap.presets import PRESETS, here
from finetrap.results import ClaimResult, Results
from finetrap.store import Store
from finetrap.task import get_task, task


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def method_rows() -> list[dict[str, str]]:
    """Every method."""
    return [
        {
            "method": name,
            "trains": "yes" if is_trained(name) else "no",
            "what": _first_line(method[name].__doc__),
            "settings": ", ".join(
                key if value is inspect.Parameter.empty else f"{key}={value}"
                for key, value in default_settings(name).items()
            ),
        }
        for name in method.names()
    ]


def task_rows() -> list[dict[str, str]]:
    """Every task."""
    chosen = [get_task(name) for name in task.names()]
    return [
        {"task": t.name, "splits": ", ".join(t.splits), "scored": t.kind, "licence": t.license, "what": t.summary}
        for t in chosen
    ]


def model_rows() -> list[dict[str, str]]:
    """Every preset."""
    return [
        {
            "model": preset.name,
            "parameters": f"{preset.parameters / 1e6:.0f}M",
            "start": f"GGUF {preset.quantisation}" if preset.quantisation else "full precision",
            "aligned": "yes" if preset.aligned else "no",
            "paper names it": "yes" if preset.named_by_paper else "no",
            "licence": preset.license,
            "here": "yes" if here(preset) else f"no: finetrap models get {preset.name}",
        }
        for preset in PRESETS.values()
    ]


def claims_text(claims: Sequence[ClaimResult]) -> str:
    """Claims with their verdicts and evidence."""
    return "\n\n".join(
        "\n".join([f"{claim.id}: {claim.verdict.upper()}. {claim.says}", *(f"  {line}" for line in claim.evidence)])
        for claim in claims
    )


def claims_json(claims: Sequence[ClaimResult]) -> str:
    """The same for a program."""
    return json.dumps([claim.model_dump(mode="json") for claim in claims], indent=1)


def where_to_find(results: Results, folder: Path) -> str:
    """Where report and recommended weights lie, and the Python that loads them."""
    lines = [f"Report: {folder / 'report.html'} (or report.md)   Numbers: {folder / 'results.json'}"]
    store = Store(folder)
    for recommendation in results.recommendations:
        arm = recommendation.leader if recommendation.method == "undecided" else recommendation.method
        for planned in store.plan().planned:
            trial = planned.trial
            artifact = store.artifact(trial)
            if (trial.model.label, trial.task, trial.arm) == (
                recommendation.model,
                recommendation.task,
                arm,
            ) and artifact:
                adapter = (artifact / "adapter_config.json").is_file()
                library, kind = (
                    ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
                )
                lines += [
                    f"The weights of '{arm}' are in {artifact}. To load them:",
                    f"  from {library} import {kind}",
                    f"  model = {kind}.from_pretrained({str(artifact.resolve())!r})",
                ]
                if adapter:
                    lines.append("  model = model.merge_and_unload()")
                break
    return "\n".join(lines)
