"""The fault lab: real peers under real load, driven into real trouble and into look-alikes.

`plan` says what will be done to whom and when, from a seed, before a run begins, out of the kinds
in `kinds`; `cluster` starts the peers, each in a `room` of its own (`link` is its sick network);
`load` offers appends; `episodes` and `room_episodes` do what the plan says; `watch` sees who
stopped and when; `run` puts a recording together. Nothing of it tells a peer or the LAS anything.
"""
