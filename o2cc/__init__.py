"""O2C: compile confinement policies for running Linux kernels to eBPF."""

__version__ = "0.1.0"
