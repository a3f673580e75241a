"""What README and docs/real-models.md say of SmolLM2-135M, from the records of results/real alone.

Differences are paired: window by window, of mean losses in nats per token. A claim holds or does
not where Student's 95% interval of its difference leaves zero out; else the windows do not tell.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ctxext.notation import format_length
from ctxext.records import Record, interval
from ctxext.report import tables

MODEL, LENGTH, TRAINED, TEXT = "smollm2-135m", 16384, 8192, "stdlib"
LONGER = 32768
PLAIN = "rope"
BEST = 10  # rows of a table in README, besides PLAIN
NAMED = ("window", "rerope", "ntk", "yarn", "dca", "logn", "pi")  # whose rows are there, too
#: What is said, by whom, and the methods of which the first should have the lower loss.
SAID = (
    ("ReRoPE reads on where NTK-aware scaling wears off", "kexue.fm 9708", "rerope", "ntk"),
    ("ReRoPE is ahead of the mixed radix", "kexue.fm 9708", "rerope", "beta-radix"),
    ("the mixed radix is ahead of NTK-aware scaling", "kexue.fm 9706", "beta-radix", "ntk"),
    ("log n helps ReRoPE", "kexue.fm 9708", "rerope+logn", "rerope"),
    ("log n helps NTK-aware scaling", "kexue.fm 9708", "ntk+logn", "ntk"),
    ("log n helps plain RoPE", "kexue.fm 9706", "logn", "rope"),
    ("Leaky ReRoPE is ahead of ReRoPE", "–", "leaky-rerope", "rerope"),
    ("YaRN is ahead of NTK-aware scaling", "arXiv 2309.00071", "yarn", "ntk"),
    ("MrRoPE is ahead of YaRN", "arXiv 2601.22181", "mrrope", "yarn"),
    ("Dual Chunk Attention is ahead of ReRoPE", "–", "dca", "rerope"),
    ("mscale helps Dual Chunk Attention", "Qwen2.5-1M", "dca+mscale", "dca"),
    ("a window alone is behind ReRoPE", "–", "rerope", "window"),
    ("a window needs the first tokens", "arXiv 2309.17453", "streaming", "window"),
    ("more than the first and the last tokens helps", "–", "dca", "streaming"),
)  # fmt: skip
#: The same of the last T tokens of spans, each method with the length of context it reads.
TAILS = (
    (
        *("ReRoPE keeps beyond T what the model has", "kexue.fm 9708"),
        *(("rerope", LENGTH), (PLAIN, TRAINED)),
    ),
    (
        *("longer context, lower loss, by ReRoPE", "kexue.fm 9708"),
        *(("rerope", LENGTH), ("rerope", TRAINED)),
    ),
    ("plain RoPE does without a method", "–", (PLAIN, LENGTH), (PLAIN, TRAINED)),
)
SINKS = "streaming"  # the window that others are compared with
LOGN = ("rerope", "ntk")  # that it should help
WINDOWS = ("window", "streaming", "lm-infinite")  # that read no more than T tokens
# Student's quantiles of a 95% interval, by the number of windows.
_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


class Apart(NamedTuple):
    """A mean difference in nats per token, its standard error, and how many windows it is over."""

    value: float
    error: float
    count: int

    def __str__(self) -> str:
        digits = 3 if self.error >= 0.0005 else 5
        return f"{self.value:+.{digits}f} ± {self.error:.{digits}f}"

    @property
    def sure(self) -> bool:
        """Whether its interval leaves out zero."""
        return abs(self.value) > _QUANTILES.get(self.count, 2.3) * self.error


def losses(record: Record) -> list[float]:
    """Mean losses of the windows."""
    kept = record["by_window"]
    return [total / count for total, count in zip(kept["nll"], kept["n"], strict=True)]


def apart(record: Record | None, other: Record | None) -> Apart | None:
    """The first one's loss less the other's; None where they did not read the same windows."""
    if record is None or other is None:
        return None
    if record["by_window"]["n"] != other["by_window"]["n"] or len(losses(record)) < 2:
        return None
    steps = [a - b for a, b in zip(losses(record), losses(other), strict=True)]
    error = statistics.stdev(steps) / math.sqrt(len(steps))
    return Apart(statistics.fmean(steps), error, len(steps))


class Found:
    """The records, by what they are of."""

    def __init__(self, records: Sequence[Record], model: str = MODEL) -> None:
        ok = [r for r in records if r["status"] == "ok" and r["model"] == model]
        self.records = sorted(ok, key=lambda r: (r["created"], r["key"]))

    def of(self, task: str, length: int, method: str, data: str = TEXT) -> Record | None:
        """The newest; the task by the beginning of its spec."""
        some = [
            r
            for r in self.records
            if r["task"].partition(":")[0] == task
            and (r["length"], r["requested"], r["data"]["name"]) == (length, method, data)
        ]
        return some[-1] if some else None

    def methods(self) -> list[str]:
        """Those with a perplexity at LENGTH, the best first, but for rope, which leads."""
        names = {
            r["requested"] for r in self.records if (r["task"], r["length"]) == ("ppl", LENGTH)
        }
        some = {name: record for name in names if (record := self.of("ppl", LENGTH, name))}
        return sorted(some, key=lambda name: (name != PLAIN, some[name]["value"], name))


def picked(methods: Sequence[str]) -> list[str]:
    """PLAIN, the BEST behind it, and those that are NAMED, of methods in a table's order."""
    return [m for place, m in enumerate(methods) if place <= BEST or m in NAMED]


