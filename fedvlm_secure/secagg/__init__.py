"""The aggregation protocols as state machines without I/O."""
