"""The algorithms that DAMO is compared with, a file each."""