def table(found: Found) -> str:
    """A row for each method that is picked."""
    at, beyond = format_length(LENGTH), format_length(LONGER)
    longer = any(found.of("ppl", LONGER, method) for method in found.methods())
    keys = any(found.of("passkey", LENGTH, method, "filler") for method in found.methods())
    header = ["method", f"perplexity at {at}", "to `window` (nats)", "tax (nats)"]
    header += [f"accuracy at {at} (%)", *([f"pass keys at {at}"] if keys else [])]
    header += [f"perplexity at {beyond}"] if longer else []
    taxes = _taxes(found)
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for method in picked(found.methods()):
        record, right = found.of("ppl", LENGTH, method), found.of("acc", LENGTH, method)
        assert record is not None
        to_window = apart(record, found.of("ppl", LENGTH, "window"))
        cells = [f"`{method}`", f"{record['value']:.2f} ± {record['stderr']:.2f}"]
        cells.append(str(to_window) if to_window and method != "window" else "–")
        cells.append(taxes.get(method, "–"))
        cells.append(f"{100 * right['value']:.2f}" if right else "–")
        if keys:
            cells.append(_share(found.of("passkey", LENGTH, method, "filler")))
        if longer:
            beyond_it = found.of("ppl", LONGER, method)
            cells.append(f"{beyond_it['value']:.2f}" if beyond_it else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _taxes(found: Found) -> dict[str, str]:
    """By method what it costs inside T at LENGTH, in nats per token."""
    made = {t.group.metric: t for t in tables.build(_of_text(found))}
    return {row.method: made["perplexity"].tax_texts(row)[0] for row in made["perplexity"].rows}


def _of_text(found: Found) -> list[Record]:
    return [
        r
        for r in found.records
        if r["task"] in ("ppl", "acc") and (r["length"], r["data"]["name"]) == (LENGTH, TEXT)
    ]


def _share(record: Record | None) -> str:
    if record is None:
        return "–"
    right = round(record["value"] * record["n"])
    return f"{right} of {record['n']}"


def entropy_cap(records: Sequence[Record]) -> str:
    """What `entropy-cap` gains on log n, wherever both have read the same windows."""
    read = {
        (r["model"], r["length"], r["requested"]): r
        for r in sorted(records, key=lambda r: (r["created"], r["key"]))
        if (r["task"], r["status"]) == ("ppl", "ok")
    }
    lines = ["| model | length | method | against | nats per token | windows |"]
    lines.append("|---|---:|---|---|---:|---:|")
    for model, length, method in sorted(read):
        other = method.replace("entropy-cap", "logn")
        difference = apart(read[model, length, method], read.get((model, length, other)))
        if other != method and difference is not None:
            cells = (f"`{model}`", format_length(length), f"`{method}`", f"`{other}`")
            lines.append(f"| {' | '.join(cells)} | {difference} | {difference.count} |")
    return "\n".join(lines)


def claims(found: Found) -> Iterator[str]:
    """What the seed says, and whether it holds here."""
    at, trained = format_length(LENGTH), format_length(TRAINED)
    kept, own, _ = (_tail(found, lower, higher) for _, _, lower, higher in TAILS)
    if kept is not None and own is not None:
        yield (
            f"**ReRoPE keeps what the model has: {_verdict(kept, 'spans')}. Longer context, lower "
            f"loss: {_verdict(own, 'spans')}.** The last tokens of {kept.count} spans, read by "
            f"`rerope` with {at} of context: {kept} nats of what the plain model has for them with "
            f"{trained}, {own} of what `rerope` has itself."
        )
    alone = apart(found.of("ppl", LENGTH, "window"), found.of("ppl", LENGTH, "rerope"))
    if alone is not None:
        said = f"not held, it costs {alone}" if alone.sure else f"held, they differ by {alone}"
        yield (
            f"**A window alone does as well, as it does on `tiny`: {said} nats per token** at {at} "
            "against `rerope`."
        )
    reads_all = next((m for m in found.methods() if m not in (PLAIN, *WINDOWS)), SINKS)
    between = apart(found.of("ppl", LENGTH, reads_all), found.of("ppl", LENGTH, SINKS))
    if between is not None and reads_all != SINKS:
        yield (
            f"**What stands between the first and the last tokens lowers the loss: "
            f"{_verdict(between)}.** `{reads_all}`, the best that reads it, less `{SINKS}`, which "
            f"does not, is {between} nats at {at}."
        )
    keys = {m: found.of("passkey", LENGTH, m, "filler") for m in (SINKS, reads_all, "rerope")}
    if keys[SINKS] is not None:
        shares = (f"`{method}` {_share(keys[method])}" for method in keys if keys[method])
        yield f"**Loss does not tell what is found.** Pass keys at {at}: {', '.join(shares)}."
    helped = {m: (found.of("ppl", LENGTH, f"{m}+logn"), found.of("ppl", LENGTH, m)) for m in LOGN}
    steps = {method: step for method, pair in helped.items() if (step := apart(*pair))}
    if steps:
        told = (f"`{m}+logn` less `{m}`: {step}, {_verdict(step)}" for m, step in steps.items())
        yield f"**log n helps**, in nats at {at}: {'; '.join(told)}."


def _tail(found: Found, lower: tuple[str, int], higher: tuple[str, int]) -> Apart | None:
    (one, length), (other, shorter) = lower, higher
    return apart(found.of("ppl-tail", length, one), found.of("ppl-tail", shorter, other))


def _verdict(lower: Apart, over: str = "windows") -> str:
    """Of a claim that a loss is lower."""
    if not lower.sure:
        return f"not told by {lower.count} {over}"
    return "held" if lower.value < 0 else "not held"


def said(records: Sequence[Record]) -> str:
    """What is said of the methods, and whether their losses at 2 and 4 times T bear it out."""
    found, lengths = Found(records), (LENGTH, LONGER)
    lines = [f"| said | by | measured | {' | '.join(map(format_length, lengths))} |"]
    lines.append("|---|---|---|---|---|")
    for words, source, lower, higher in SAID:
        cells = []
        for length in lengths:
            found_apart = apart(*(found.of("ppl", length, name) for name in (lower, higher)))
            cells.append(f"{_verdict(found_apart)}: {found_apart}" if found_apart else "–")
        if set(cells) != {"–"}:
            measured = f"`{lower}` less `{higher}`"
            lines.append(f"| {words} | {source} | {measured} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tails(records: Sequence[Record]) -> str:
    """What is said of context beyond T, by the same tokens read with more and with less of it."""
    found = Found(records)
    lines = ["| said | by | measured | nats per token |", "|---|---|---|---|"]
    for words, source, lower, higher in TAILS:
        names = " less ".join(f"`{name}` with {format_length(n)}" for name, n in (lower, higher))
        difference = _tail(found, lower, higher)
        told = f"{_verdict(difference, 'spans')}: {difference}" if difference else "not measured"
        lines.append(f"| {words} | {source} | {names} | {told} |")
    return "\n".join(lines)


def windows(records: Sequence[Record]) -> str:
    """The methods against a window that keeps the first tokens, at 2 and 4 times T."""
    found, lengths = Found(records), (LENGTH, LONGER)
    header = ["method"]
    for length in map(format_length, lengths):
        header += [f"perplexity at {length}", f"less `{SINKS}` (nats)"]
    lines = [f"| {' | '.join([*header, 'tax (nats)'])} |", "|---" + "|---:" * len(header) + "|"]
    taxes = _taxes(found)
    for method in picked(found.methods()):
        cells = []
        for length in lengths:
            record, sinks = (found.of("ppl", length, name) for name in (method, SINKS))
            step = apart(record, sinks) if method != SINKS else None
            cells += [f"{record['value']:.3f}" if record else "–", _standing(step) if step else "–"]
        lines.append(f"| `{method}` | {' | '.join(cells)} | {taxes.get(method, '–')} |")
    return "\n".join([*lines, "", *_alone(records)])


def _standing(step: Apart) -> str:
    if not step.sure:
        return f"{step}, not told"
    return f"{step}, {'ahead' if step.value < 0 else 'behind'}"


def _alone(records: Sequence[Record]) -> Iterator[str]:
    """How far a window alone is from rerope, on the toy and here."""
    for model, length in (("tiny", 4096), (MODEL, LENGTH)):
        found = Found(records, model)
        step = apart(found.of("ppl", length, "window"), found.of("ppl", length, "rerope"))
        if step is not None:
            told = f"`window` less `rerope` is {step} nats per token"
            yield f"- On `{model}` at {format_length(length)} {told} over {step.count} windows."


def hidden(records: Sequence[Record]) -> str:
    """Loss beside what is found, of all methods that have both at LENGTH."""
    found = Found(records)
    head = f"| method | perplexity at {format_length(LENGTH)} | pass keys | found at depths |"
    lines = [f"{head} 95% interval (%) |", "|---|---:|---:|---|---:|"]
    for method in found.methods():
        loss = found.of("ppl", LENGTH, method)
        keys = found.of("passkey", LENGTH, method, "filler")
        if loss is not None and keys is not None:
            ends = interval(keys)
            assert ends is not None
            cells = (f"`{method}`", f"{loss['value']:.2f}", _share(keys), _depths(keys))
            between = " to ".join(f"{100 * end:.0f}" for end in ends)
            lines.append(f"| {' | '.join(cells)} | {between} |")
    own = [
        f"at {format_length(record['length'])} `{PLAIN}` finds {_share(record)}: {_depths(record)}"
        for record in found.records
        if (record["requested"], record["data"]["name"]) == (PLAIN, "filler")
        and record["task"].startswith("passkey")
        and not re.search("needles|hops", record["task"])
        and record["length"] <= TRAINED
    ]
    return "\n".join([*lines, "", *(f"- Inside T, {words}." for words in own)]).rstrip()


def _depths(keys: Record) -> str:
    """The depths at which all are found, and at which some are."""
    found = [part for part in keys["parts"] if part["value"]]
    words = [f"{part['depth']:g}" + " (some)" * (part["value"] < 1) for part in found]
    return ", ".join(words) or "none"


def part(records: Sequence[Record]) -> str:
    """All of it."""
    found = Found(records)
    plain = found.of("ppl", LENGTH, PLAIN)
    if plain is None:
        raise SystemExit(f"results/real has no perplexity of {PLAIN} at {LENGTH}")
    lines = [table(found), ""]
    if left := len(found.methods()) - len(picked(found.methods())):
        lines += [f"{left} more are in [all tables](results/real/tables.md).", ""]
    lines += [f"- {line}" for line in claims(found)]
    return "\n".join(lines).rstrip()
