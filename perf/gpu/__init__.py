"""The stages of `perf.gpu_check`."""
