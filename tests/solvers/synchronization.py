"""Watch for operations that make the host wait for the device; they can be told on a CPU as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What returns a number to the host, has a shape that depends on data, or looks at a status of the device
WAITING = {
    "_linalg_check_errors",
    "_linalg_svd",
    "_local_scalar_dense",
    "_unique2",
    "argwhere",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Synchronizations(TorchDispatchMode):
    """The operations run while it is active that would wait for a device: `WAITING`, and indices that are masks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    @property
    def count(self) -> int:
        return len(self.found)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name in INDEXING and any(_is_mask(index) for index in args[1])):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Uploads(TorchFunctionMode):
    """Counts the tensors made of numbers of the host while it is active: a copy to a device, which waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += func in (torch.tensor, torch.as_tensor)
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
