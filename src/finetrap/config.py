"""The study: everything asked for, in one frozen value. Read from YAML, checked before torch is imported."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from finetrap.claim_spec import Names, check_claims
from finetrap.errors import StudyError, unknown
from finetrap.method import Arm, is_trained, parse_arm
from finetrap.records import TUNING_SEED, Sampled
from finetrap.rows.in_memory import shown_name
from finetrap.rows.own_data import OwnData, own_task
from finetrap.size import Size, check_size, with_size
from finetrap.spelling import Bytes, Claims, Models, ModelSpec, Seeds, Tasks
from finetrap.study_file import read_study_file
from finetrap.task import LM_EVAL, Task, get_task, task
from finetrap.user_input import Input

if TYPE_CHECKING:
    from finetrap.results import Results

__all__ = ["DEFAULT_ARMS", "REFERENCE_ARMS", "DType", "Keep", "ModelSpec", "Study", "Tune", "load_study", "make_study"]

DEFAULT_ARMS = ("constant", "zero_shot", "few_shot", "full", "lora", "dora")
REFERENCE_ARMS = ("constant", "zero_shot")
"""In every study: what the others are compared with."""

Keep = Literal["none", "best", "all"]
Tune = Literal["none", "quick", "standard", "thorough"]
DType = Literal["auto", "float32", "bfloat16"]


class Study(Input):
    """Models x tasks x arms x seeds, and how they are compared."""

    name: str = Field(default="study", min_length=1, max_length=100)
    """Also names the folder: finetrap-NAME."""
    models: Models = Field(min_length=1)
    """Presets, Hub ids, local folders or GGUF files; in Python also a loaded model, or (model, tokenizer)."""
    tasks: Tasks = Field(min_length=1)
    """What the models are adapted to and tested on: names of `finetrap tasks`, or data of one's own."""
    data_dir: Path | None = None
    """Folder with copies of Hub data sets, as ORG/NAME or NAME below it."""
    arms: Names = DEFAULT_ARMS
    """METHOD, METHOD:setting=value, NAME=METHOD:setting=value or NAME=PATH of a checkpoint; `default`: the six."""
    seeds: Seeds = Field(default=(0,), min_length=1)
    """A list, or how many. A seed decides data order and initialisation, or the draw of shots."""
    size: str | None = None
    """quick, standard, thorough or a time (45m, 2h): what decides tune, epochs, seeds and limits that are not given."""
    shot_draws: int | None = Field(default=None, ge=1)
    """Draws of shots, of arms that are shown solved examples. By default 5 where there are several seeds: cheap."""
    learning_rate: float | None = Field(default=None, gt=0)
    """One rate for every trained arm that does not set its own."""
    tune: Tune = "none"
    """How far each arm is tuned that does not give its learning rate, shots or template: all such arms alike."""
    epochs: int | None = Field(default=None, ge=1)
    """Likewise: passes over the training examples."""
    batch_size: int | None = Field(default=None, ge=1)
    """Likewise: sequences in an optimiser step."""
    limit_train: int | None = Field(default=None, ge=1)
    """Training examples at most."""
    limit_validation: int = Field(default=200, ge=10)
    """Validation examples at most, and at most a quarter of limit_train; they are cut from train."""
    limit_test: int | None = Field(default=None, ge=1)
    """Test examples at most. Raising it later re-uses the weights that `keep` kept."""
    retention: Names = ("hellaswag", "arc_easy", "wikitext2", "divergence", "ifeval")
    """Tasks that show what is forgotten; siblings of the target are left out, and `ifeval` of a model without chat."""
    limit_retention: int = Field(default=200, ge=10)
    """Examples of each retention task at most."""
    limit_instructions: int = Field(default=40, ge=1)
    """Of a retention task that is answered at length, such as `ifeval`, at most; it takes longest."""
    out_of_distribution: Names = ()
    """Further tasks that each arm is tested on, and not trained for."""
    samples: int | None = Field(default=None, ge=1)
    """Answers that are drawn of each test item whose answer is generated, for its score the share that is right.
    By default the likeliest answer alone, which is another question."""
    temperature: float = Field(default=1.0, gt=0)
    """By which logits are divided where answers are drawn."""
    margin: float = Field(default=0.02, gt=0, lt=1)
    """A difference in accuracy (a fraction) that would not change the choice."""
    forgetting_tolerance: float = Field(default=0.02, gt=0, lt=1)
    """Loss of retention (a fraction of accuracy) that would be accepted."""
    bits_per_byte_tolerance: float = Field(default=0.05, gt=0)
    """Loss on general text, in bits per byte, that would be accepted."""
    rescue: bool = False
    """Try again each trained arm that does harm: half-way back, at a lower rate, with general text mixed in."""
    queries: int = Field(default=100_000, ge=0)
    """How many answers an arm is to give in its life: shots are paid for at every one, training once."""
    max_size: Bytes | None = None
    """Bytes of weights that the device holds, as 300MB or 1.5GiB; arms that ship more are not recommended."""
    looks: Literal["one", "many"] = "one"
    """one: the first answer has the whole 5%, and is the last with a claim; many: it has 4%, later ones the rest."""
    dtype: DType = "auto"
    """auto: bfloat16 where the device computes in it, else float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    keep: Keep = "best"
    """Weights to keep: none; best: adapters, and the recommended arm's full model; all."""
    claims: Claims = ()
    """What is said of the arms, to be supported or refuted by this study."""

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, values: Any) -> Any:
        return with_size(values) if isinstance(values, dict) else values

    @field_validator("size")
    @classmethod
    def _size_is_known(cls, size: str | None) -> str | None:
        try:
            return None if size is None else check_size(size)
        except StudyError as error:
            raise error.at("size") from None

    @field_validator("arms")
    @classmethod
    def _arms_expand(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        expanded: list[str] = []
        names: set[str] = set()
        for index, entry in enumerate(arms):
            for text in DEFAULT_ARMS if entry == "default" else (entry,):
                try:
                    parsed = parse_arm(text)
                except StudyError as error:
                    raise error.at("arms", index) from None
                names.add(parsed.name)
                if parsed.method == "checkpoint":
                    # What the study's records say stays true in another folder, and when the checkpoint has gone.
                    text = f"{parsed.name}=checkpoint:path={Path(parsed.settings['path']).resolve()}"
                expanded.append(text)
        return (*(arm for arm in REFERENCE_ARMS if arm not in names), *expanded)

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        kind, colon, index = device.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (colon and not index.isdigit()):
            raise unknown("device", device, ("auto", "cpu", "cuda", "cuda:0", "mps")).at("device")
        return device

    @model_validator(mode="after")
    def _tasks_exist(self) -> "Study":
        for field in ("tasks", "retention", "out_of_distribution"):
            for index, name in enumerate(getattr(self, field)):
                if isinstance(name, str) and not name.startswith(LM_EVAL) and name not in task.names():
                    raise task.unknown(name).at(field, index)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Study":
        names = [arm.name for arm in self.parsed_arms()]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise StudyError(f"two arms are called '{double[0]}'; write NAME=METHOD:... to give one another name.")
        for reference in REFERENCE_ARMS:
            chosen = next((arm for arm in self.parsed_arms() if arm.name == reference), None)
            if chosen is None or chosen.method != reference:
                raise StudyError(
                    f"the arm '{reference}' has to be the method {reference}: others are compared with it."
                )
        self._check_names()
        check_claims(
            self.claims, arms=names, models=[shown_name(model.name) for model in self.models], tasks=self.task_names
        )
        self._check_parents()
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise StudyError(f"seeds {list(self.seeds)}: write different numbers that are not negative.")
        if TUNING_SEED in self.seeds:
            raise StudyError(f"seed {TUNING_SEED} is that of tuning; write another.")
        if self.limit_test is not None and self.limit_test < 10:
            raise StudyError(f"limit_test is {self.limit_test}: fewer than 10 test items cannot show anything.")
        if self.samples is None and self.temperature != 1:
            raise StudyError(
                f"temperature {self.temperature:g} is that of drawn answers; say how many with samples (--samples)."
            ).at("temperature")
        self.check_targets(read=False)
        return self

    def _check_parents(self) -> None:
        arms = {arm.name: arm for arm in self.parsed_arms()}
        with_weights = [arm.name for arm in arms.values() if is_trained(arm.method) or arm.method == "checkpoint"]
        for arm in arms.values():
            if arm.method == "interpolated" and arm.settings["of"] not in with_weights:
                raise StudyError(
                    f"arm '{arm.name}': of={arm.settings['of']} is no arm of the study that trains or is a checkpoint; "
                    f"there is: {', '.join(with_weights) or 'none (add --arm full)'}."
                )

    def _check_names(self) -> None:
        for kind, names in (("model", [model.name for model in self.models]), ("task", list(self.task_names))):
            for index, name in enumerate(names):
                if name in names[:index]:
                    own = kind == "task" and isinstance(self.tasks[index], OwnData)
                    mend = "give one a `name:`" if own else "leave one out"
                    raise StudyError(f"the {kind} '{name}' is named twice; {mend}.").at(f"{kind}s", index)

    def check_targets(self, *, read: bool = True) -> None:
        """Check that the targets can be trained on, and that tasks out of distribution are asked as they are.

        A task of lm-evaluation-harness is known when its data is; without `read` it is passed over.

        Raises:
            StudyError: one cannot, or is not.
        """

        def known(names: Sequence[str | OwnData]) -> list[str]:
            return [name for name in names if isinstance(name, str) and (read or not name.startswith(LM_EVAL))]

        own = [entry for entry in self.tasks if isinstance(entry, OwnData)]
        kinds = {*(entry.kind for entry in own), *(get_task(name).kind for name in known(self.tasks))}
        whole = len(own) + len(known(self.tasks)) == len(self.tasks)
        if self.samples is not None and whole and "generate" not in kinds:
            raise StudyError(
                f"samples: nothing is drawn of {', '.join(self.task_names)}, which is answered by likelihood; leave "
                f"samples out, or take a task whose answers are generated."
            ).at("samples")
        for name in known(self.out_of_distribution) if kinds else ():
            if {get_task(name).kind} != kinds:
                raise StudyError(
                    f"out_of_distribution task '{name}' is scored by {get_task(name).kind}, and the target by "
                    f"{' or '.join(sorted(kinds))}: its prompt and shots would not fit."
                )
        for name in known(self.tasks):
            target = get_task(name)
            if target.kind in ("text", "divergence"):
                raise StudyError(f"task '{name}' measures general text; it can be a retention task, not a target.")
            if "train" not in target.splits:
                raise StudyError(
                    f"task '{name}' has no train split, which every study needs (validation and shots come from "
                    f"it too); name it under out_of_distribution and another task, such as gsm8k, as target."
                )

    @property
    def task_names(self) -> tuple[str, ...]:
        """The target tasks by name."""
        return tuple(entry.task_name if isinstance(entry, OwnData) else entry for entry in self.tasks)

    @property
    def sampled(self) -> Sampled | None:
        """How answers to test items are drawn; None where the likeliest is given."""
        return None if self.samples is None else Sampled(samples=self.samples, temperature=self.temperature)

    def task(self, name: str) -> Task:
        """A task of this study: of its own data, or one that everyone has.

        Raises:
            StudyError: the data cannot be read, or a row is wrong.
        """
        own = next((e for e in self.tasks if isinstance(e, OwnData) and e.task_name == name), None)
        return own_task(own, self.data_dir) if own is not None else get_task(name, self.data_dir)

    def parsed_arms(self) -> tuple[Arm, ...]:
        """The arms with complete settings; the study's own training settings stand in for those not given."""
        shared = {
            key: value for key in ("learning_rate", "epochs", "batch_size") if (value := getattr(self, key)) is not None
        }
        arms = []
        for text in self.arms:
            arm = parse_arm(text)
            if self.tune == "none" or (arm.tunes or "") in shared:
                arm = replace(arm, tunes=None)
            if is_trained(arm.method):
                given = {pair.partition("=")[0].strip() for pair in text.partition(":")[2].split(",")}
                filled = {key: value for key, value in shared.items() if key not in given}
                arm = replace(arm, settings={**arm.settings, **filled})
            arms.append(arm)
        return tuple(arms)

    @property
    def shot_seeds(self) -> tuple[int, ...]:
        """Seeds of arms that are shown solved examples: the study's, and more up to `shot_draws`."""
        several = max(5, len(self.seeds)) if len(self.seeds) > 1 else 1
        further = (seed for seed in range(len(self.seeds) + (self.shot_draws or several)) if seed not in self.seeds)
        return (*self.seeds, *further)[: self.shot_draws or several]

    def run(self, folder: str | Path | None = None, *, progress: bool = True) -> "Results":
        """Run all that is missing in `folder` (default: finetrap-NAME here) and answer.

        `progress` is shown as a terminal or a notebook can show it, and elsewhere as a line a trial on stderr. What an
        interrupt leaves is kept, and the same call goes on from there.

        Raises:
            StudyError: the input is wrong; nothing is half-written.
        """
        from finetrap.progress import Reporter, reporter_here
        from finetrap.study import run

        folder = Path(folder) if folder else self.default_folder()
        reporter = reporter_here() if progress else Reporter()
        try:
            return run(self, folder, reporter=reporter)
        except KeyboardInterrupt:
            reporter.say(f"interrupted. What is finished is kept in {folder}; the same call goes on from there.")
            raise

    def stated(self) -> dict[str, Any]:
        """The settings to write down: all that are not the default, and all that a size would decide."""
        every = self.model_dump(mode="json")
        decided = {field.name: every[field.name] for field in fields(Size)} if self.size is not None else {}
        return {**self.model_dump(mode="json", exclude_defaults=True), **decided}

    def default_folder(self) -> Path:
        """finetrap-NAME, in the current folder."""
        from finetrap.records import slug

        return Path(f"finetrap-{slug(self.name)}")


def make_study(values: dict[str, Any], *, where: Callable[[tuple[str | int, ...]], str] = lambda _: "") -> Study:
    """A study out of plain values.

    `where` says where a value stands, for the message.

    Raises:
        StudyError: a key is unknown, or a value is missing or wrong.
    """
    try:
        return Study.model_validate(values)
    except StudyError as error:
        raise StudyError(f"{where(error.location)}{error}") from None


def load_study(path: str | Path, overrides: dict[str, Any] | None = None) -> Study:
    """A study out of a YAML file, with values that the command line overrides.

    Raises:
        StudyError: there is no such file, it is not YAML, or it is no study; with file and line.
    """
    path = Path(path)
    values, line_of = read_study_file(path)
    overrides = overrides or {}

    def where(location: tuple[str | int, ...]) -> str:
        if location and location[0] in overrides:
            return ""
        return f"{path}:{line_of(location)}: " if location else f"{path}: "

    values = {"name": path.stem, **values, **overrides}
    return make_study(values, where=where)
