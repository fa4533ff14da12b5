"""`python -m stepalign`, for `torchrun -m stepalign train ...`."""

import sys

from stepalign.cli import main

sys.exit(main())
