"""Memory that a computation holds at its peak, exact and repeatable: every tensor it makes is watched."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The bytes that tensors made while it is active occupy `now`, and the most they have occupied, `peak`.

    Sees every operation, below functional transforms and inside the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._watched: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._watched:
            self._watched.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._watched.discard(key)
        self.now -= size
