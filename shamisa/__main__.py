"""``python -m shamisa COMMAND ...`` is ``shamisa COMMAND ...``."""

import sys

from .cli import main

sys.exit(main())
