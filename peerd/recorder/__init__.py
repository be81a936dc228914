"""The flight recorder: what the cores of this process were given, in a ring that outlives it."""
