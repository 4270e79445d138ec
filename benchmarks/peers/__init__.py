"""The contestants that the engine is measured against: N tasks answered by other means, as fast as they can be made."""
