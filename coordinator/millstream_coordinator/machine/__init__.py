"""The group's machines: pure, driven by happenings and `now`; see ``group.py``."""
