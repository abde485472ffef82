"""`python -m relay.simulator --port N`, without Django."""

from __future__ import annotations

import argparse

from relay.simulator.run import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m relay.simulator", description="A simulated upstream of all dialects.")
add_arguments(parser)
options = parser.parse_args()
run(host=options.host, port=options.port)
