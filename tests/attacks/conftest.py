import sys
from pathlib import Path

# These tests drive the same small federation as those of `secagg`.
sys.path.insert(0, str(Path(__file__).parents[1] / "secagg"))
