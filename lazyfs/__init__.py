"""Mount container images before they have arrived: see README.md here for the rooms."""
