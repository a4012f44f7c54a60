"""What is measured, and the demo: run from a checkout, as root, as `python -m bench [NAME…]` and `./bench/demo`.

    __main__.py     the runner: measure, record, show
    figure.py       one measured quantity, its baseline, its bar
    place.py        the environment: a registry, images, stores; on tmpfs, or in a new ext4 on the disk
    container.py    a container with a reader (reader.c) in it, which measures from the inside
    roots.py        what the container sees: a native mount, or a full pull
    snapshotters.py containerd and lazyfsd with nothing in them, for one round
    link.py         a link with a delay and a rate, between network namespaces
    peer.py         stargz-snapshotter (peers/stargz), and images made by its own optimizer
    NAME.py         one measurement each: a function from a place to figures
    results/        the records, as JSON lines

Absolute times depend on the machine and its load. Where possible, a figure is compared with a baseline in the same run, in
alternating rounds, by medians. Tests assert no times; only the benchmarks measure them.
"""
