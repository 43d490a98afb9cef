"""Generation and answers: one image for a person, many for a benchmark, finished work saved one by one."""
