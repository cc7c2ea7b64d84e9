"""Tasks of lm-evaluation-harness as tasks of a study: its prompts, choices, filters and metrics, its data.

Shots are drawn by finetrap, from train, as for every task; what is equal item by item is the harness at 0 shots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetrap.errors import StudyError
from finetrap.presets import file_sha256
from finetrap.quiet import quiet_harness
from finetrap.records import digest
from finetrap.scoring import Verdict, occurs
from finetrap.task import LM_EVAL, Example, Kind, Layout, Split, Task, get_task, task

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

Doc = Mapping[str, Any]

KINDS: dict[str, Kind] = {
    "multiple_choice": "choice",
    "generate_until": "generate",
    "loglikelihood_rolling": "text",
}
"""What is asked there, and how a study scores it."""

_NO_ANSWER = "[invalid]"
"""What the harness's filters put where they find nothing."""


def harness_task(name: str) -> Task:
    """The task behind `lm_eval:NAME`, or `lm_eval:FILE.yaml` for one of the user's own.

    Raises:
        StudyError: there is none, its data cannot be had, or it cannot be scored item by item.
    """
    path = Path(name.removeprefix(LM_EVAL)).expanduser()
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.is_file():
        raise StudyError(f"there is no task file {path}.")
    return _made(name, file_sha256(path) if is_file else "")


@lru_cache(maxsize=64)
def _made(name: str, digest_of_file: str) -> Task:
    try:
        import lm_eval
    except ImportError:
        raise StudyError(
            f"'{name}' is a task of lm-evaluation-harness, which is not installed; pip install 'finetrap[lm-eval]'."
        ) from None
    with quiet_harness():
        source = _Source(name, _loaded(name))
        _check(source)
        version = digest([source.task.VERSION, lm_eval.__version__, digest_of_file])
        return source.made(version=int(version[:8], 16))


def _loaded(name: str) -> "ConfigurableTask":
    from lm_eval.api.task import ConfigurableTask

    bare = name.removeprefix(LM_EVAL)
    manager = _manager(bare)
    if bare in (*manager.all_groups, *manager.all_tags):
        raise _group(name)
    try:
        found = manager.load([bare])
    except Exception as error:
        # A task's file and the data it reads raise what they please; each is an input that the user can mend.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise StudyError(f"the task '{name}' cannot be loaded: {reason}.") from error
    if found.get("groups"):
        raise _group(name)
    (made,) = found["tasks"].values()
    if not isinstance(made, ConfigurableTask):
        raise StudyError(f"the task '{name}' is written in Python; a study takes those that a YAML file describes.")
    return made


def _group(name: str) -> StudyError:
    return StudyError(f"'{name}' is a group of tasks; name those of it that you want (`lm_eval ls tasks`).")


