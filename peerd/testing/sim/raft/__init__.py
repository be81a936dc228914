"""The second mode of the simulator: the LAS group is the real Raft of `las.raft`, in virtual time.

Nothing of a member is modelled: its journal, snapshots, elections and frames are those of
production. What is modelled is around it: time, disk, network, and the thread that drives it.
"""
