"""The demonstration: sample data that is ours, and one walk from rows to a merged bundle."""
