"""`python -m jaxnn.processes`."""

import sys

from jaxnn.processes import main

sys.exit(main())
