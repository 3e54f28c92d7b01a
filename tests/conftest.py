"""Set up before any test imports physnet: annotations are checked while tests run, everything on one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))
# where tensors are; not the modules that judge declarations, since tests hand them wrong types on purpose, nor the
# symbolic ones, since beartype can't read annotations made of SymPy's classes
CHECKED = (
    "augmenting branches connections contrast convolved displaced domains equilibrium functions gdu implicit "
    "integration integrators kept learning maps model motion precision problem protocols randomness references "
    "relaxation scalar simulation stable stopping trajectory unrolled"
)
install_import_hook([f"physnet.{name}" for name in CHECKED.split()], "typechecking.check")

torch.set_num_threads(1)
settings.register_profile(
    "physnet",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("physnet")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in a test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """float64 as the default dtype of one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that is there, one after the other."""
    return torch.device(request.param)
