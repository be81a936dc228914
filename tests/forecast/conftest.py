import sys
from pathlib import Path

# Helpers of these tests stand beside them; folders of tests are not packages.
sys.path.insert(0, str(Path(__file__).parent))
