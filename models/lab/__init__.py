"""The fault lab: real peers under real load, driven into real trouble and into look-alikes.

`plan` says what will be done to whom and when, from a seed, before a run begins; `cluster` starts
the peers; `load` offers appends; `episodes` do what the plan says; `watch` sees who stopped and
when; `run` puts a recording together. Nothing of it tells a peer or the LAS anything.
"""
