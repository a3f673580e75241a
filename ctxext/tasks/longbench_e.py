"""LongBench-E, the 13 tasks with lengths spread evenly."""

from __future__ import annotations

from dataclasses import dataclass

from ctxext.tasks import register
from ctxext.tasks.longbench.task import LongBench
from ctxext.tasks.scoring import longbench as official


@register("longbench-e")
@dataclass(frozen=True)
class LongBenchE(LongBench):
    """LongBench-E (Bai et al. 2024, arXiv:2308.14508): 13 of LongBench's tasks on rows that are
    spread evenly over their lengths, scored over all and from 0 to 4k, 4k to 8k and above 8k
    words; all else as for longbench.
    """

    metric = ", ".join(sorted({official.TASKS[task] for task in official.E_TASKS}))
    extended = True

    @classmethod
    def members(cls) -> list[str]:
        """The names of the tasks."""
        return list(official.E_TASKS)
