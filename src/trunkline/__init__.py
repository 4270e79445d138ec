"""Trunkline: one frozen encoder trunk, many task branches, one forward pass."""

__version__ = "0.1.0"
