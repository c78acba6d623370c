"""`python -m offramp_server`: the command `offramp`."""

from offramp_server.cli.main import main

raise SystemExit(main())
