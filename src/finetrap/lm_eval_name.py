"""Makes `lm_eval --model finetrap` known. PyTorch calls `register` when it is imported (entry point `torch.backends`).

It brings no backend. lm-evaluation-harness looks for models in its own package only, but seeds PyTorch before it does:
that is when a model of another package can be named to it.
"""

import sys


def register() -> None:
    """Name the model to the harness, if it is the harness that imports PyTorch; the engine is loaded when asked for."""
    if "lm_eval" not in sys.modules:
        return
    try:
        import lm_eval.models  # noqa: F401  # its own names, which it registers only where there are none yet
        from lm_eval.api.registry import model_registry
    except ImportError:  # an older harness: it goes on without finetrap
        return
    if "finetrap" not in model_registry:
        model_registry.register("finetrap", target="finetrap.lm_eval_model:FinetrapLM")
