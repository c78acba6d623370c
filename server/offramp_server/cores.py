"""Here until workers/engines/load.py imports it from where it is."""

from offramp_server.machine.cores import usable_cores as usable_cores
