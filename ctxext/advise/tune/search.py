"""The trials: specs that Optuna proposes, each a few ordinary records in the folder."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext import methods
from ctxext.advise.tune.by_layer import Layers
from ctxext.advise.tune.by_layer import asked as asked_by_layer
from ctxext.advise.tune.lambdas import Lambdas, asked, rotary
from ctxext.advise.tune.outcome import Comparison, Outcome, Trial, line
from ctxext.advise.tune.space import Default, Space, parse_families
from ctxext.advise.tune.unseen import compare
from ctxext.errors import CtxextError, UsageError
from ctxext.measure.inputs import Inputs
from ctxext.measure.inputs import place as place_of
from ctxext.measure.loaded import Loaded
from ctxext.measure.monitor import Monitor, Step
from ctxext.measure.run import Evaluation
from ctxext.measure.workers import Workers, several
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models import loading
from ctxext.models.layout import layer_windows
from ctxext.models.loading import Source
from ctxext.models.trained import explain_trained
from ctxext.notation import format_length
from ctxext.records import Record
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import BASELINE
from ctxext.tasks.base import SampleTask, Task
from ctxext.tasks.ppl import Perplexity
from ctxext.tasks.ppl_tail import PerplexityOfTails

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial as Asked

WINDOWS, SAMPLES = 6, 22  # that a trial reads where no limit is given
FINALISTS = 6  # trials that are read again, the best default among them
FINAL = 6  # times as many are read of a finalist, where there are twice these
UNSEEN = 6  # times as many are kept for the comparison in the end
COMPARED = 2.0 * (FINAL + UNSEEN)  # what the comparison takes, in trials
INSIDE = 2  # times as many windows of T tokens tell the tax


@dataclass(frozen=True)
class TuneRequest:
    """What to search for.

    Attributes:
        methods: specs, whose given parameters stay; none for every method by itself.
        length: L in tokens, above T.
        objective: ppl-tail, or a task whose samples are answered.
        trials: how many specs are proposed beside the defaults.
        tax: how much worse the mean loss at length T may be, in nats per token.
        limit: windows or samples that each trial reads; None for WINDOWS or SAMPLES.
        seed: of the proposals, and of samples that are drawn.
    """

    source: Source
    length: int
    methods: tuple[str, ...] = ()
    objective: Task = field(default_factory=PerplexityOfTails)
    data: str | None = None
    trials: int = 40
    tax: float = 0.02
    limit: int | None = None
    tokens: int | None = None
    seed: int = 0
    batch_size: int | None = None
    out: Path = Path("results/tune")

    def __post_init__(self) -> None:
        if not isinstance(self.objective, (PerplexityOfTails, SampleTask)):
            raise UsageError(
                f"--objective cannot be {self.objective}: give ppl-tail, or a task whose samples "
                "are answered, such as passkey, kv, ruler:niah_single_1 or longbench:hotpotqa"
            )
        if self.objective.higher_is_better is None:
            raise UsageError(
                f"--objective cannot be {self.objective}: the task does not say whether more of "
                f"its {self.objective.metric} is better: set its higher_is_better"
            )
        if not (math.isfinite(self.tax) and self.tax >= 0):
            raise UsageError(
                f"bad value {self.tax} for --tax: give nats per token, 0 or more, such as 0.02"
            )

    @property
    def seen(self) -> int:
        """Windows or samples that each trial reads."""
        return self.limit or (SAMPLES if isinstance(self.objective, SampleTask) else WINDOWS)


class Search:
    """A search in progress; `outcome` grows as trials are done.

    A trial that was computed before is found in the folder, so that a search that is begun again
    with the same arguments makes the same proposals and goes on where it ended.

    Raises:
        UsageError: what is asked for cannot be done.
    """

    def __init__(self, request: TuneRequest, monitor: Monitor | None = None) -> None:
        _require_optuna()
        if several():
            raise UsageError("ctxext tune runs in one process: leave out the launcher")
        self.request, self.monitor = request, monitor or Monitor()
        config = loading.load_config(request.source)
        own = request.source.own_scaling
        trained = explain_trained(config, own, request.source.train_len).tokens
        if request.length <= trained:
            raise UsageError(
                f"--len {format_length(request.length)} is not beyond the trained length "
                f"{format_length(trained)}: there is nothing to stretch; give a longer one"
            )
        self._span = Span(trained, request.length)
        self._space = self._make_space(config)
        objective = request.objective
        self.outcome = Outcome(
            request.source,
            trained,
            request.length,
            str(objective),
            objective.metric,
            not objective.higher_is_better,
            request.tax,
        )
        self._loaded, self._told = Loaded(), set[str]()
        self._tried = dict[str, Trial]()
        self._read = dict[str, tuple[str | None, str]]()
        self._count = 0

    def _make_space(self, config: Any) -> Space | Lambdas | Layers:
        request, span = self.request, self._span
        if (by_layer := asked_by_layer(request.methods)) is not None:
            count = len(layer_windows(config))
            return Layers(by_layer, span, count, request.seed)
        spec = asked(request.methods)
        if spec is None:
            return Space(parse_families(request.methods, span), span)
        of = rotary(config, request.source, request.length)
        return Lambdas(spec, span, of, request.out / "factors", request.seed)

    def run(self) -> Outcome:
        """Try the defaults, then what is proposed; read the best again, and compare the winner on
        unseen text.

        Raises:
            UsageError: the model or the data cannot be had.
            CtxextError: the unpatched model cannot be measured, or what is read has changed.
        """
        from optuna.trial import TrialState

        defaults, study = list(self._space.defaults()), _study(self.outcome.lower, self.request)
        for drawn in (*(default.drawn for default in defaults), *self._space.mutants()):
            study.enqueue_trial(drawn)
        self._count = len(defaults) + self.request.trials
        self.monitor.plan(self._steps, 0)
        for number in range(self._count):
            asked = study.ask()
            trial = self._try(asked, number, defaults[number] if number < len(defaults) else None)
            if trial is None or trial.value is None or trial.tax is None:
                study.tell(asked, state=TrialState.FAIL)
            else:
                asked.set_constraint("tax", trial.tax - self.request.tax)
                study.tell(asked, trial.value)
        if self._finals():
            self.outcome.comparison = self._compare()
        self.monitor.done(None)
        return self.outcome

    @property
    def _steps(self) -> int:
        """Trials, finalists and the comparison."""
        return self._count + FINALISTS + 1

    def _begin(self, what: str, cost: float, left: float = 0.0) -> None:
        """Tell of a step, and of what is left after it; in trials."""
        self.monitor.begin(Step(what, kind="trial", cost=cost, left={"trial": left}))

    def _try(self, asked: Asked, number: int, default: Default | None) -> Trial | None:
        """The trial of what is drawn, or of the default that it stands for, each made once; None
        where the values drawn do not go together."""
        try:
            drawn = self._space.draw(asked)
            spec = drawn if default is None else default.spec
            method = spec.resolve(self._span)
        except UsageError as error:
            self.monitor.note(f"not tried: {error}")
            self.monitor.done(None)
            return None
        if method.full() not in self._tried:
            left = self._count - number - 1 + FINALISTS * FINAL + COMPARED
            self._begin(str(method), 1.0, left)
            place, reads = len(self.outcome.trials), self.request.seen
            trial = self._measured(place, spec, method, default is not None, reads)
            self._tried[method.full()] = trial
            self.outcome.trials.append(trial)
            self.monitor.note(f"[{number + 1}/{self._steps}] {line(self.outcome, trial)}")
        self.monitor.done(None)
        return self._tried[method.full()]

    def _finals(self) -> bool:
        """Read the finalists again, on more; whether there was more to read."""
        finalists = self.outcome.finalists(FINALISTS)
        if len(finalists) < 2:
            return False
        reads = self._final
        again = []
        for place, trial in enumerate(finalists, 1):
            self._begin(f"finals: {trial.spec}", FINAL, (FINALISTS - place) * FINAL + COMPARED)
            final = self._measured(trial.number, trial.spec, trial.spec, trial.default, reads)
            if final.value is not None and final.read <= trial.read:
                return False
            again.append(final)
            step = f"[{self._count + place}/{self._steps}]"
            self.monitor.note(f"{step} finals: {line(self.outcome, final)}")
            self.monitor.done(None)
        for trial, final in zip(finalists, again, strict=True):
            self.outcome.trials[trial.number] = replace(trial, final=final)
        for _ in range(len(finalists), FINALISTS):
            self.monitor.done(None)
        return True

    @functools.cached_property
    def _final(self) -> int:
        """Windows or samples that the finals read: half of what there is, where that is less than
        asked for but more than the search has read, so that as many are left to compare on."""
        seen = self.request.seen
        half = self._there((FINAL + UNSEEN) * seen) // 2
        return half if seen < half < FINAL * seen else FINAL * seen

    def _there(self, most: int) -> int:
        """How many windows or samples of the objective there are, `most` at most."""
        evaluation = Evaluation([self._cells(most, methods.parse(BASELINE))])
        (plan,) = evaluation.plans(Workers(self.request.source.device))
        (cell,) = plan.cells
        inputs = Inputs(plan, [cell], self._loaded)
        if refusal := inputs.refusals.of(place_of(cell)):
            raise UsageError(refusal.fields["reason"])
        if isinstance(self.request.objective, SampleTask):
            return len(inputs.first(cell, most))
        return len(inputs.windows(cell))

    def _measured(self, number: int, spec: Spec, method: Spec, default: bool, reads: int) -> Trial:
        """A trial, from records of the objective, and of the perplexity at T of the method as it
        is at L, and of the unpatched model there."""
        requests = [
            self._cells(reads, spec),
            self._inside(reads, method),
            self._inside(reads, methods.parse(BASELINE)),
        ]
        if self.outcome.trials:
            records = self._evaluate(*requests)
        else:  # each alone raises what cannot be done
            records = [record for one in requests for record in self._evaluate(one)]
        failed = next((r for r in records if r["status"] != "ok"), None)
        value, inside, base = (record["value"] for record in records)
        if failed is not None and not self.outcome.trials:
            raise CtxextError(f"the unpatched model cannot be measured: {failed['reason']}")
        return Trial(
            number,
            method,
            default,
            failed["status"] if failed else "ok",
            failed["reason"] if failed else None,
            None if failed else value,
            None if failed else records[0]["stderr"],
            None if failed else math.log(inside) - math.log(base),
            sum(record["seconds"] or 0.0 for record in records[:2]),
            records[0]["windows"],
            tuple(record["key"] for record in records[:2]),
        )

    def _cells(self, limit: int, *methods: Spec) -> EvaluationRequest:
        """The objective at L."""
        request = self.request
        return EvaluationRequest(
            request.source,
            methods,
            (request.length,),
            (request.objective,),
            request.data,
            limit,
            request.tokens,
            (request.seed,),
            request.batch_size,
            request.out,
        )

    def _inside(self, reads: int, method: Spec) -> EvaluationRequest:
        """The perplexity at T: of the text of so many windows, where windows are read."""
        request, trained = self.request, self._span.trained
        limit = min(INSIDE * reads, reads * request.length // trained)
        data = None if isinstance(request.objective, SampleTask) else request.data
        cells = self._cells(limit, method)
        return replace(cells, lengths=(trained,), tasks=(Perplexity(),), data=data)

    def _evaluate(self, *requests: EvaluationRequest) -> list[Record]:
        shown = self.monitor
        monitor = Monitor(advance=shown.advance, note=self._note, outside=shown.outside)
        records = Evaluation(requests, monitor, loaded=self._loaded).run()
        for record in records:
            now = (record["model_sha256"], record["data"]["sha256"])
            if self._read.setdefault(record["task"], now) != now:
                raise CtxextError(
                    "the model's files or the data have changed since the search began: begin again"
                )
        return records

    def _note(self, text: str) -> None:
        """Tell the user a line, once."""
        if text not in self._told:
            self._told.add(text)
            self.monitor.note(text)

    def _compare(self) -> Comparison | None:
        """The winner and the best default on what comes after all that the finals have read."""
        winner, default = self.outcome.winner, self.outcome.best_default
        seen, more = self._final, UNSEEN * self.request.seen
        if winner is None or default is None or winner is default:
            return None
        self._begin("the winner and the best default on what is unseen", COMPARED)
        theirs, ours = self._evaluate(
            self._cells(seen + more, default.spec, winner.spec),
        )
        if not ours["status"] == theirs["status"] == "ok":
            return None
        found = compare(ours, theirs, seen)
        what = "samples" if isinstance(self.request.objective, SampleTask) else "windows"
        return None if found is None else Comparison(default, *found, what)


def _require_optuna() -> None:
    """UsageError where it is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageError("ctxext tune needs Optuna: pip install 'ctxext[tune]'") from None


def _study(lower: bool, request: TuneRequest) -> Study:
    """Optuna's tree of Parzen estimators, which prefers what keeps to its constraints."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options called experimental
        sampler = optuna.samplers.TPESampler(seed=request.seed, multivariate=True, group=True)
    return optuna.create_study(direction="minimize" if lower else "maximize", sampler=sampler)
