"""What others found for models of a kind: prior advice, which stands in for no evidence and is labelled so."""

SOURCE = "arXiv 2606.06920"
"""The Fine-Tuning Trap: its advice as its authors state it, from their own models and tasks."""


def prior_advice(parameters: int, *, aligned: bool) -> str | None:
    """Advice by size and alignment of the model, in a sentence; None where there is none."""
    advice = []
    if parameters < 500e6:
        advice.append("no full fine-tuning of models under 500M parameters")
    if aligned and parameters < 1e9:
        advice.append("adapters (LoRA, DoRA) for aligned models under 1B")
    if not advice:
        return None
    return f"Prior advice, not evidence of this study: {SOURCE} advises {' and '.join(advice)}."
