"""The command line. With too little address space even its own imports fail, so that is looked at before them."""

from simpo_cli.cli.surroundings import require_python

require_python()
