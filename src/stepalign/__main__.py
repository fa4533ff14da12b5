"""`python -m stepalign`, for `torchrun -m stepalign train ...`."""

import sys

from stepalign.cli.main import main

sys.exit(main())
