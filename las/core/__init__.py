"""The LAS without IO: committed state, its commands, recovery decisions, the planner.

Standard library and the plain types of `peerd.core` alone.
"""
