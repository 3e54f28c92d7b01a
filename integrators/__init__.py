"""Ways to equilibrium, one per file. Importing this package registers them in the order in which `auto` tries them."""

from physnet.integrators import errors, blocks, flow, descent, fixed_point, newton, sweeps, sigma_delta, thermal  # noqa: F401, I001 the order counts
