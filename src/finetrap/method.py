"""What a method is. Each method is one function in `methods/`, found by being there.

A method's keyword arguments are its settings; a method that trains also takes those of
`Training`. An arm is a method with settings under a name: `careless=full:learning_rate=1e-3`.
"""

import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from finetrap.errors import StudyError, unknown
from finetrap.registry import Registry

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Training:
    """How a model is trained; the same for every method but for the learning rate."""

    learning_rate: float
    """The highest rate, reached after warmup."""
    epochs: int = 1
    """Passes over the training examples."""
    batch_size: int = 16
    """Sequences in one optimiser step, whatever fits into memory at a time."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; it then falls linearly to zero."""
    weight_decay: float = 0.0
    """AdamW's decay (arXiv:1711.05101)."""
    clip: float = 1.0
    """The norm to which gradients are clipped."""
    replay: float = 0.0
    """Share of the training rows that are general text, to forget less of it (arXiv:1811.11682)."""


@dataclass(frozen=True)
class Method:
    """A way of adapting a model, with its settings filled in."""

    training: Training | None = None
    """None where nothing is trained."""
    prepare: "Callable[[PreTrainedModel], Module] | None" = None
    """From the base model to the one to train; which parameters train is said by `requires_grad`."""
    adapter: bool = False
    """Whether what is trained is a PEFT adapter: saved as one, merged to be evaluated."""
    shots: int = 0
    """Solved examples in front of the question."""
    instruction: str = ""
    """Text in front of what the task asks."""
    trivial: bool = False
    """The arm that does not read the question."""
    checkpoint: Path | None = None
    """What the user already trained: a PEFT adapter or a whole model."""
    of: str | None = None
    """The arm between whose weights and the untouched ones it lies."""
    weight: float = 1.0
    """Where between: 0 is the untouched model, 1 that arm."""


method = Registry("method", "finetrap.methods", Method)

Setting = str | int | float

_LEARNING_RATES: dict[Callable[..., Method], float] = {}
"""Of each method that trains, by its function, the default."""
_PRIORS: dict[Callable[..., Method], float] = {}
"""Likewise, where tuning begins for a model of `PRIOR_WIDTH`."""
_CHOICES: dict[Callable[..., Method], tuple[str, tuple[Setting, ...]]] = {}
"""Of each method that prompts and can be tuned: the setting, and its values."""
PRIOR_WIDTH = 2000
"""Hidden size for which priors are given."""
PRIOR_POWER = 0.5
"""How the best rate falls with width. Fits for two families gave 0.08 (Qwen 3) and 0.78 (Llama 3) ("LoRA Without
Regret", Schulman and Thinking Machines 2025); this lies between, and tuning searches a factor of three to both sides.
"""
_NEVER_ZERO = frozenset({"learning_rate", "clip"})
"""Settings with which nothing would be trained at zero."""
_SHARES = frozenset({"warmup", "dropout", "replay"})
"""Settings that lie between 0 and 1."""
_UP_TO_ONE = frozenset({"weight"})
"""Settings that may be 1 as well."""


