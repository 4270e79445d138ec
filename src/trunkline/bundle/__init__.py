"""Bundles on disk: trunk and branches as immutable files, one manifest that points at them."""
