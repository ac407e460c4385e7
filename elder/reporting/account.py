"""Whether Weights & Biases can log in without asking; without importing it."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse

__all__ = ["has_account"]

_HOSTS = "https://api.wandb.ai", "https://api.forge.coreweave.com"  # the second since wandb 0.31, which knows both


def has_account() -> bool:
    """Whether a key is in `WANDB_API_KEY`, or in the netrc file for the server of `WANDB_BASE_URL`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    servers = [os.environ["WANDB_BASE_URL"]] if os.environ.get("WANDB_BASE_URL") else _HOSTS
    try:
        known = netrc.netrc()
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(urlparse(server).netloc) is not None for server in servers)
