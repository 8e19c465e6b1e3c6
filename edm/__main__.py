from edm.cli import run

run()
