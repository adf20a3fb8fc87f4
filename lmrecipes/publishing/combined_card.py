"""What the model card says of runs that were made of others."""

from __future__ import annotations

from lmrecipes.publishing.metadata import front_matter
from lmrecipes.tracking.results import markdown_results, number, words
from lmrecipes.tracking.run_record import RunRecord

USE = """\
Every folder `members/N/model` is a model that `transformers` loads; `combination.json` says how their predictions
become one: the mean of their probabilities by the task's `weights`, whose logarithms (of several labels: log-odds) are
divided by `temperature`; of numbers the weighted mean. With lmrecipes:

    lmrecipes predict {run} < rows.jsonl
"""


def combination_card(record: RunRecord, title: str, name: str) -> str:
    """The card of a model that holds whole members. name: where it lies."""
    tasks = ", ".join(f"`{task}` ({words(spec['kind'])})" for task, spec in record.tasks.items())
    results = markdown_results(record.evaluation, record.environment) if record.evaluation else ""
    sections = {
        "": f"The combined predictions of {len(record.combined['of'])} models on {tasks}. Made with lmrecipes.\n",
        "Use": USE.format(run=record.name),
        "Results": results,
        "Members": made_of(record),
    }
    text = "\n".join(f"## {head}\n\n{part}" if head else part for head, part in sections.items() if part)
    return f"{front_matter(record, title, adapter=False)}\n# {title}\n\n{text}"


def made_of(record: RunRecord) -> str:
    """The runs that a combined run was made of and how, with the task's losses; nothing of others."""
    made = record.combined
    if not made:
        return ""
    of = "".join(f"- `{name}`\n" for name in made["of"])
    lines = ["| task | members' mean loss, nats | combined, calibrated |", "|-|-:|-:|"]
    for task, facts in made["tasks"].items():
        losses = [model["loss"]["before"] for model in facts["models"] if model["role"] == "member"]
        chosen = next(model for model in facts["models"] if model["role"] == made["method"])
        lines.append(f"| `{task}` | {number(sum(losses) / len(losses))} | {number(chosen['loss']['after'])} |")
    return f"Method `{made['method']}`, of\n\n{of}\n" + "\n".join(lines) + "\n"
