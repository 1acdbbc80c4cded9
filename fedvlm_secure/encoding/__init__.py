"""Float vectors to integers of a ring and back: clip, rotate, weight, round, and proof of headroom."""
