"""What a server reads off an update, as far as published attacks go; see ``examples/leakage/leakage.py``."""
