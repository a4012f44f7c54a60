"""State directories that builds of lazyfs have written, one for each set of formats: what a later build must take over.

`python -m tests.states` makes one with the formats of today, if there is none yet: in the commit that changes a format, before it is
changed. Each holds the same: a lazy layer, pulled whole, and a layer on it that containerd has unpacked.
"""
