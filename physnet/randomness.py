"""Random numbers as a pure function of what they are for."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *keys: int | str) -> torch.Generator:
    """A generator for one purpose, such as `stream(seed, "shuffle", epoch)`, independent of those with other keys."""
    digest = hashlib.sha256("\x1f".join(map(str, ("physnet 1", seed, *keys))).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
    return generator
