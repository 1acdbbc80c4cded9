"""Signatures, sealed boxes, mask streams, Shamir sharing and the canonical wire format: no torch, no I/O."""
