"""What is measured, and the demo: run from a checkout, as `python -m bench` and `./bench/demo`."""
