"""`python -m stepalign.cli`, as `python -m stepalign`."""

import sys

from stepalign.cli import main

sys.exit(main())
