"""The parts of ``benchmarks.kernels``: the device, what is checked, what is timed, the results."""
