import sys
from pathlib import Path

# The fuzzer drives the same small federation as the tests of `secagg`.
sys.path.insert(0, str(Path(__file__).parents[1] / "secagg"))
