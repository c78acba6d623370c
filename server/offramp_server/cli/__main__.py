"""`python -m offramp_server.cli` is the command `offramp`."""

import sys

from offramp_server.cli.main import main

sys.exit(main())
