"""Partial fine-tuning, distillation and planning: from rows to branches and a plan."""
