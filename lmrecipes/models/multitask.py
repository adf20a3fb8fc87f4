"""One trunk, one head for each task, one forward for any mix of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmrecipes.data.batches import MicroBatch, TaskRows, Texts
from lmrecipes.models.heads import Head, HeadSpec
from lmrecipes.models.language import LanguageHead
from lmrecipes.models.trunk import Trunk
from lmrecipes.recipe_inputs import Modality

Wanted = Literal["losses", "predictions", "vectors"]


class MultiTaskModel(nn.Module):
    """Front ends, trunk and heads. Every call on a micro-batch runs them all, in one fixed order: ranks that hold
    different tasks and modalities in the same micro-batch stay in step under DDP and ZeRO 1-3 without searching unused
    parameters.

    `inputs`: a front end for each modality beside text. `language`: the trunk's own language-model head, shared by all
    tasks with a loss per token; None where there is no such task. `heads`: one for each other task.
    """

    def __init__(
        self, trunk: Trunk, specs: dict[str, HeadSpec], inputs: Mapping[Modality, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = list(specs)
        self.token_tasks = [name for name, spec in specs.items() if spec.of_tokens]
        self.language = LanguageHead(trunk.whole) if self.token_tasks else None
        own = {name: Head(trunk.hidden_size, spec) for name, spec in specs.items() if not spec.of_tokens}
        self.heads = nn.ModuleDict(own)
        self.inputs = nn.ModuleDict({str(name): module for name, module in (inputs or {}).items()})

    def forward(self, batch: MicroBatch | Texts, wanted: Wanted = "losses") -> Any:
        """A micro-batch -> `losses`, `predictions` or the trunk's `vectors` [texts, hidden]; bare texts -> `vectors`.
        One entry: DDP's and ZeRO's hooks hang on it."""
        if not isinstance(batch, MicroBatch):
            return self.trunk.pool(batch, self.trunk(batch))
        if wanted == "vectors":
            return self.trunk.pool(batch.texts, self._hidden(batch))
        return self.losses(batch) if wanted == "losses" else self.predictions(batch)

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """What the trunk gives for each position, [positions, hidden]."""
        inserted = []
        for name, front_end in self.inputs.items():
            media = batch.media.get(name)  # type: ignore[call-overload]
            if media is not None:  # tasks that are predicted alone may know fewer modalities
                inserted.append((media.places, front_end(media)))
        hidden: Tensor = self.trunk(batch.texts, inserted)
        return hidden

    def losses(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The micro-batch's part of the step's loss (fp32 [], to be summed over micro-batches and ranks, not averaged),
        and each task's loss sum in its own units (fp32 [tasks], detached)."""
        hidden = self._hidden(batch)
        total, sums = hidden.new_zeros((), dtype=torch.float32), {}
        if self.heads:
            pooled = self.trunk.pool(batch.texts, hidden)
            for name, head in self.heads.items():
                assert isinstance(head, Head)
                task = batch.tasks[name]
                loss = head.loss_sum(head(pooled[task.rows]), task.targets, task.soft)
                total = total + loss * task.scale
                sums[name] = loss.detach()
        if self.language is not None:
            tasks = [batch.tasks[name] for name in self.token_tasks]
            scales = torch.cat([total.new_full(task.rows.shape, task.scale) for task in tasks])
            loss, nll = self.language(*_tokens(hidden, tasks), scales)
            total = total + loss
            parts = nll.split([len(task.rows) for task in tasks])
            sums |= {name: part.sum() for name, part in zip(self.token_tasks, parts, strict=True)}
        idle = total.new_zeros(())
        return total, torch.stack([sums[name] if batch.tasks[name].examples else idle for name in self.tasks])

    def predictions(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Predictions of the heads whose tasks are in the batch, of each task's own rows, fp32: [k] or [k, outputs]; of
        a task with a loss per token [k, 2], each one's negative log-likelihood in nats and 1 where it is the likeliest.
        """
        hidden, out = self._hidden(batch), {}
        if any(name in batch.tasks for name in self.heads):
            pooled = self.trunk.pool(batch.texts, hidden)
            for name, head in self.heads.items():
                assert isinstance(head, Head)
                if name in batch.tasks:
                    out[name] = head.predictions(head(pooled[batch.tasks[name].rows]))
        present = {name: batch.tasks[name] for name in self.token_tasks if name in batch.tasks}
        if self.language is not None and present:
            tasks = list(present.values())
            scores = self.language(*_tokens(hidden, tasks)).split([len(task.rows) for task in tasks])
            out |= dict(zip(present, scores, strict=True))
        return out

    def saved_names(self) -> dict[str, str]:
        """Name of each of the trunk's and the language-model head's parameters and buffers -> its name in the state
        dict of `trunk.whole`."""
        before = "" if self.trunk.whole is self.trunk.model else f"{self.trunk.whole.base_model_prefix}."
        names = {f"trunk.model.{name}": before + name for name in self.trunk.model.state_dict()}
        if self.language is not None:
            known = {id(p): name for name, p in self.trunk.whole.named_parameters(remove_duplicate=False)}
            names |= {f"language.{name}": known[id(p)] for name, p in self.language.named_parameters(recurse=False)}
        return names


def _tokens(hidden: Tensor, tasks: list[TaskRows]) -> tuple[Tensor, Tensor]:
    """What the language-model head reads for these tasks, end to end: hidden [k, width] and the tokens that follow."""
    places = torch.cat([task.rows for task in tasks])
    return hidden.index_select(0, places), torch.cat([task.targets for task in tasks])
