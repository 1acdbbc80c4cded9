"""Rows in RLAIF-V's schema: the simulated hospitals, easy-vqa, and the collator."""
