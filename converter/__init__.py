"""Rewrites images to eStargz, so that every file can be fetched and verified on its own."""
