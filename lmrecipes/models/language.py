"""The language model's own head: next tokens from the trunk's hidden states, without holding their logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lmrecipes.models.cross_entropy import chunked_cross_entropy, score_tokens
from lmrecipes.problems import InputError, Problem


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


def unsupported(causal: nn.Module, why: str) -> Problem:
    """A model whose logits are made in another way than by a linear layer, a scale and a soft cap."""
    what = f"{type(causal).__name__} cannot be trained on tokens: {why}"
    return Problem("model.pretrained", what, "choose another causal language model", "language-head")
