"""Answers: the forward pass over a bundle, evaluation and verification."""