def _manager(bare: str) -> "TaskManager":
    """What knows the task; the harness's whole index takes ten seconds, a folder's nothing."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if bare.endswith((".yaml", ".yml")):
        return TaskManager(include_defaults=False)
    for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"):
        if path.stem == bare:
            near = TaskManager(include_path=str(path.parent), include_defaults=False)
            if bare in near.all_subtasks:
                return near
    manager = TaskManager()
    if bare not in manager.all_tasks:
        close = get_close_matches(bare, manager.all_tasks, n=1, cutoff=0.5)
        hint = f"did you mean '{LM_EVAL}{close[0]}'?" if close else "`lm_eval ls tasks` lists them."
        raise StudyError(f"lm-evaluation-harness has no task '{bare}'; {hint}")
    return manager


class _Source(NamedTuple):
    """A task of the harness, under the name that a study gives it."""

    name: str
    task: "ConfigurableTask"

    @property
    def kind(self) -> Kind:
        return KINDS[self.task.OUTPUT_TYPE]

    @property
    def description(self) -> str:
        """What stands in front of everything; empty where it differs from question to question."""
        text = str(self.task.config.description or "")
        return "" if "{{" in text or self.kind == "text" else text

    def made(self, *, version: int) -> Task:
        """The task of a study."""
        bare = self.name.removeprefix(LM_EVAL)
        read = lru_cache(maxsize=None)(self._read)
        config = self.task.config
        made = Task(
            name=self.name,
            summary=f"lm-evaluation-harness: {bare}",
            kind=self.kind,
            license="its data set's",
            load=lambda split: tuple(example for example, _ in read(split).values()),
            splits=("train", "test") if self.task.has_training_docs() else ("test",),
            system=self.description,
            layout=Layout("", config.target_delimiter, config.fewshot_delimiter, "", predicts_beginning=True),
            version=version,
            siblings=get_task(bare).siblings if bare in task.names() else frozenset(),
        )
        if self.kind == "choice":
            return replace(made, blind_prompt=_ending([example.question for example in made.load("test")]))
        if self.kind == "text":
            return made
        rules = _Rules.of(self.task)
        shown = list(read("test").values())[:50]
        strict = sum(rules.verdict(example.reference, example.gold, doc).strict for example, doc in shown)

        def judge(text: str, example: Example) -> Verdict:
            doc = (read("test").get(example.id) or read("train")[example.id])[1]
            return rules.verdict(text, example.gold, doc)

        return replace(
            made,
            judge=judge,
            rule=f"lm-evaluation-harness's {rules.metric} after its filter {rules.lenient}",
            states_format=2 * strict > len(shown),
            max_new_tokens=rules.max_new_tokens,
            stops=rules.until,
        )

    def _read(self, split: Split) -> dict[str, tuple[Example, Doc]]:
        """By id: every example of a split, and what the harness knows of it."""
        with quiet_harness():
            docs = self.task.training_docs() if split == "train" else self.task.eval_docs
            make = {"choice": self._choice, "generate": self._generated, "text": self._text}[self.kind]
            examples = (make(f"{self.task.config.task}-{split}-{index}", doc) for index, doc in enumerate(docs))
            return {example.id: (example, doc) for example, doc in zip(examples, docs, strict=True)}

    def _question(self, doc: Doc) -> str:
        asked = self.task.fewshot_context(doc=doc, num_fewshot=0, gen_prefix=self.task.doc_to_prefix(doc))
        return str(asked).removeprefix(self.description)

    def _text(self, id: str, doc: Doc) -> Example:
        return Example(id, str(self.task.doc_to_target(doc)))

    def _choice(self, id: str, doc: Doc) -> Example:
        choices = tuple(map(str, self.task.doc_to_choice(doc)))
        target = self.task.doc_to_target(doc)
        gold = choices.index(target) if target in choices else target
        if not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise StudyError(
                f"task '{self.name}': of {id} the right choice is {target!r}, which is none of its choices."
            )
        return Example(id, self._question(doc), choices[gold], str(gold), choices, apart="\n".join(choices))

    def _generated(self, id: str, doc: Doc) -> Example:
        reference = _reference(self.task, doc)
        return Example(id, self._question(doc), reference, _Rules.of(self.task).gold(reference, doc))


def _reference(harness: "ConfigurableTask", doc: Doc) -> str:
    """What the harness shows as an answer: of several that are right the first."""
    target: Any = harness.doc_to_target(doc)
    if harness.config.doc_to_choice is not None:
        target = harness.doc_to_choice(doc)[target]
    return str(target[0] if isinstance(target, list) else target)


class _Rules(NamedTuple):
    """How the harness scores what was generated."""

    task: "ConfigurableTask"
    metric: str
    lenient: str
    """The filter that decides."""
    strict: str
    until: tuple[str, ...]
    max_new_tokens: int

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, harness: "ConfigurableTask") -> "_Rules":
        """The rules of a task.

        Raises:
            StudyError: no metric of it scores one answer.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        settings = normalize_gen_kwargs(harness.config.generation_kwargs or {})
        filters = [pipeline.name for pipeline in harness._filters]
        lenient = "flexible-extract" if "flexible-extract" in filters else filters[0]
        strict = "strict-match" if "strict-match" in filters else lenient
        until = tuple(stop for stop in settings["until"] if stop)
        rules = cls(harness, "", lenient, strict, until, settings["max_gen_toks"])
        doc = harness.eval_docs[0]
        values = rules.values(rules.filtered(_reference(harness, doc), doc)[lenient], doc)
        higher = harness.higher_is_better()
        single = [name for name, value in values.items() if isinstance(value, int | float) and higher.get(name, True)]
        if not single:
            raise StudyError(
                f"task '{LM_EVAL}{harness.config.task}' scores no single answer ({', '.join(values)}); a study "
                f"compares item by item, and takes a task with a metric such as exact_match."
            )
        return rules._replace(metric=next((name for name in ("exact_match", "acc") if name in single), single[0]))

    def filtered(self, text: str, doc: Doc) -> dict[str, Any]:
        """What each filter leaves of an answer."""
        from lm_eval.api.instance import Instance

        instance = Instance("generate_until", doc, ("", {}), 0, resps=[text])
        for pipeline in self.task._filters:
            pipeline.apply([instance])
        return dict(instance.filtered_resps)

    def values(self, filtered: object, doc: Doc) -> dict[str, Any]:
        """Each metric of an answer."""
        return dict(self.task.process_results(doc, [filtered]))

    def right(self, filtered: object, doc: Doc) -> bool:
        """Whether an answer has full marks; a part of them counts as wrong."""
        return float(self.values(filtered, doc)[self.metric]) >= 1

    def gold(self, reference: str, doc: Doc) -> str:
        """The answer alone, where the filter finds it in the reference."""
        found = self.filtered(reference, doc)[self.lenient]
        return found if isinstance(found, str) and self.right(found, doc) else reference

    def verdict(self, text: str, gold: str, doc: Doc) -> Verdict:
        """What an answer says, cut where the harness ends it, and how it scores."""
        from lm_eval.models.utils import postprocess_generated_text

        said = postprocess_generated_text(text, list(self.until), None)
        found = self.filtered(said, doc)
        lenient, strict = found[self.lenient], found[self.strict]
        return Verdict(
            extracted=None if lenient == _NO_ANSWER else str(lenient),
            correct=self.right(lenient, doc),
            strict=self.right(strict, doc),
            anywhere=occurs(gold, said),
            formatted=strict != _NO_ANSWER,
        )


