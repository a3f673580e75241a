"""LongBench's prompts and generation limits, from the task files of the installed lm_eval.

lm_eval's copies of six prompts differ from the official ones in white space at or before the end
(github.com/THUDM/LongBench, config/dataset2prompt.json); here the official white space is put
back. All else, the spelling `asconcisely` included, is the same in both.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.errors import UsageError, short

_ENDINGS = {
    "triviaqa": "{{context}}\n\n{{question}}",
    "samsum": "{{context}}\n\n{{question}}",
    "passage_count": "The final answer is: ",
    "passage_retrieval_en": "The answer is: ",
    "lcc": "Next line of code:\n",
    "repobench-p": "Next line of code:\n",
}


class Prompt(NamedTuple):
    """How one task asks.

    Attributes:
        template: jinja, of `context` and `question`.
        generates: the most tokens of an answer.
    """

    template: Any
    generates: int

    def render(self, context: str, question: str) -> str:
        """The prompt's text."""
        return str(self.template.render(context=context, question=question, input=question))


@functools.cache
def prompt(task: str) -> Prompt:
    """The official prompt and limit of a task.

    Raises:
        UsageError: lm_eval is not installed, or is one whose task files are not of this form.
    """
    file = _folder() / f"{task}.yaml"
    try:
        text, limit = _fields(file.read_text(encoding="utf-8"))
        return Prompt(_compile(_official(task, text)), limit)
    except Exception as error:
        reason = short(error, 200)
        raise UsageError(
            f"the prompt of {task} is not to be had from lm_eval's {file.name}: "
            f"pip install -U lm_eval ({reason})"
        ) from error


def _folder() -> Path:
    """lm_eval's LongBench tasks, found without importing lm_eval."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UsageError("LongBench's prompts come with lm_eval: pip install lm_eval")
    return Path(next(iter(found.submodule_search_locations))) / "tasks" / "longbench"


def _fields(source: str) -> tuple[str, int]:
    """doc_to_text and max_gen_toks; tags such as `!function` are passed over."""
    import yaml

    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda *_: None)
    task = yaml.load(source, loader)
    text, limit = task["doc_to_text"], task["generation_kwargs"]["max_gen_toks"]
    if not isinstance(text, str) or "\\n" in text or type(limit) is not int or limit < 1:
        raise ValueError("line breaks or the limit are not as they should be")
    return text, limit


def _official(task: str, text: str) -> str:
    """The template with the official white space at its end."""
    if (ending := _ENDINGS.get(task)) is None:
        return text
    loose = r"\s*".join(re.escape(word) for word in ending.split()) + r"\s*\Z"
    return re.sub(loose, lambda _: ending, text)


def _compile(template: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(template)
