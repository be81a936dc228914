"""`peerd` that tells of its workload each second: `python -m tests.integration.hasty_peer serve …`.

In a test nobody waits for the intervals of ten seconds by which the LAS knows a hot shard.
"""

from peerd.cli.peerd import main
from peerd.transport import workload

if __name__ == "__main__":
    workload.PERIOD_S = 1.0
    main()