def _ending(questions: Sequence[str]) -> str:
    """The last lines of all questions, where these are the same: "Answer:"."""
    # Whatever the least and the greatest in order end with, all in between do too.
    backwards = [question[::-1] for question in questions]
    pairs = zip(min(backwards), max(backwards), strict=False)
    alike = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))[::-1]
    return alike.partition("\n")[2]


def _check(source: _Source) -> None:
    """Check that a study can ask and score the task as the harness does.

    Raises:
        StudyError: it cannot; with every reason.
    """
    harness, config = source.task, source.task.config
    settings = config.generation_kwargs or {}
    sampled = settings.get("do_sample") or float(settings.get("temperature") or 0) > 0 or config.repeats > 1
    choice = harness.OUTPUT_TYPE == "multiple_choice"
    reasons = {
        f"it is scored by {harness.OUTPUT_TYPE}; a study takes {', '.join(KINDS)}": harness.OUTPUT_TYPE not in KINDS,
        "it shows pictures or plays sounds": getattr(harness, "MULTIMODAL", False),
        "it runs code that the model wrote": getattr(harness, "UNSAFE_CODE", False),
        "its answers are sampled, and a study takes the likeliest": sampled,
        "its choices stand in the question": choice and harness.multiple_input,
        "several of its choices are right": choice and harness.multiple_target,
        "its choices are scored by a function of its own": choice and callable(config.process_results),
    }
    wrong = [reason for reason, is_so in reasons.items() if is_so]
    if wrong:
        raise StudyError(f"the task '{source.name}' cannot be in a study: {'; '.join(wrong)}.")
