"""The language model's own head: next tokens from the trunk's hidden states, without holding their logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.models.cross_entropy import chunked_cross_entropy, score_tokens
from lmrecipes.problems import InputError, Problem

CHECKED = 8
"""Tokens on which `check_head` compares."""


class LanguageHead(nn.Module):
    """The output layer of a causal model of `transformers`, as it is: tied to the embeddings or not.

    The weight hangs on the head itself, because ZeRO-3 gathers the parameters of the module that runs, and on `output`,
    for the model's own forward pass in generation. Raises InputError where the model has no such layer.
    """

    def __init__(self, causal: nn.Module) -> None:
        super().__init__()
        output = causal.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(getattr(output, "weight", None), nn.Parameter):
            raise InputError(unsupported(causal, "it has no linear output layer"))
        self.output = output
        self.weight = output.weight
        self.bias = getattr(output, "bias", None)
        config: Any = causal.config
        config = config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0))

    def forward(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """hidden [k, h], the next tokens int64 [k] and fp32 weights [k] -> weighted sum of their negative
        log-likelihoods (fp32 []) and each of these (fp32 [k], detached); without weights -> `score_tokens` [k, 2]."""
        options: dict[str, Any] = {"scale": self.scale, "softcap": self.softcap, "bias": self.bias}
        if weights is None:
            return score_tokens(hidden, self.weight, targets, **options)
        return chunked_cross_entropy(hidden, self.weight, targets, weights, **options)


def check_head(causal: nn.Module) -> None:
    """Raise InputError where the model's logits are not what its `LanguageHead` makes of the last hidden states.

    Call it while the model has its own attention. Weights that ZeRO-3 has partitioned are not gathered for it: then
    nothing is checked.
    """
    if any(hasattr(parameter, "ds_id") for parameter in causal.parameters()):
        return
    head, base, training = LanguageHead(causal), causal.base_model, causal.training
    ids = torch.arange(1, 2 * CHECKED, 2, device=head.weight.device)[None] * 7919 % len(head.weight)
    causal.eval()
    try:
        with torch.no_grad():
            hidden = base(input_ids=ids, use_cache=False).last_hidden_state[0]  # type: ignore[operator]
            logits = causal(input_ids=ids, use_cache=False).logits[0].float()
            found = head(hidden, ids[0])
    finally:
        causal.train(training)
    wanted = F.cross_entropy(logits, ids[0], reduction="none")
    far = float((found[:, 0] - wanted).abs().max())
    close = 1e-3 if head.weight.dtype is torch.float32 else 0.1  # of logits rounded to 16 bits
    if not far < close:
        what = f"its losses differ by up to {far:.3g} nats from those of its last hidden states and output weights"
        raise InputError(unsupported(causal, what))


def unsupported(causal: nn.Module, why: str) -> Problem:
    """A model whose logits are made in another way than by a linear layer, a scale and a soft cap."""
    what = f"{type(causal).__name__} cannot be trained on tokens: {why}"
    return Problem("model.pretrained", what, "choose another causal language model", "language-head")