def trains(
    *, learning_rate: float, prior: float | None = None
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Register a method that trains, with its default learning rate and the `prior` around which tuning searches.

    The prior is for a hidden size of `PRIOR_WIDTH`; without one the default is taken for it. The best rate of an
    adapter is about ten times that of full fine-tuning, whatever its rank ("LoRA Without Regret", 2025), and adapters
    compared at one rate, or full fine-tuning at theirs, tell of the rate and not of the method (arXiv:2602.04998).
    """

    def register(function: Callable[..., Method]) -> Callable[..., Method]:
        _LEARNING_RATES[function] = learning_rate
        _PRIORS[function] = learning_rate if prior is None else prior
        return method(function)

    return register


def chooses(**choices: tuple[Setting, ...]) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Register a method that prompts, with the values of the one setting that tuning tries."""
    ((setting, values),) = choices.items()

    def register(function: Callable[..., Method]) -> Callable[..., Method]:
        _CHOICES[function] = (setting, values)
        return method(function)

    return register


def tunable(name: str) -> str | None:
    """The setting of the method called `name` that tuning chooses, if there is one."""
    if is_trained(name):
        return "learning_rate"
    return _CHOICES[method[name]][0] if method[name] in _CHOICES else None


def choices(name: str) -> tuple[Setting, ...]:
    """The values that tuning tries of a method that prompts."""
    return _CHOICES[method[name]][1]


def learning_rate_prior(name: str, width: int) -> float:
    """Where to search for the best rate of a method that trains, on a model of hidden size `width`.

    prior x (2000 / width) ^ 0.5, after the form that "LoRA Without Regret" (2025) fitted.
    """
    return _PRIORS[method[name]] * math.pow(PRIOR_WIDTH / width, PRIOR_POWER)


def is_trained(name: str) -> bool:
    """Whether the method called `name` trains anything."""
    return method[name] in _LEARNING_RATES


def default_settings(name: str) -> dict[str, Any]:
    """All settings of the method called `name` with their default values.

    A setting without a default (a checkpoint's path) has the value `inspect.Parameter.empty`.
    """
    parameters = inspect.signature(method[name]).parameters
    settings = {key: parameter.default for key, parameter in parameters.items() if key != "training"}
    if is_trained(name):
        settings |= {setting.name: setting.default for setting in fields(Training)}
        settings["learning_rate"] = _LEARNING_RATES[method[name]]
    return settings


def complete_settings(name: str, given: dict[str, str | int | float]) -> dict[str, Any]:
    """The settings of the method called `name`: those given, converted and checked, and the defaults.

    Raises:
        StudyError: no such method or setting, a value of the wrong type or out of range, or one is missing.
    """
    settings = default_settings(name)
    types = {**get_type_hints(method[name]), **(get_type_hints(Training) if is_trained(name) else {})}
    for key, value in given.items():
        if key not in settings:
            raise unknown(f"setting of method '{name}'", key, settings)
        settings[key] = _convert(f"{name}:{key}", value, types.get(key, type(settings[key])))
        if key in _NEVER_ZERO and settings[key] == 0:
            raise StudyError(f"{name}:{key}={value}: expected a number above 0.")
        if key in _SHARES and settings[key] >= 1:
            raise StudyError(f"{name}:{key}={value}: expected a number from 0 to below 1.")
        if key in _UP_TO_ONE and settings[key] > 1:
            raise StudyError(f"{name}:{key}={value}: expected a number from 0 to 1.")
    missing = [key for key, value in settings.items() if value is inspect.Parameter.empty]
    if missing:
        raise StudyError(f"method '{name}' needs {', '.join(missing)}: --arm NAME={name}:{missing[0]}=...")
    return settings


def _convert(where: str, value: str | int | float, kind: type) -> str | int | float:
    if kind not in (str, int, float):
        raise StudyError(f"{where}: a setting is an int, a float or a str, and the method annotates it as {kind}.")
    try:
        converted: str | int | float = kind(str(value))
    except ValueError:
        raise StudyError(f"{where}={value}: expected {kind.__name__}.") from None
    if isinstance(converted, int | float) and not (math.isfinite(converted) and converted >= 0):
        raise StudyError(f"{where}={value}: expected a finite number that is not negative.")
    if kind is int and converted == 0:
        raise StudyError(f"{where}={value}: expected at least 1.")
    return converted


def build(name: str, settings: dict[str, Any]) -> Method:
    """The method called `name` with complete settings (`complete_settings`)."""
    own = dict(settings)
    if is_trained(name):
        # An older record lacks what came since.
        training = {setting.name: own.pop(setting.name, setting.default) for setting in fields(Training)}
        own["training"] = Training(**training)
    return method.make(name, **own)


@dataclass(frozen=True)
class Arm:
    """A method with its settings under a name."""

    name: str
    method: str
    settings: dict[str, Any]
    tunes: str | None = field(default=None, compare=False)
    """The setting that tuning may choose, because it was not given."""


def parse_arm(text: str) -> Arm:
    """An arm out of `METHOD`, `METHOD:key=value,...`, `NAME=METHOD:...` or `NAME=PATH`.

    Raises:
        StudyError: it is none of these, or the method, a setting or the path does not exist.
    """
    head, _, tail = text.partition(":")
    name, equals, target = head.partition("=")
    name = name.strip()
    if not name:
        raise StudyError(f"arm '{text}' has no name; write METHOD or NAME=METHOD:setting=value.")
    if equals and not re.fullmatch(r"[\w.+-]{1,60}", name):
        raise StudyError(f"arm name '{name}': write letters, digits and . + - _, 60 at most.")
    if equals and target not in method.names():
        # Unlike Path's, these take a name that is too long, or a user who is not there, for what it is: no file here.
        path = Path(os.path.expanduser(text.partition("=")[2]))
        if os.path.exists(path):
            return Arm(name, "checkpoint", complete_settings("checkpoint", {"path": str(path.resolve())}))
        if "/" in target or "\\" in target:
            raise StudyError(f"arm '{name}': there is no checkpoint at {path}.")
        raise method.unknown(target)
    chosen = target if equals else name
    given: dict[str, str | int | float] = {}
    # A path may hold commas.
    for pair in [tail] if chosen == "checkpoint" and tail else filter(None, tail.split(",")):
        key, separator, value = pair.partition("=")
        if not separator or not value:
            raise StudyError(f"arm '{text}': '{pair}' is not of the form setting=value.")
        if key.strip() in given:
            raise StudyError(f"arm '{text}': {key.strip()} is set twice.")
        given[key.strip()] = value.strip()
    settings, setting = complete_settings(chosen, given), tunable(chosen)
    return Arm(name, chosen, settings, tunes=None if setting in given else setting)
