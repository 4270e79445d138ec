"""Benchmarks: commands that measure, and write what they measured with the machine it was measured on."""
