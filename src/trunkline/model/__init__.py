"""Encoders as bricks: configuration, checkpoints, trunk, branches, heads and decoding."""
