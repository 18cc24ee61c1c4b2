"""`python -m lowrank` is the command `lowrank`."""

from lowrank.cli import main

main(prog_name="lowrank")
