"""Values, specs, errors and metrics: what every other layer imports."""
