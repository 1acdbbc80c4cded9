"""A linear model of one's own under secure aggregation."""
