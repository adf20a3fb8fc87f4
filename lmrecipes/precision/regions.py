"""Autocast for the duration of one module's forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

HALVES = (torch.float16, torch.bfloat16)


class Region:
    """Hooks on a module: within its forward pass, autocast is on with a dtype, or off for fp32.

    16-bit inputs of a module in fp32 are raised to fp32, and outputs that leave for surroundings in fp32 too. Every
    call enters and leaves for itself, also when it raises and when checkpointing repeats it in backward.
    """

    def __init__(self, module: nn.Module, device_type: str, dtype: torch.dtype, surrounding: torch.dtype) -> None:
        self.dtype, self.surrounding, self.device_type = dtype, surrounding, device_type
        self._entered: list[Any] = []
        self._handles = [
            module.register_forward_pre_hook(self._enter, with_kwargs=True),
            module.register_forward_hook(self._leave, always_call=True),
        ]

    @property
    def rule(self) -> tuple[torch.dtype, torch.dtype]:
        """What distinguishes it from another of the same module."""
        return self.dtype, self.surrounding

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        half = self.dtype in HALVES
        context = torch.autocast(self.device_type, self.dtype if half else None, enabled=half)
        context.__enter__()
        self._entered.append(context)
        return (args, kwargs) if half else (_raised(args), _raised(kwargs))

    def _leave(self, _: nn.Module, args: Any, output: Any) -> Any:
        if self._entered:  # another hook may have raised before `_enter`
            self._entered.pop().__exit__(None, None, None)
        return _raised(output) if self.surrounding not in HALVES and self.dtype in HALVES else output


def _raised(values: Any) -> Any:
    """With 16-bit tensors in fp32; other values as they are."""
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype in HALVES else x, values)
