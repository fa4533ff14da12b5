"""`python -m stepalign.cli`, for `torchrun -m stepalign.cli train ...`."""

import sys

from stepalign.cli.main import main

sys.exit(main())
