"""What every room may use: stage folders, atomic writes, hashes, random numbers, devices, images."""
