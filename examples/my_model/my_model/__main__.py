"""python -m my_model OUT: write the folder of a base model with random weights."""

import sys

from my_model.model import tiny

tiny().save(sys.argv[1])
