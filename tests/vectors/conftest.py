import sys
from pathlib import Path

# The reference implementation is no part of the package.
sys.path.insert(0, str(Path(__file__).parents[2] / "protocols" / "pairwise"))
