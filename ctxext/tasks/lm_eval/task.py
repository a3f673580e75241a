"""Tasks of lm-evaluation-harness."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.errors import CtxextError, UsageError
from ctxext.notation import Count
from ctxext.tasks import register
from ctxext.tasks.base import Data, HarnessTask, Score
from ctxext.text import counted

RESAMPLES = 1000  # of metrics whose standard error has no closed form


class _Metric:
    """The task's first metric on an instance; on the class, that it is the task's."""

    def __get__(self, instance: LmEval | None, owner: type[LmEval]) -> str:
        return "the task's first" if instance is None else instance.first_metric()


class _Configs(NamedTuple):
    name: str
    sha256: str


@register("lm-eval")
@dataclass(frozen=True)
class LmEval(HarnessTask):
    """Any task or group of lm-evaluation-harness, by name or YAML file, which it runs by its own
    rules: what is longer than the length loses its beginning. Examples are drawn with the seed.
    """

    metric = _Metric()
    positional = "task"
    version = 2
    libraries = ("lm_eval",)

    task: str
    shots: Count | None = field(
        default=None,
        metadata={"help": "shots (examples before each question; default the task's own)"},
    )
    include: str | None = field(
        default=None, metadata={"help": "include (a folder with YAML files of your own)"}
    )

    @property
    def uses_data(self) -> bool:
        """No: the task names its own."""
        return False

    def first_metric(self) -> str:
        """The metric that the task's config names first."""
        from ctxext.tasks.lm_eval import catalogue

        named = catalogue.metric(catalogue.find(self.task, self.include))
        if named is not None:
            return named
        (task, *_) = self._load()["tasks"].values()
        return str(next(iter(task.higher_is_better())))

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What lm_eval says of the metric; None where it says nothing, or its tasks differ."""
        tasks = self._load()["tasks"].values()
        said = {task.higher_is_better().get(self.metric) for task in tasks}
        return said.pop() if len(said) == 1 else None

    def resolve(self, trained: int, lengths: Sequence[int]) -> LmEval:
        """The task itself; UsageError where its answers leave no room for a prompt."""
        from ctxext.tasks.lm_eval import catalogue

        for leaf in catalogue.leaves(catalogue.find(self.task, self.include), self.include):
            most = catalogue.generates(leaf)
            if most is not None and most >= min(lengths):
                raise UsageError(
                    f"lm-eval task {leaf.name!r} writes up to {counted(most, 'token')}: length "
                    f"{min(lengths)} has no room for a prompt; give {most + 1} or more"
                )
        return self

    def read(self, data: str | None) -> Data:
        """What stands for the task's own data: the hash of its config; `data` is for others."""
        from ctxext.tasks.lm_eval import catalogue

        entry = catalogue.find(self.task, self.include)
        return _Configs(self.name, catalogue.digest(entry, self.include))

    def check(self, limit: int | None) -> None:
        """Find the task and load its data.

        Raises:
            UsageError: there is no such task, its data cannot be had, or it is a group without
                a number of its own.
        """
        from ctxext.tasks.lm_eval import catalogue

        entry = catalogue.find(self.task, self.include)
        if "TASK" not in entry.kind.name and catalogue.metric(entry) is None:
            members = ", ".join(leaf.name for leaf in catalogue.leaves(entry, self.include))
            raise UsageError(
                f"lm-eval {entry.kind.name.lower()} {self.task!r} has no number of its own: "
                f"give its tasks: {members}"
            )
        self._load()

    def _load(self) -> dict[str, Any]:
        from ctxext.tasks.lm_eval import catalogue

        return catalogue.load(self.task, self.include, self.shots)

    def evaluate(
        self,
        model: Any,
        tokenizer: Any,
        length: int,
        batch: int,
        limit: int | None,
        seed: int,
        cache: Path,
    ) -> tuple[Score, int]:
        """The number and its samples; batches that are done are kept in the SQLite file `cache`.

        The model is left as it is, its patch included, and the tokenizer too.

        Raises:
            CtxextError: lm_eval gave no number for the first metric.
        """
        from ctxext.tasks.lm_eval.answers import mend
        from ctxext.tasks.lm_eval.padding import padding
        from ctxext.tasks.lm_eval.quiet import quiet

        loaded = self._load()
        mend(cache, lambda line: print(line, file=sys.stderr))
        with quiet():
            from lm_eval.api.model import CachingLM
            from lm_eval.evaluator import evaluate
            from transformers import set_seed

            from ctxext.tasks.lm_eval.sequences import SequenceLM

            set_seed(seed)
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed)
            runner = SequenceLM(
                pretrained=model, tokenizer=padding(tokenizer, model), max_length=length,
                batch_size=batch,
            )  # fmt: skip
            results = evaluate(
                CachingLM(runner, str(cache)), loaded, limit=limit, log_samples=True,
                bootstrap_iters=RESAMPLES,
            )  # fmt: skip
        found, tasks = results["results"], [*loaded["tasks"]]
        samples = [sample for name in tasks for sample in results["samples"][name]]
        return self._score(found, [*loaded["groups"]], tasks, samples)

    def _score(
        self,
        results: Mapping[str, Mapping[str, Any]],
        groups: Sequence[str],
        tasks: Sequence[str],
        samples: Sequence[Mapping[str, Any]],
    ) -> tuple[Score, int]:
        """The first group's number with its tasks as parts, or else the one task's."""
        metric, whole = self.metric, results[(*groups, *tasks)[0]]
        key = next((key for key in whole if key.partition(",")[0] == metric), None)
        if key is None or not isinstance(whole[key], (int, float)):
            raise CtxextError(f"lm-eval task {self.task!r} gave no number for {metric!r}")
        error = whole.get(_stderr(key))  # "N/A" for one sample
        error = float(error) if isinstance(error, float) else None
        others = (k for k in whole if "," in k and k != key and _stderr(k) in whole)
        also = {k.removesuffix(",none"): float(whole[k]) for k in others}
        parts = [
            {"name": name, "value": float(part[key]), "n": part["sample_len"]}
            for name in (tasks if groups else ())
            if key in (part := results[name])
        ]
        score = Score(float(whole[key]), error, parts, also, _scores(samples, key))
        return score, whole["sample_len"]


def _scores(samples: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, float]]:
    """What tells each sample from others, and its score by a `metric,filter`; [] where some have
    no number."""
    name, _, filter_name = key.partition(",")
    some = [sample for sample in samples if sample["filter"] == filter_name]
    scores: list[Any] = [sample.get(name) for sample in some]
    if not all(isinstance(score, (bool, int, float)) for score in scores):
        return []
    told = [f"{sample['doc_hash']} {sample['prompt_hash']}" for sample in some]
    return [(words, float(score)) for words, score in zip(told, scores, strict=True)]


def _stderr(key: str) -> str:
    """lm_eval's key of the standard error that belongs to a `metric,filter`."""
    name, _, filter_name = key.partition(",")
    return f"{name}_stderr,{filter_name}"
