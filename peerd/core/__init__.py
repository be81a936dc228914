"""The protocol of one peer without IO: standard library only, no clock, no randomness."""
