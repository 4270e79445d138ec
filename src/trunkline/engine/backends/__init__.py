"""Backends: what runs the programs of trunk and branches."""
