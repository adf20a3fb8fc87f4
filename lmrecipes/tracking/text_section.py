"""The sections of the report about tasks of tokens: what training changed, and how the model continues texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from lmrecipes.recipe import TOKEN_KINDS
from lmrecipes.tracking.html import disc, section, table
from lmrecipes.tracking.results import lower_is_better, number, words
from lmrecipes.tracking.run_record import RunRecord

COMPARED = ("perplexity", "bits_per_byte", "token_accuracy")
"""Metrics of which the change is shown."""
SHOWN = 3
"""Texts of a task that are shown; the others are folded."""
MOST_CHANGES = 8
"""Continuations of a text that are shown: the first, the last, and others evenly between them."""
LONG = 320
"""Characters of a text beyond which it is folded."""

Continuations = dict[int, list[tuple[int, str]]]
"""Of a text: by the number of the run, (step, continuation) from the first evaluation to the last."""


def changes(runs: Sequence[RunRecord], tasks: Sequence[str]) -> str:
    """Each metric of the token tasks before and after training, and the change in percent. Empty where no run was
    evaluated before its first step."""
    rows, several = [], len(runs) > 1
    for task_at, task in enumerate(tasks):
        for run_at, run in enumerate(runs):
            before, after = _before_and_after(run, task)
            cells = [_change(metric, before.get(metric), after.get(metric)) for metric in COMPARED]
            if any(cells):
                head = f"<th>{'' if several else disc(task_at)}{escape(task)}</th>"
                head += f"<td>{disc(run_at)}{escape(run.label)}</td>" if several else ""
                rows.append(f"<tr>{head}{''.join(cell or '<td></td>' for cell in cells)}</tr>")
    if not rows:
        return ""
    heads = "<th>Task</th>" + ("<th>Run</th>" if several else "")
    heads += "".join(f"<th class=n>{words(metric).capitalize()}</th>" for metric in COMPARED)
    note = (
        '<p class="note">On the same held-out texts, before the first step and after the last. Bits per byte may be '
        "compared between models of different tokenizers, perplexities may not.</p>"
    )
    return section("What training changed", note + table(heads, "".join(rows)))


def _before_and_after(run: RunRecord, task: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    evaluation = run.evaluation or {}
    scores = (evaluation.get("tasks") or {}).get(task) or {}
    start = ((evaluation.get("baselines") or {}).get("start") or {}).get("tasks") or {}
    if scores.get("kind") not in TOKEN_KINDS or task not in start:
        return {}, {}
    return start[task], scores.get("metrics") or {}


def _change(metric: str, before: float | None, after: float | None) -> str:
    """A cell; empty where the metric was not measured twice."""
    if before is None or after is None:
        return ""
    share = (after - before) / before if before else 0.0
    change = f"{share:+.1%}".replace("-", "\N{MINUS SIGN}")
    better = share < 0 if lower_is_better(metric) else share > 0
    look = "" if change[1:] == "0.0%" else "up" if better else "down"
    values = f"{number(before)} → <b>{number(after)}</b>"
    return f'<td class="n">{values}<small class="{look}">{change}</small></td>'


def samples(runs: Sequence[RunRecord], tasks: Sequence[str]) -> str:
    """How the runs continue the same held-out texts, by task. Empty where nothing was sampled."""
    parts = []
    for at, task in enumerate(tasks):
        texts: dict[tuple[str, str], Continuations] = {}
        for number_of_run, run in enumerate(runs):
            for one in run.samples:
                if one.task == task:
                    steps = texts.setdefault((one.prompt, one.reference), {}).setdefault(number_of_run, [])
                    steps.append((one.step, one.continuation))
        if texts:
            cards = [_card(prompt, reference, found, runs) for (prompt, reference), found in texts.items()]
            more = "".join(cards[SHOWN:])
            if more:
                more = f"<details><summary>{len(cards) - SHOWN} more</summary>{more}</details>"
            key = disc(at) if len(runs) == 1 else ""
            parts.append(f'<h3 class="task">{key}{escape(task)}</h3>{"".join(cards[:SHOWN])}{more}')
    if not parts:
        return ""
    note = (
        "Texts of the validation split: what the model is given, how the text goes on, and what the model writes "
        "instead, always the likeliest token."
    )
    return section("Samples", f'<p class="note">{note}</p>{"".join(parts)}')


def _card(prompt: str, reference: str, found: Continuations, runs: Sequence[RunRecord]) -> str:
    rows = [("given", _folded(prompt, tail=True)), ("the text", _folded(reference))]
    for at, steps in sorted(found.items()):
        run = f"{disc(at)}{escape(runs[at].label)}, " if len(runs) > 1 else ""
        # One run shows how it came about; of several, each shows what became of it.
        kept = _stretches(steps) if len(runs) == 1 else [(steps[-1][0], *steps[-1])]
        rows += [(run + _when(first, last), _folded(text)) for first, last, text in kept]
    content = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return f'<dl class="card sample{" grows" if len(runs) == 1 else ""}">{content}</dl>'


def _stretches(steps: Sequence[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """(first step, last step, continuation) of each stretch in which it stayed the same, MOST_CHANGES at most."""
    found = []
    for text, same in groupby(steps, key=lambda step: step[1]):
        numbers = [number for number, _ in same]
        found.append((numbers[0], numbers[-1], text))
    last, most = len(found) - 1, MOST_CHANGES - 1
    return found if last <= most else [found[round(at * last / most)] for at in range(MOST_CHANGES)]


def _when(first: int, last: int) -> str:
    if first == last:
        return f"step {first:,}" if first else "before training"
    return f"steps {first:,} to {last:,}"


def _folded(text: str, tail: bool = False) -> str:
    """A text without the space around it; of a long one the beginning (or the end), the rest at a click."""
    text = text.strip()
    if len(text) <= LONG:
        return escape(text) or '<span class="muted">nothing</span>'
    part = f"… {text[-LONG:]}" if tail else f"{text[:LONG]} …"
    return f'<details class="long"><summary>{escape(part)}</summary>{escape(text)}</details>'
