"""Speed and strength of the attacks beside other libraries and beside the floor; see README.md. Run: make bench."""
