"""Run the command line as `python -m pyro_lowrank`."""

from pyro_lowrank.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
