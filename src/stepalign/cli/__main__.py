"""`python -m stepalign.cli`, as `python -m stepalign`."""

import sys

from stepalign.cli.main import main

sys.exit(main())
