"""The attacks, one function each, from a target to what was observed of it."""
