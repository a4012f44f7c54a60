"""Real images for tests and benchmarks, out of Debian's and PyPI's packages only: `python -m tests.images NAME…`.

    table.py    what there is: a layer is a script over its parent, an image a layer and its config
    edge.py     the layers of the image that holds what ordinary ones do not
    build.py    runs a layer's script in a chroot over an overlayfs mount; the upper directory is the layer
    layer.py    an upper directory, as overlayfs leaves it, becomes a layer's tar
    layout.py   blobs and tags of one OCI layout

Everything lies in one folder, `LAZYFS_IMAGES` or /var/tmp/lazyfs-images, under names made from the recipes: what was built
once is there at once, and a changed recipe builds anew.
"""
