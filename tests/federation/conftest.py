import sys
from pathlib import Path

# The journals are driven by the same small federation as the sessions in them.
sys.path.insert(0, str(Path(__file__).parents[1] / "secagg"))
