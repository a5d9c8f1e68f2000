"""Cuts the power, kills, and writes the result: see `sweeps`."""

from assurance.powercut.sweeps import main

if __name__ == "__main__":
    main()
